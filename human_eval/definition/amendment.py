"""What may still change in a study that has begun, and how two definitions differ.

An amendment adds: raters per pair, prompts, systems, comparisons. It may correct texts and change
how raters are found and paid. Whatever would give the votes so far another meaning is refused.
"""

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from human_eval.definition.definition import StudyDefinition
from human_eval.errors import StudyError

COMPUTED = {"source", "earlier"}
GROWING = ("systems", "comparisons", "providers")  # lists that may get new entries
MAY_CHANGE = re.compile(
    r"version|title|prompts|max_prompt_length|frame_ancestors|raters_per_pair|anonymous|instructions|consent\.text"
    r"|assignment\.(lease|undo)_seconds|systems\..+\.(title|family|steps)"
    r"|questions\..+\.(wording|dimension|labels)|(quotas|codes|pay|providers)(\..+)?"
)
MAX_SHOWN = 60  # characters of a value in a message


def list_differences(old: StudyDefinition, new: StudyDefinition) -> list[str]:
    """Return the differences, such as "raters_per_pair: 1, now 3"; empty for equal definitions."""
    before, after = dict(_flatten(old)), dict(_flatten(new))
    return [
        f"{path}: {_show(before.get(path, 'not there'))}, now {_show(after.get(path, 'not there'))}"
        for path in dict.fromkeys([*before, *after])
        if before.get(path) != after.get(path)
    ]


def check_amendment(old: StudyDefinition, new: StudyDefinition) -> None:
    """Refuse an amendment that does more than add or correct.

    Raises:
        StudyError: it changes what the votes so far mean, or has no new version; the message
            lists every such change.
    """
    before, after = dict(_flatten(old)), dict(_flatten(new))
    refused = [
        f"{path} cannot change from {_show(before[path])} to {_show(after.get(path, 'not there'))}"
        for path in before
        if before[path] != after.get(path) and not _may_change(path, before[path], after.get(path))
    ]
    refused += [
        f"{path} cannot be added"
        for path in after
        if path not in before and not path.startswith(tuple(f"{name}." for name in GROWING))
    ]
    if new.raters_per_pair < old.raters_per_pair:
        refused.append(
            f"raters_per_pair can only grow, not from {old.raters_per_pair} to "
            f"{new.raters_per_pair}"
        )
    if not refused and list_differences(old, new) and new.version <= old.version:
        refused.append(f"version must be greater than {old.version}, so that votes name theirs")
    if refused:
        raise StudyError(
            f"These changes are not allowed: {'; '.join(refused)}. Create a new study for another "
            "question, or take these changes back. Nothing was changed."
        )


def _may_change(path: str, before: Any, after: Any) -> bool:
    if path in GROWING:
        return not before or set(before.split(", ")) <= set(after.split(", "))
    return bool(MAY_CHANGE.fullmatch(path))


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each setting with its path; entries of lists are named by their keys."""
    if is_dataclass(value):
        for entry in fields(value):
            if entry.name not in COMPUTED:
                name = f"{path}.{entry.name}" if path else entry.name
                yield from _flatten(getattr(value, entry.name), name)
    elif isinstance(value, tuple) and (path in GROWING or any(map(is_dataclass, value))):
        yield path, ", ".join(entry.key for entry in value)
        for entry in value:
            yield from _flatten(entry, f"{path}.{entry.key}")
    else:
        yield path, value


def _show(value: Any) -> str:
    text = repr(value) if value != "not there" else "not there"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
