"""Commands that prepare a study: create it, take in clips and votes, simulate raters."""

from argparse import Namespace
from pathlib import Path

from human_eval.cli.command import Commands, add_command, opened, progress_bar, split_settings
from human_eval.clips.ingest import ingest as ingest_clips
from human_eval.clips.ingest import tabulate_clips
from human_eval.clips.sources import Selection, find_sources, find_systems
from human_eval.collection.pairs import add_clip, list_clips, list_prompts, make_pairs
from human_eval.collection.quotas import add_default_quota, describe_quotas, session_quota
from human_eval.definition.definition import PRESETS, load_definition
from human_eval.definition.prompts import EVALCRAFTER, load_prompts
from human_eval.errors import StudyError, list_names
from human_eval.reporting.foreign_votes import MAPPINGS, MAX_BAD, load_mapping, read_foreign_votes
from human_eval.reporting.win_rate_rows import count_of
from human_eval.storage.study_state import check_open
from human_eval.study.attention_checks import make_gold
from human_eval.study.media_check import find_lost_clips, name_lost, remake_clips
from human_eval.study.queries import read_pairs
from human_eval.study.store import StudyStore, create_study


def add_commands(commands: Commands) -> None:
    """Add create, ingest, import-votes and simulate."""
    presets = ", ".join(sorted(path.stem for path in PRESETS.glob("*.toml")))
    parser = add_command(
        commands, "create", create, "Create a study; its definition never changes afterwards."
    )
    parser.add_argument(
        "--definition", default="shapes-demo", help=f"a TOML file or a preset: {presets}"
    )
    parser.add_argument(
        "--prompts", help="text, CSV, TSV, JSON or JSON lines, or evalcrafter; else as defined"
    )
    parser.add_argument("--column", help="column of prompts; default: prompt, text, caption")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a preset's parameter"
    )
    parser.add_argument("--database", metavar="URL", help="postgresql://...; SQLite without it")

    parser = add_command(
        commands, "ingest", ingest, "Take in clips: check, re-encode, rename and pair them."
    )
    parser.add_argument(
        "clips",
        nargs="+",
        metavar="SYSTEM=FOLDER",
        help="one per system, or one folder that holds a folder for each",
    )
    parser.add_argument("--partial", action="store_true", help="pair the clips there are so far")
    parser.add_argument(
        "--first-number",
        type=int,
        choices=(0, 1),
        help="of numbered files: the number of the clip of the first prompt",
    )
    parser.add_argument(
        "--seed",
        type=int,
        help="of several clips of a prompt, take those of this seed, or PROMPT-SEED.mp4",
    )
    parser.add_argument("--no-gold", action="store_true", help="make no gold pairs yet")

    parser = add_command(
        commands,
        "import-votes",
        import_votes,
        "Import an export of the same study from another server, or MTurk's results; with "
        "--mapping, a table of votes from elsewhere as a study of its own (STUDY is the table).",
    )
    parser.add_argument(
        "file",
        type=Path,
        nargs="?",
        metavar="EXPORT",
        help="folder of an export; MTurk: CSV; none with --mapping",
    )
    mappings = ", ".join(sorted(path.stem for path in MAPPINGS.glob("*.toml")))
    parser.add_argument("--mapping", help=f"which column holds what: a TOML file, or {mappings}")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="with --mapping: the folder to create"
    )
    parser.add_argument(
        "--primary", default="", help="with --mapping: the question that claims are about"
    )
    parser.add_argument(
        "--max-bad",
        type=float,
        default=MAX_BAD,
        metavar="SHARE",
        help="with --mapping: the largest share of rows that are not votes",
    )
    parser.add_argument(
        "--answer",
        action="append",
        default=[],
        metavar="QUESTION=COLUMN",
        help="where it is not Answer.QUESTION",
    )
    parser.add_argument(
        "--keep-stored",
        action="store_true",
        help="leave out answers of a person who answered the same pair otherwise in this study",
    )

    parser = add_command(
        commands, "simulate", simulate, "Let simulated raters answer; always marked as simulated."
    )
    parser.add_argument("--raters", type=int, default=60)
    parser.add_argument("--win-rate", type=float, help="true win rate of system A; default: 0.55")
    parser.add_argument(
        "--win-rates",
        nargs="+",
        default=[],
        metavar="COMPARISON=RATE",
        help="true win rates of A in these comparisons, instead of --win-rate",
    )
    parser.add_argument(
        "--judge",
        type=Path,
        metavar="TABLE",
        help="a judge's scores (see `report --judge`): A's win rate in each pair",
    )
    parser.add_argument("--ties", type=float, default=0.0, help="share of ties, where allowed")
    parser.add_argument("--side-bias", type=float, default=0.0, help="share of blind left clicks")
    parser.add_argument("--spammers", type=float, default=0.0, help="share of the raters")
    parser.add_argument(
        "--spread", type=float, default=0.3, help="of prompts and of raters, in log-odds"
    )
    parser.add_argument("--max-pairs", type=int, help="stop after so many")
    parser.add_argument("--seed", type=int, default=0)


