"""Commands that read a study: status, report, export, forecast, screening.

Libraries for statistics and charts are imported by the commands that need them, so that the other
commands start at once.
"""

from argparse import Namespace
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
from sqlalchemy import Connection, select
from tqdm import tqdm

from human_eval.cli.command import Commands, add_command, is_export, opened
from human_eval.collection.pairs import list_clips, list_prompts
from human_eval.collection.quotas import describe_quotas
from human_eval.collection.raters import find_rater
from human_eval.errors import StudyError, list_names
from human_eval.storage.events import Exclusion, exclude, exclusions, revoke
from human_eval.storage.tables import AssignmentRow, Rater
from human_eval.study.amendment import describe_edits, find_edits
from human_eval.study.media_check import find_lost_clips, name_lost
from human_eval.study.queries import (
    find_settled,
    list_defects,
    read_planned_pairs,
    read_study_progress,
    read_votes,
)
from human_eval.study.store import StudyStore


def add_commands(commands: Commands) -> None:
    """Add status, report, audit, export, forecast and screen."""
    parser = add_command(
        commands, "status", status, "Show how far the study is, and check its database and clips."
    )
    parser.add_argument("--simulated", action="store_true", help="of the simulation")

    parser = add_command(
        commands, "report", report, "Write tables, charts and methods into a folder."
    )
    parser.add_argument("--out", type=Path, help="default: report/ in the study or the export")
    parser.add_argument(
        "--simulated", action="store_true", help="on the simulation, marked as such"
    )
    parser.add_argument(
        "--judge", type=Path, metavar="TABLE", help="scores of all pairs; see human_eval/README.md"
    )
    parser.add_argument("--as-of", metavar="TIME", help="ISO time; later answers are left out")
    parser.add_argument(
        "--platform",
        type=Path,
        metavar="CSV",
        help="the platform's list of participants, for the countries in methods.md",
    )
    parser.add_argument(
        "--paper", type=float, metavar="INCHES", help="also write figures of this width, for print"
    )
    parser.add_argument("--columns", type=int, help="of comparisons in the figure of --paper")
    parser.add_argument(
        "--sides",
        nargs="+",
        default=["first", "second"],
        metavar="WORD",
        help="two words for the sides in the figure of --paper, or `systems` for their names",
    )

    parser = add_command(
        commands, "audit", audit, "Probe the votes of a study or an export for ten usual faults."
    )
    parser.add_argument("--simulated", action="store_true", help="of the simulation")

    parser = add_command(
        commands, "export", export, "Write votes, clips and preferences for others."
    )
    parser.add_argument("--out", type=Path, help="default: export/ in the study")
    parser.add_argument("--simulated", action="store_true", help="of the simulation, marked")
    parser.add_argument("--clips", action="store_true", help="include the files of the clips")
    parser.add_argument("--mturk", metavar="URL", help="instead, batches of pairs; legacy")

    parser = add_command(
        commands, "forecast", forecast, "Estimate what the study costs and what it can decide."
    )
    parser.add_argument("--simulated", action="store_true", help="from the simulation's votes")

    parser = add_command(
        commands, "screen", screen, "Propose raters for exclusion; exclude; revoke."
    )
    parser.add_argument("--simulated", action="store_true", help="simulated raters")
    parser.add_argument("--apply", action="store_true", help="exclude the proposed raters")
    parser.add_argument("--revoke", type=int, metavar="EVENT", help="revoke an exclusion")
    parser.add_argument("--reason", default="", help="of a revocation")
    parser.add_argument("--author", default="researcher")


