"""What each command does: open the study, call one function, print what came of it.

Libraries for statistics and charts are imported by the commands that need them; the others start
at once.
"""

from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
from sqlalchemy import Connection, select
from tqdm import tqdm

from human_eval.clips.ingest import ingest as pass_gate
from human_eval.clips.ingest import tabulate_clips
from human_eval.clips.sources import find_sources, find_systems
from human_eval.collection.assignment import check_open, is_paused
from human_eval.definition.definition import load_definition
from human_eval.definition.prompts import EVALCRAFTER, load_prompts
from human_eval.errors import StudyError
from human_eval.storage.events import Exclusion, exclusions
from human_eval.storage.tables import AssignmentRow, Rater
from human_eval.study import backup as backups
from human_eval.study.attention_checks import make_gold
from human_eval.study.erasure import erase_rater, erase_simulation, list_leftovers
from human_eval.study.queries import find_settled
from human_eval.study.store import StudyStore, create_study, open_study

Command = Callable[[Namespace], None]


@contextmanager
def _opened(options: Namespace) -> Iterator[StudyStore]:
    store = open_study(options.study)
    try:
        yield store
    finally:
        store.close()


def _check_open(store: StudyStore) -> None:
    with store.read() as connection:
        check_open(connection)


def create(options: Namespace) -> None:
    """Make a new study."""
    settings = _split(options.set, "NAME=VALUE")
    numbers = {name: int(value) if value.isdigit() else value for name, value in settings.items()}
    definition = load_definition(options.definition, numbers)
    source = options.prompts or definition.prompts
    beside = Path(options.definition).parent / source
    if not options.prompts and source != EVALCRAFTER and beside.exists():
        source = str(beside)
    prompts = load_prompts(source, column=options.column)
    store = create_study(options.study, definition, prompts, database_url=options.database)
    store.close()
    systems = " ".join(f"{system.key}=FOLDER" for system in definition.systems)
    texts = len({prompt.text for prompt in prompts})
    print(f"Study {definition.name} in {options.study}: {len(prompts)} prompts, {texts} different.")
    print(f"Definition {definition.hash[:16]}, frozen. It holds the secret: keep the folder safe.")
    print(f"Next: python -m human_eval ingest {options.study} {systems}")


def ingest(options: Namespace) -> None:
    """Take clips in."""
    with _opened(options) as store:
        _check_open(store)
        prompts = store.prompts()
        keys = [system.key for system in store.definition.systems]
        if len(options.clips) == 1 and "=" not in options.clips[0]:
            folders = find_systems(Path(options.clips[0]), keys)
        else:
            named = _split(options.clips, "SYSTEM=FOLDER").items()
            folders = {store.definition.system(key).key: Path(folder) for key, folder in named}
        sources = find_sources(folders, prompts)
        known = {(clip.system, clip.prompt_index): clip for clip in store.clips()}
        bar = tqdm(total=len(sources), unit="clip", desc="ingest")

        def advance(done: int, total: int, what: str) -> None:
            bar.set_postfix_str(what, refresh=False)
            bar.update(done - bar.n)

        refused: list[str] = []
        with bar:
            for clip in pass_gate(
                sources,
                prompts,
                store.definition,
                store.media,
                known=known,
                partial=options.partial,
                progress=advance,
            ):
                store.add_clips([clip], pair=False)
                if clip.status != "ok":
                    refused.append(f"{clip.system} {clip.prompt_index:04d}: {clip.reason}")
        made = store.make_pairs(partial=options.partial)
        golds = 0 if options.no_gold else _make_gold(store)
        _print_ingest(store, made, golds, refused)


def _make_gold(store: StudyStore) -> int:
    with tqdm(unit="pair", desc="gold", leave=False, delay=1) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return make_gold(store, progress=advance)


def _print_ingest(store: StudyStore, made: dict[str, int], golds: int, refused: list[str]) -> None:
    pairs = store.pairs()
    for comparison in store.definition.comparisons:
        real = pairs[(pairs["comparison"] == comparison.key) & (pairs["kind"] == "real")]
        new = made.get(comparison.key, 0)
        print(f"{comparison.key}  {comparison.a} vs {comparison.b}: {len(real)} pairs, {new} new")
    table = tabulate_clips(store.clips()).round({"mean_bytes": 0})
    print(table.to_string(index=False, float_format="{:g}".format))
    print("Both clips of a pair are sent at one size, so that no weight tells a system.")
    if golds:
        print(f"gold: {golds} new pairs")
    if refused:
        raise StudyError(
            f"Expected clips that can be shown side by side, got {len(refused)} that cannot:\n  "
            + "\n  ".join(refused[:20])
            + "\nThe others are in. Make these again, then run the same command."
        )