def create(options: Namespace) -> None:
    """Create a study."""
    settings = split_settings(options.set, "NAME=VALUE")
    numbers = {name: int(value) if value.isdigit() else value for name, value in settings.items()}
    definition = load_definition(options.definition, numbers)
    source = options.prompts or definition.prompts
    beside = Path(options.definition).parent / source
    if not options.prompts and source != EVALCRAFTER and beside.exists():
        source = str(beside)
    prompts = load_prompts(source, column=options.column, max_length=definition.max_prompt_length)
    definition = add_default_quota(definition, len(prompts))
    create_study(options.study, definition, prompts, database_url=options.database).close()
    systems = " ".join(f"{system.key}=FOLDER" for system in definition.systems)
    texts = len({prompt.text for prompt in prompts})
    print(f"Study {definition.name} in {options.study}: {len(prompts)} prompts, {texts} distinct.")
    print(f"Definition {definition.hash[:16]}, fixed. The folder holds a secret: keep it safe.")
    if quotas := describe_quotas(definition):
        print(quotas)
    pairs, session = len(prompts) * len(definition.comparisons), session_quota(definition)
    if definition.providers and session and session > pairs:
        print(
            f"Warning: a session has {session} pairs, but there are {pairs}. Without as many "
            "checks, no rater can finish a session and be paid. Lower per_study, or add prompts."
        )
    print(f"Next: python -m human_eval ingest {options.study} {systems}")


def ingest(options: Namespace) -> None:
    """Take in clips and pair them."""
    with opened(options) as store:
        with store.read() as connection:
            check_open(connection)
            prompts = list_prompts(connection)
            known = {(clip.system, clip.prompt_index): clip for clip in list_clips(connection)}
        keys = [system.key for system in store.definition.systems]
        if len(options.clips) == 1 and "=" not in options.clips[0]:
            folders = find_systems(Path(options.clips[0]), keys)
        else:
            named = split_settings(options.clips, "SYSTEM=FOLDER").items()
            folders = {store.definition.system(key).key: Path(folder) for key, folder in named}
        selection = Selection(options.first_number, options.seed)
        sources = find_sources(folders, prompts, selection)
        refused: list[str] = []
        with progress_bar("ingest", "clip") as advance:
            for clip in ingest_clips(
                sources,
                prompts,
                store.definition,
                store.media,
                known=known,
                partial=options.partial,
                progress=advance,
            ):
                with store.write() as connection:
                    add_clip(connection, clip, now=store.clock())
                if clip.status != "ok":
                    refused.append(f"{clip.system} {clip.prompt_index:04d}: {clip.reason}")
        for remade in remake_clips(store, sources):
            print(f"made again: {remade}")
        with store.write() as connection:
            partial = options.partial
            made = make_pairs(connection, store.definition, rng=store.rng, partial=partial)
        golds = 0
        lost = find_lost_clips(store)
        if not options.no_gold and not lost:
            with progress_bar("gold", "pair", leave=False, delay=1) as advance:
                golds = make_gold(store, progress=advance)
        _print_ingest(store, made, golds)
    if refused:
        raise StudyError(
            f"{len(refused)} clips were refused, because they cannot be shown side by side:\n  "
            + list_names(refused, "\n  ")
            + "\nAll other clips are stored. Make these again, then run the same command."
        )
    if lost:
        raise StudyError(name_lost(lost))


def _print_ingest(store: StudyStore, made: dict[str, int], golds: int) -> None:
    pairs = read_pairs(store)
    for comparison in store.definition.comparisons:
        real = pairs[(pairs["comparison"] == comparison.key) & (pairs["kind"] == "real")]
        new = made.get(comparison.key, 0)
        print(f"{comparison.key}  {comparison.a} vs {comparison.b}: {len(real)} pairs, {new} new")
    with store.read() as connection:
        table = tabulate_clips(list_clips(connection)).round({"mean_bytes": 0})
    print(table.to_string(index=False, float_format="{:g}".format))
    print("Both clips of a pair are sent at one size, so that the size reveals no system.")
    if golds:
        print(f"gold: {golds} new pairs")