def status(options: Namespace) -> None:
    """Print how far the study is."""
    with opened(options) as store:
        progress = read_study_progress(store, simulated=options.simulated)
        with store.read() as connection:
            defects = list_defects(connection)
            excluded = [_is_simulated(connection, entry) for entry in exclusions(connection)]
        edits = find_edits(store)
        lost = find_lost_clips(store, read=True)
        definition = store.definition
    print(f"{definition.name}, {progress.state}, definition {definition.hash[:16]}")
    if options.simulated:
        print("SIMULATED raters and answers:")
    print(progress.comparisons.to_string(index=False))
    states = ", ".join(f"{count} {state}" for state, count in sorted(progress.assignments.items()))
    print(f"{progress.raters} raters; assignments: {states or 'none'}")
    print(f"{excluded.count(options.simulated)} exclusions in force")
    if quotas := describe_quotas(definition):
        print(quotas)
    if defects:
        raise StudyError(
            f"The database is damaged: {list_names(defects, '; ')}. Restore a backup with "
            "`restore`."
        )
    print("The database is sound.")
    if edits:
        print(describe_edits(edits))
    if lost:
        raise StudyError(name_lost(lost))
    print("Every clip has its file.")


def _is_simulated(connection: Connection, exclusion: Exclusion) -> bool | None:
    """Return whether an excluded rater or assignment is simulated; None if it was erased."""
    kind, _, number = exclusion.subject.partition(":")
    table: type[Rater | AssignmentRow] = Rater if kind == "rater" else AssignmentRow
    return connection.execute(select(table.simulated).where(table.id == int(number))).scalar()


def report(options: Namespace) -> None:
    """Write a report, from a study or from an export alone."""
    from human_eval.reporting.export import REPORT
    from human_eval.reporting.report import PaperFigure, report_from_export, write_report

    paper = None
    if options.paper is not None:
        paper = PaperFigure(width=options.paper, columns=options.columns, sides=options.sides)
    elif options.columns or options.sides != ["first", "second"]:
        raise StudyError("--columns and --sides describe the figure of --paper. Add --paper 6.75.")
    with tqdm(desc="report", unit="table", delay=1) as bar:

        def advance(name: str) -> None:
            bar.set_postfix_str(name)
            bar.update()

        if is_export(options.study):
            if options.platform:
                raise StudyError(
                    f"--platform needs a study, and {options.study} is an export, which does not "
                    "know who the raters are. Make the report from the study."
                )
            if options.as_of:
                raise StudyError(
                    f"--as-of needs a study, and {options.study} is an export, which holds "
                    "one moment's state. Make the report from the study."
                )
            folder = options.out or options.study / REPORT
            written = report_from_export(
                options.study,
                folder,
                simulated=options.simulated,
                judge=options.judge,
                paper=paper,
                progress=advance,
            )
        else:
            with opened(options) as store:
                votes = _read_votes(store, options)
                name = "report-simulated" if options.simulated else "report"
                folder = options.out or store.folder / name
                written = write_report(
                    votes,
                    store.definition,
                    folder,
                    pairs=read_planned_pairs(store, simulated=options.simulated),
                    judge=options.judge,
                    paper=paper,
                    countries=_read_countries(store, votes, options.platform),
                    progress=advance,
                )
    print("\n".join(str(path) for path in written))


def _read_countries(
    store: StudyStore, votes: pd.DataFrame, path: Path | None
) -> dict[str, int] | None:
    from human_eval.statistics.votes import counted_votes
    from human_eval.study.pay import count_countries, read_platform_export
    from human_eval.study.rater_table import tabulate_raters

    if path is None:
        return None
    voted = set(counted_votes(votes)["rater"])
    return count_countries(read_platform_export(path, store), tabulate_raters(store), voted)


def audit(options: Namespace) -> None:
    """Print what ten probes found in the votes of a study, or of an export."""
    from human_eval.reporting.audit import audit_votes
    from human_eval.reporting.export import read_export
    from human_eval.statistics.votes import require_counted

    if is_export(options.study):
        votes, definition = read_export(options.study)
    else:
        with opened(options) as store:
            votes, definition = _read_votes(store, options), store.definition
    table = audit_votes(require_counted(votes), definition)
    for row in table.to_dict("records"):
        result, text = ("FOUND" if row["fired"] else "ok   "), row["found"]
        if row["unknown"]:
            result, text = "?    ", f"not probed: the votes lack {row['unknown']}"
        print(f"{result}  {row['probe']:24} {text}".rstrip())
    left_out = int(table["unknown"].ne("").sum())
    skipped = f"; not probed: {left_out}" if left_out else ""
    print(f"{table['fired'].sum()} of {len(table) - left_out} probes found something{skipped}.")


