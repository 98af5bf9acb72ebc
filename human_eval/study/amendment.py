"""Amend a study that has begun, and tell whether its study.toml was edited."""

import os
from collections.abc import Sequence

from sqlalchemy import update

from human_eval.collection.pairs import add_prompts, list_prompts
from human_eval.definition.amendment import check_amendment, list_differences
from human_eval.definition.definition import StudyDefinition, load_definition
from human_eval.definition.prompts import Prompt
from human_eval.errors import StudyError
from human_eval.storage.events import record
from human_eval.storage.lock import alone
from human_eval.storage.study_state import check_open
from human_eval.storage.tables import PairRow
from human_eval.study.store import StudyStore


def find_edits(store: StudyStore) -> list[str]:
    """Return how study.toml differs from the study, which does not follow the file by itself."""
    path = store.folder / "study.toml"
    if not path.is_file():
        return ["the file is missing"]
    try:
        return list_differences(store.definition, load_definition(path))
    except StudyError as error:
        return [str(error)]


def describe_edits(edits: Sequence[str]) -> str:
    """Return the edits of study.toml as a warning for researchers; empty if there are none."""
    if not edits:
        return ""
    return (
        "study.toml differs from the study's own definition, which counts:\n  "
        + "\n  ".join(edits)
        + "\nRun `amend` to add these changes, or take them back."
    )


def amend_study(
    store: StudyStore,
    definition: StudyDefinition,
    prompts: Sequence[Prompt] = (),
    *,
    reason: str,
    author: str,
) -> list[str]:
    """Let a definition and more prompts take effect, store them as an event, return the changes.

    Votes so far keep the definition under which they were given. The former definition stays in
    the folder as study-vVERSION.toml.

    Args:
        prompts: all prompts, old and new; none: no new ones.

    Raises:
        StudyError: there is no change or no reason, a change is not allowed, or a service runs.
    """
    if not reason.strip():
        raise StudyError("Please give the reason of the amendment; it is stored with it.")
    former = store.definition
    check_amendment(former, definition)
    changes = list_differences(former, definition)
    with alone(store.database, store.folder), store.write() as connection:
        check_open(connection)
        added = _find_new_prompts(list_prompts(connection), prompts)
        if added:
            add_prompts(connection, added)
        if not changes and not added:
            raise StudyError("There is nothing to amend: definition and prompts are the study's.")
        if definition.raters_per_pair > former.raters_per_pair:
            raised = update(PairRow).where(PairRow.kind == "real")
            connection.execute(raised.values(target=definition.raters_per_pair))
        payload = {"reason": reason.strip(), "changes": changes, "prompts_added": len(added)}
        if changes:
            payload["definition"] = definition.source
        kind = "amended" if changes else "prompts_added"
        now = store.clock()
        record(connection, kind, actor=author, subject="study", now=now, payload=payload)
        if changes:
            _write_definition(store, definition)
    if added:
        changes.append(f"prompts: {len(added)} more")
    return changes


def _find_new_prompts(stored: Sequence[Prompt], given: Sequence[Prompt]) -> list[Prompt]:
    """Return the prompts to add, or refuse a list that changes or lacks a stored one."""
    if not given:
        return []
    texts = {prompt.index: prompt.text for prompt in given}
    for prompt in stored:
        if texts.get(prompt.index) != prompt.text:
            raise StudyError(
                f"Prompt {prompt.index} of the study is {prompt.text!r}, but "
                f"{texts.get(prompt.index, 'not there')!r} in the file. Give a file with all "
                "prompts of the study as they are, and the new ones after them."
            )
    known = {prompt.index for prompt in stored}
    return [prompt for prompt in given if prompt.index not in known]


def _write_definition(store: StudyStore, definition: StudyDefinition) -> None:
    kept = store.folder / f"study-v{store.definition.version}.toml"
    kept.write_bytes(store.definition.source.encode())
    unfinished = store.folder / f"study.toml.{os.getpid()}"
    unfinished.write_bytes(definition.source.encode())
    unfinished.replace(store.folder / "study.toml")
