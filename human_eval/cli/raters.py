"""The command about raters: who did what, what they are owed, who is excluded or blocked."""

from argparse import Namespace
from pathlib import Path

from human_eval.cli.command import Commands, add_command, opened
from human_eval.collection.raters import identify_rater
from human_eval.errors import StudyError
from human_eval.storage.events import block, exclude_by_hand, unblock
from human_eval.storage.private_file import create_private
from human_eval.study.store import StudyStore

DECISIONS = {"exclude": exclude_by_hand, "block": block, "unblock": unblock}


def add_commands(commands: Commands) -> None:
    """Add the command `raters`."""
    parser = add_command(
        commands,
        "raters",
        raters,
        "List the raters; join a platform's export; pay; exclude; block.",
    )
    parser.add_argument("--simulated", action="store_true", help="simulated raters")
    parser.add_argument("--out", type=Path, metavar="CSV", help="write the list into a new file")
    pay = parser.add_argument_group("pay")
    pay.add_argument(
        "--platform", type=Path, metavar="CSV", help="the platform's own list of participants"
    )
    pay.add_argument("--id-column", metavar="NAME", help="of the IDs in it; else found by itself")
    pay.add_argument("--bonus", type=Path, metavar="CSV", help="write bonuses for the platform")
    pay.add_argument("--per-pair", type=float, help="pay for a pair; default: as defined in [pay]")
    pay.add_argument(
        "--reward", type=float, help="what the platform itself pays for a session that is done"
    )
    pay.add_argument("--again", action="store_true", help="earlier files of bonuses were not paid")
    decide = parser.add_argument_group("decisions, stored as events")
    for name, summary in (
        ("exclude", "leave a rater's votes out of analyses, and give them no more pairs"),
        ("block", "give a rater no more pairs; their votes count"),
        ("unblock", "give a blocked rater pairs again"),
    ):
        decide.add_argument(f"--{name}", metavar="RATER", help=f"{summary}; pseudonym or ID")
    decide.add_argument("--reason", default="", help="of a decision")
    decide.add_argument("--author", default="researcher")


def raters(options: Namespace) -> None:
    """List the raters, write bonuses, or store a decision."""
    _check_options(options)
    chosen = [(name, getattr(options, name)) for name in DECISIONS if getattr(options, name)]
    with opened(options) as store:
        if chosen:
            for name, rater in chosen:
                _decide(store, name, rater, options)
            return
        _list(store, options)


def _check_options(options: Namespace) -> None:
    if options.bonus and (options.platform is None or options.reward is None):
        raise StudyError(
            "--bonus needs --platform, the list of participants exported from the platform, and "
            "--reward, the amount that the platform itself pays for a session (0 if nothing)."
        )
    if options.simulated and options.platform:
        raise StudyError("Simulated raters come from no platform. Leave out --simulated.")
    for name in ("per_pair", "reward"):
        value = getattr(options, name)
        if value is not None and not 0 <= value < 10**6:
            raise StudyError(f"--{name.replace('_', '-')} must be an amount of 0 or more.")
    for path in (options.out, options.bonus):
        if path is not None and path.exists():
            raise StudyError(f"{path} exists. Name a new file, so that nobody is paid twice.")


def _decide(store: StudyStore, name: str, rater: str, options: Namespace) -> None:
    with store.write() as connection:
        number = identify_rater(connection, store.keys, rater)
        event = DECISIONS[name](
            connection, number, reason=options.reason, author=options.author, now=store.clock()
        )
    print(f"Event {event}: {name} rater:{number}.")
    if name == "exclude":
        print(f"To revoke it: screen {options.study} --revoke {event} --reason ...")


def _list(store: StudyStore, options: Namespace) -> None:
    from human_eval.reporting.export import write_csv
    from human_eval.study.pay import owed_bonuses, read_platform_export, write_bonuses
    from human_eval.study.rater_table import tabulate_raters

    table = tabulate_raters(store, simulated=options.simulated)
    shown = table.drop(columns="rater_number")
    if options.platform is None:
        print(shown.to_string(index=False) if len(shown) else "No rater has entered yet.")
    else:
        export = read_platform_export(options.platform, store, id_column=options.id_column)
        joined = export.rows.merge(table, on="rater_number", how="left", suffixes=("_given", ""))
        unknown = int(export.rows["rater_number"].isna().sum())
        print(joined[list(shown.columns)].dropna(subset="rater").to_string(index=False))
        print(
            f"{len(joined) - unknown} of {len(joined)} participants in the column "
            f"{export.id_column!r} are raters from {export.provider}; {unknown} never entered."
        )
        if export.absent:
            print(f"Not in the export: {', '.join(export.absent)}")
        if export.other_codes:
            print(f"Gave a code that this study did not tell them: {', '.join(export.other_codes)}")
        shown = joined.drop(columns="rater_number")
    if options.out:
        create_private(options.out)
        write_csv(shown, options.out)
        print(options.out)
        if options.platform:
            print("This file links people to their pseudonyms. Delete it when everyone is paid.")
    if options.bonus:
        per_pair = options.per_pair
        if per_pair is None:
            per_pair = store.definition.pay.per_pair
        if not per_pair:
            raise StudyError("The definition has no per_pair in [pay]. Give --per-pair.")
        owed = owed_bonuses(table, per_pair=per_pair, reward=options.reward, again=options.again)
        total = write_bonuses(store, export, owed, options.bonus, author=options.author)
        left_out = int((table["decision"] != "").sum())
        print(f"{options.bonus}: {total} {store.definition.pay.currency} in all.")
        print(f"Excluded and blocked raters get no bonus: {left_out}.")