def import_votes(options: Namespace) -> None:
    """Take answers in from a file."""
    from human_eval.mturk import batches
    from human_eval.mturk.votes_in import import_submissions

    with _opened(options) as store:
        _check_open(store)
        columns = _split(options.answer, "QUESTION=COLUMN")
        ballots = batches.read_results(options.file, store, columns=columns)
        done = import_submissions(store, ballots)
        print(f"{done.added} ballots imported, {done.already_there} were there already.")


def simulate(options: Namespace) -> None:
    """Let simulated raters answer."""
    from human_eval.study.simulation import Crowd, simulate

    crowd = Crowd(
        raters=options.raters,
        win_rate=options.win_rate,
        tie_share=options.ties,
        side_bias=options.side_bias,
        spammers=options.spammers,
        prompt_spread=options.spread,
        rater_spread=options.spread,
        seed=options.seed,
    )
    with _opened(options) as store, tqdm(unit="pair", desc="simulate") as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        done = simulate(store, crowd, max_turns=options.max_pairs, progress=advance)
    print(f"{done} pairs answered by {options.raters} simulated raters, marked as such.")
    print(f"Next: python -m human_eval report {options.study} --simulated")


def close(options: Namespace) -> None:
    """Close the study, or open it again."""
    with _opened(options) as store:
        store.set_closed(not options.reopen, author=options.author)
    print("The study takes answers again." if options.reopen else "The study is closed.")


def status(options: Namespace) -> None:
    """Print how far the study is."""
    with _opened(options) as store:
        progress = store.progress(simulated=options.simulated)
        defects = store.list_defects()
        with store.read() as connection:
            paused = is_paused(connection)
            whose = [_is_simulated(connection, entry) for entry in exclusions(connection)]
    state = "closed" if progress["closed_at"] is not None else "paused" if paused else "open"
    print(f"{progress['name']}, {state}, definition {progress['definition_hash'][:16]}")
    if options.simulated:
        print("SIMULATED raters and answers:")
    print(progress["comparisons"].to_string(index=False))
    states = ", ".join(f"{count} {word}" for word, count in sorted(progress["assignments"].items()))
    print(f"{progress['raters']} raters; assignments: {states or 'none'}")
    print(f"{whose.count(options.simulated)} exclusions in force")
    if defects:
        raise StudyError(f"Expected a sound database, got: {'; '.join(defects[:5])}. Restore one.")
    print("The database is sound.")


def _is_simulated(connection: Connection, excluded: Exclusion) -> bool | None:
    """Return whether a simulated rater or turn is excluded; None if it is gone."""
    kind, _, number = excluded.subject.partition(":")
    table: type[Rater | AssignmentRow] = Rater if kind == "rater" else AssignmentRow
    return connection.execute(select(table.simulated).where(table.id == int(number))).scalar()


def report(options: Namespace) -> None:
    """Write a report, from a study or from an export alone."""
    from human_eval.reporting.report import report_from_export, write_report

    if any(options.study.glob("votes.*")):  # an export, which has no database
        if options.as_of:
            raise StudyError(
                f"Expected --as-of with a study, got an export, {options.study}: it holds the "
                "answers and exclusions of one moment alone. Make the report from the study."
            )
        folder = options.out or Path("report")
        with _counting("report", "table") as advance:
            written = report_from_export(
                options.study, folder, simulated=options.simulated, progress=advance
            )
    else:
        with _opened(options) as store:
            votes = _votes(store, options)
            name = "report-simulated" if options.simulated else "report"
            folder = options.out or store.folder / name
            with _counting("report", "table") as advance:
                written = write_report(votes, store.definition, folder, progress=advance)
    print("\n".join(str(path) for path in written))


@contextmanager
def _counting(what: str, unit: str) -> Iterator[Callable[[str], None]]:
    """Show how many things are done, and which is under way."""
    with tqdm(desc=what, unit=unit) as bar:

        def advance(name: str) -> None:
            bar.set_postfix_str(name)
            bar.update()

        yield advance


def export(options: Namespace) -> None:
    """Write what others need."""
    from human_eval.reporting.export import write_export

    with _opened(options) as store:
        if options.mturk:
            from human_eval.mturk.batches import write_batches

            path = options.out or store.folder / "mturk-batch.csv"
            for batch, workers in write_batches(store, options.mturk, path):
                print(f"{batch}: publish each row for {workers} workers")
            print("Import the results of earlier batches first; keep their workers out of these.")
            return
        votes = _votes(store, options)
        name = "export-simulated" if options.simulated else "export"
        folder = options.out or store.folder / name
        written = write_export(votes, store.definition, folder, clips=store.clips())
    print("\n".join(str(path) for path in written))


def _votes(store: StudyStore, options: Namespace) -> pd.DataFrame:
    as_of = getattr(options, "as_of", None)
    try:
        moment = datetime.fromisoformat(as_of) if as_of else None
    except ValueError as error:
        raise StudyError(
            f"Expected a time such as 2026-11-20T12:00, got {as_of!r}. Correct --as-of."
        ) from error
    if moment is not None and moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    votes = store.votes(moment, simulated=options.simulated)
    if votes.empty:
        kind = "simulated answer" if options.simulated else "answer"
        raise StudyError(
            f"Expected at least one {kind}, got none. `serve` the study, or `simulate` one and "
            "add --simulated."
        )
    return votes