def import_votes(options: Namespace) -> None:
    """Import votes from a file."""
    if options.mapping:
        _import_foreign_votes(options)
        return
    if options.file is None or options.out:
        raise StudyError(
            "Name the EXPORT to import into the study, or give --mapping and --out for votes that "
            "were collected elsewhere."
        )
    from human_eval.mturk.batches import read_results
    from human_eval.mturk.export_in import read_submissions
    from human_eval.mturk.votes_in import import_submissions

    with opened(options) as store:
        with store.read() as connection:
            check_open(connection)
        columns, left_out = split_settings(options.answer, "QUESTION=COLUMN"), 0
        if options.file.is_dir():
            if columns:
                raise StudyError("--answer is for results of MTurk. An export needs no --answer.")
            exported = read_submissions(options.file, store)
            submissions, left_out = exported.submissions, exported.left_out
        else:
            submissions = read_results(options.file, store, columns=columns)
        done = import_submissions(store, submissions, keep_stored=options.keep_stored)
        print(f"{done.added} submissions imported, {done.already_there} were there already.")
    if done.excluded:
        print(f"{count_of(done.excluded, 'exclusion')} added to those that were there already.")
    for source in done.contradicting:
        print(f"left out: {source}")
    if done.differing:
        listed = list_names(done.differing, "\n  ")
        print(
            f"{count_of(len(done.differing), 'exclusion')} of the study or of the file alone, left "
            f"as the study has it:\n  {listed}"
        )
    if left_out:
        print(f"{left_out} answers to attention checks of the other server alone were left out.")


def _import_foreign_votes(options: Namespace) -> None:
    """Make a study of a table of votes that were collected elsewhere."""
    from human_eval.reporting.foreign_study import BAD_ROWS, write_foreign_study
    from human_eval.statistics.votes import UNKNOWN, find_unknown

    if options.file or not options.out:
        raise StudyError("--mapping needs one table of votes, and --out for the folder to be made.")
    if not 0 <= options.max_bad <= 1:
        raise StudyError(f"--max-bad is {options.max_bad:g}, but must lie between 0 and 1.")
    votes = read_foreign_votes(options.study, load_mapping(options.mapping), options.max_bad)
    frame, definition = write_foreign_study(
        votes, options.out, title=options.study.stem, primary=options.primary
    )
    print(
        f"{count_of(len(frame), 'vote')} on {count_of(len(definition.comparisons), 'comparison')} "
        f"of {count_of(len(definition.systems), 'system')} in {options.out}."
    )
    unknown = [things for name, things in UNKNOWN.items() if find_unknown(frame, [name])]
    if unknown:
        print(f"Unknown: {', '.join(unknown)}. The report says what follows from it.")
    if votes.others:
        print(
            f"{votes.others:,} records are not votes by [only] of the mapping, and were left out."
        )
    if votes.bad:
        reasons = [f"line {line}: {reason}" for line, reason in votes.bad.items()]
        listed = list_names(reasons, "\n  ")
        print(
            f"{len(votes.bad):,} rows were left out:\n  {listed}\n"
            f"{options.out / BAD_ROWS} lists them."
        )
    print(f"Next: python -m human_eval report {options.out} --out report")


def simulate(options: Namespace) -> None:
    """Let simulated raters answer."""
    from human_eval.study.simulation import Crowd, simulate

    rates = split_settings(options.win_rates, "COMPARISON=RATE")
    try:
        win_rates = {comparison: float(rate) for comparison, rate in rates.items()}
    except ValueError as error:
        raise StudyError(f"A rate of --win-rates is not a number: {error}. Correct it.") from error
    if options.judge and (win_rates or options.win_rate is not None):
        raise StudyError("--judge gives every pair its rate. Leave --win-rate and --win-rates out.")
    with opened(options) as store:
        crowd = Crowd(
            raters=options.raters,
            win_rate=Crowd.win_rate if options.win_rate is None else options.win_rate,
            win_rates=win_rates,
            pair_rates=_read_pair_rates(store, options.judge) if options.judge else {},
            tie_share=options.ties,
            side_bias=options.side_bias,
            spammers=options.spammers,
            prompt_spread=options.spread,
            rater_spread=options.spread,
            seed=options.seed,
        )
        with progress_bar("simulate", "pair") as advance:
            done = simulate(store, crowd, max_pairs=options.max_pairs, progress=advance)
    print(f"{done} pairs answered by {options.raters} simulated raters, marked as such.")
    print(f"Next: python -m human_eval report {options.study} --simulated")


def _read_pair_rates(store: StudyStore, table: Path) -> dict[tuple[str, int], float]:
    """Return a judge's probability that A wins each pair, by comparison and prompt."""
    from human_eval.reporting.judge_scores import read_scores

    pairs = read_pairs(store)
    real = pairs[pairs["kind"] == "real"]
    needed = zip(real["comparison"], real["prompt_index"], strict=True)
    scores = read_scores(table, store.definition, needed, others=True)
    keys = zip(scores["comparison"], scores["prompt_index"], strict=True)
    return dict(zip(keys, scores["score"], strict=True))