def export(options: Namespace) -> None:
    """Write votes, clips and preferences, or batches for MTurk."""
    from human_eval.reporting.export import write_export

    with opened(options) as store:
        if options.mturk:
            from human_eval.mturk.batches import write_batches

            path = options.out or store.folder / "mturk-batch.csv"
            for batch, workers in write_batches(store, options.mturk, path):
                print(f"{batch}: publish each row for {workers} workers")
            print("First import the results of earlier batches; exclude their workers from these.")
            return
        votes = _read_votes(store, options)
        name = "export-simulated" if options.simulated else "export"
        folder = options.out or store.folder / name
        with store.read() as connection:
            clips = list_clips(connection)
        pairs = read_planned_pairs(store, simulated=options.simulated)
        media = store.media if options.clips else None
        written = write_export(
            votes, store.definition, folder, clips=clips, pairs=pairs, media=media
        )
    print("\n".join(str(path) for path in written))


def _read_votes(store: StudyStore, options: Namespace) -> pd.DataFrame:
    as_of = getattr(options, "as_of", None)
    try:
        moment = datetime.fromisoformat(as_of) if as_of else None
    except ValueError as error:
        raise StudyError(
            f"--as-of takes a time such as 2026-11-20T12:00, not {as_of!r}."
        ) from error
    if moment is not None and moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    votes = read_votes(store, moment, simulated=options.simulated)
    if votes.empty:
        raise StudyError(
            "No simulated rater has answered yet. Run `simulate` first."
            if options.simulated
            else "There are no votes yet. Run `serve`, or `simulate` and add --simulated."
        )
    return votes


def forecast(options: Namespace) -> None:
    """Print cost and power, before and during a study."""
    from human_eval.statistics.power import forecast_decisions, forecast_power, plan_study
    from human_eval.statistics.votes import counted_votes

    with opened(options) as store:
        with store.read() as connection:
            prompts = len(list_prompts(connection))
        votes = read_votes(store, simulated=options.simulated)
        definition = store.definition
    plan = plan_study(definition, prompts)
    print(f"{plan.pairs} pairs, {plan.assignments} assignments, {plan.votes} votes")
    print(f"{plan.total:,.2f} {plan.currency} with fees, {plan.hours:,.1f} rater hours")
    print(forecast_power(definition, prompts).to_string(index=False))
    if len(votes):
        print(forecast_decisions(counted_votes(votes), definition).to_string(index=False))


def screen(options: Namespace) -> None:
    """Propose raters for exclusion, exclude them, or revoke an exclusion."""
    from human_eval.statistics import screening

    with opened(options) as store:
        if options.revoke is not None:
            if not options.reason:
                raise StudyError("Give the --reason of the revocation.")
            with store.write() as connection:
                revoke(
                    connection,
                    options.revoke,
                    author=options.author,
                    reason=options.reason,
                    now=store.clock(),
                )
            print(f"Exclusion {options.revoke} is revoked.")
            return
        votes = read_votes(store, simulated=options.simulated)
        proposed = screening.screen(votes, store.definition)
        with store.write() as connection:
            before = exclusions(connection)
            settled = find_settled(connection)
            revoked = settled - {(entry.subject, entry.rule) for entry in before}
            for row in proposed.itertuples():
                subject = f"rater:{find_rater(connection, row.rater)}"
                if options.apply and (subject, row.rule) not in settled:
                    exclude(
                        connection,
                        subject,
                        rule=row.rule,
                        evidence=row.evidence,
                        author=options.author,
                        now=store.clock(),
                    )
                stays = "  revoked before: stays so" if (subject, row.rule) in revoked else ""
                print(f"{row.rater}  {row.rule}  {row.evidence}{stays}")
            in_force = exclusions(connection)
        print(f"{len(proposed)} proposed, {len(in_force) - len(before)} newly excluded.")
        for entry in in_force:
            print(f"in force: event {entry.event_id}, {entry.subject}, {entry.rule}")
        print(screening.consistency(votes).to_string(index=False))