def forecast(options: Namespace) -> None:
    """Print cost and power, before and during a study."""
    from human_eval.statistics.power import forecast_decisions, forecast_power, plan_study
    from human_eval.statistics.votes import counted_votes

    with _opened(options) as store:
        prompts = len(store.prompts())
        votes = store.votes(simulated=options.simulated)
        definition = store.definition
    plan = plan_study(definition, prompts)
    print(f"{plan.pairs} pairs, {plan.assignments} assignments, {plan.votes} votes")
    print(f"{plan.total:,.2f} {plan.currency} with fees, {plan.hours:,.1f} rater hours")
    print(forecast_power(definition, prompts).to_string(index=False))
    if len(votes):
        print(forecast_decisions(counted_votes(votes), definition).to_string(index=False))


def screen(options: Namespace) -> None:
    """Propose raters for exclusion, exclude them, or take that back."""
    from human_eval.statistics import screening

    with _opened(options) as store:
        if options.revoke is not None:
            if not options.reason:
                raise StudyError("Expected a --reason with --revoke, got none. Say why.")
            store.revoke(options.revoke, author=options.author, reason=options.reason)
            print(f"Exclusion {options.revoke} is revoked.")
            return
        votes = store.votes(simulated=options.simulated)
        proposed = screening.screen(votes, store.definition)
        with store.read() as connection:
            in_force = exclusions(connection)
            settled = find_settled(connection)
        revoked = settled - {(entry.subject, entry.rule) for entry in in_force}
        for row in proposed.itertuples():
            subject = f"rater:{store.rater_number(row.rater)}"
            if options.apply and (subject, row.rule) not in settled:
                store.exclude(subject, rule=row.rule, evidence=row.evidence, author=options.author)
            stays = "  revoked before: stays so" if (subject, row.rule) in revoked else ""
            print(f"{row.rater}  {row.rule}  {row.evidence}{stays}")
        print(f"{len(proposed)} proposed, {'applied' if options.apply else 'none applied'}.")
        for entry in in_force:
            print(f"in force: event {entry.event_id}, {entry.subject}, {entry.rule}")
        print(screening.consistency(votes).to_string(index=False))


def backup(options: Namespace) -> None:
    """Copy the database."""
    with _opened(options) as store:
        print(backups.back_up(store))


def restore(options: Namespace) -> None:
    """Put a backup in place."""
    store, chosen = backups.open_to_restore(options.study, options.backup)
    try:
        missing = backups.restore(store, chosen)
    finally:
        store.close()
    print(f"Restored {chosen}.")
    if missing:
        names = ", ".join(f"{clip.system} {clip.prompt_index:04d}" for clip in missing[:20])
        raise StudyError(
            f"Expected every clip in the media folder, got {len(missing)} missing: {names}. "
            "Copy the media folder of the study back."
        )


def erase(options: Namespace) -> None:
    """Forget a rater, or the simulation."""
    if options.simulated and options.provider is not None:
        raise StudyError("Expected PROVIDER and RATER, or --simulated, got both. Leave one out.")
    with _opened(options) as store:
        if options.simulated:
            done = erase_simulation(store)
            print(f"{done.raters} simulated raters and {done.turns_deleted} turns are gone.")
            return
        if options.provider is None or options.rater is None:
            raise StudyError("Expected PROVIDER and RATER, or --simulated, got neither.")
        done = erase_rater(store, options.provider, options.rater)
        fresh = backups.replace_backups(store)
        kept = "deleted" if done.turns_deleted else "kept, belonging to nobody"
        print(f"Erased. Their answers are {kept}. Older backups are gone; the new one is {fresh}.")
        for path in list_leftovers(store):
            print(f"May still know them, of before: {path}")
        print("Delete these and all copies elsewhere; then export and report again.")


def _split(settings: Sequence[str], shape: str) -> dict[str, str]:
    named: dict[str, str] = {}
    for setting in settings:
        name, separator, value = setting.partition("=")
        if not separator or not name or not value:
            raise StudyError(f"Expected {shape}, got {setting!r}. Write it without spaces.")
        if name in named:
            raise StudyError(f"Expected {shape} once for each, got {name!r} twice. Leave one out.")
        named[name] = value
    return named


COMMANDS: dict[str, Command] = {
    "create": create,
    "ingest": ingest,
    "import-votes": import_votes,
    "simulate": simulate,
    "close": close,
    "status": status,
    "report": report,
    "export": export,
    "forecast": forecast,
    "screen": screen,
    "backup": backup,
    "restore": restore,
    "erase": erase,
}
