"""Commands that maintain a study: amend, backup, restore, erase."""

from argparse import Namespace
from pathlib import Path

from human_eval.cli.command import Commands, add_command, opened
from human_eval.definition.definition import load_definition
from human_eval.definition.prompts import load_prompts
from human_eval.errors import StudyError, list_names
from human_eval.publishing.replica import data_set_of
from human_eval.study import backup as backups
from human_eval.study.amendment import amend_study
from human_eval.study.erasure import erase_rater, erase_simulation, list_leftovers


def add_commands(commands: Commands) -> None:
    """Add amend, backup, restore and erase."""
    parser = add_command(
        commands, "amend", amend, "Add to a study that has begun: raters, prompts, comparisons."
    )
    parser.add_argument("--definition", type=Path, help="default: study.toml of the study, edited")
    parser.add_argument("--prompts", help="a file with the study's prompts and new ones after them")
    parser.add_argument("--column", help="column of prompts; default: prompt, text, caption")
    parser.add_argument("--reason", default="", help="stored with the amendment")
    parser.add_argument("--author", default="researcher")

    add_command(commands, "backup", backup, "Copy the database while it is in use.")

    parser = add_command(
        commands, "restore", restore, "Replace the content of the database by a backup."
    )
    parser.add_argument("backup", type=Path, nargs="?", help="default: the newest")

    parser = add_command(commands, "erase", erase, "Erase a rater, or the simulation.")
    parser.add_argument("provider", nargs="?")
    parser.add_argument("rater", nargs="?", help="the rater's name at the provider")
    parser.add_argument("--simulated", action="store_true", help="everything simulated")


def amend(options: Namespace) -> None:
    """Amend the study."""
    _refuse_on_server(options.study, "amend")
    with opened(options) as store:
        definition = load_definition(options.definition or store.folder / "study.toml")
        prompts = []
        if options.prompts:
            length = definition.max_prompt_length
            prompts = load_prompts(options.prompts, column=options.column, max_length=length)
        changes = amend_study(
            store, definition, prompts, reason=options.reason, author=options.author
        )
    print("Amended:", *changes, sep="\n  ")
    print("Votes so far keep their version. New systems, comparisons and prompts need `ingest`.")


def backup(options: Namespace) -> None:
    """Copy the database."""
    with opened(options) as store:
        print(backups.back_up(store))


def restore(options: Namespace) -> None:
    """Restore a backup."""
    if name := data_set_of(options.study):
        raise StudyError(
            f"{options.study} is the folder of a server whose votes are in the data set {name}. "
            "A backup has fewer. Move this folder away and start the server again: it rebuilds the "
            "study with all votes of the data set."
        )
    store, chosen = backups.open_to_restore(options.study, options.backup)
    try:
        missing = backups.restore(store, chosen)
    finally:
        store.close()
    print(f"Restored {chosen}.")
    if missing:
        names = list_names([f"{clip.system} {clip.prompt_index:04d}" for clip in missing])
        raise StudyError(
            f"{len(missing)} clips are missing from the media folder: {names}. Copy the study's "
            "media folder back, or run `ingest` with the original clips."
        )


def erase(options: Namespace) -> None:
    """Erase a rater or the simulation."""
    named = options.provider is not None
    if options.simulated == named or (named and options.rater is None):
        raise StudyError("Give PROVIDER and RATER, or --simulated.")
    _refuse_on_server(options.study, "erase")
    with opened(options) as store:
        if options.simulated:
            done = erase_simulation(store)
            print(
                f"Erased {done.raters} simulated raters and {done.assignments_deleted} assignments."
            )
            return
        done = erase_rater(store, options.provider, options.rater)
        fresh = backups.replace_backups(store)
        kept = "deleted" if done.assignments_deleted else "kept, without a link to the rater"
        print(f"Erased. Their answers are {kept}. Older backups are deleted; the new one: {fresh}.")
        for path in list_leftovers(store):
            print(f"May still hold the rater's data: {path}")
        print("Delete these files and all copies elsewhere; then export and report again.")


def _refuse_on_server(folder: Path, command: str) -> None:
    """Refuse to change a server's copy of a study: its data set would not learn of it."""
    if name := data_set_of(folder):
        raise StudyError(
            f"{folder} is the folder of a server whose votes are in the data set {name}, which "
            f"`{command}` cannot reach. In the folder that you published, `collect`, then "
            f"`{command}`. If you erase a rater, delete the data set. Then publish again."
        )
