"""The words that a small model knows, and the nearest prompt made of them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher, get_close_matches
from string import Formatter
from typing import Any

_FILLERS = {"a", "an", "the", "is"}
_MIN_SIMILARITY = 0.75  # of two spellings of one word


@dataclass(frozen=True, kw_only=True)
class World:
    """The slots of a caption and the possible phrases of each slot.

    A world without slots accepts every prompt.
    """

    template: str = "{prompt}"  # e.g. "a {colour} {shape} {motion} {background}"
    slots: Mapping[str, tuple[str, ...]]  # "colour" -> ("red", ...), in the template's order
    examples: tuple[str, ...]

    @classmethod
    def from_json(cls, world: Mapping[str, Any]) -> "World":
        """Read the `world.json` of a model. The list of field "colour" has the key "colours"."""
        fields = [field for _, field, _, _ in Formatter().parse(world["template"]) if field]
        slots = {field: tuple(world[f"{field}s"]) for field in fields}
        return cls(template=world["template"], slots=slots, examples=tuple(world["examples"]))

    def knows(self, prompt: str) -> bool:
        """Return whether the prompt has one phrase of every slot and nothing else."""
        if not self.slots:
            return True
        rest = _words(prompt)
        for phrases in self.slots.values():
            found = next((p for p in phrases if _without(rest, _words(p)) is not None), None)
            if found is None:
                return False
            rest = _without(rest, _words(found)) or []
        return set(rest) <= _FILLERS

    def nearest(self, prompt: str) -> str:
        """Return the known prompt that is most similar to this one.

        A slot that the prompt leaves out takes the phrase of the most similar example.
        """
        words = set(_words(prompt))
        example = max(self.examples, key=lambda text: _similarity(text, prompt))
        chosen = {}
        for slot, phrases in self.slots.items():
            scores = {phrase: _overlap(_words(phrase), words, phrases) for phrase in phrases}
            best = max(scores, key=lambda phrase: scores[phrase])
            in_example = (p for p in phrases if _without(_words(example), _words(p)) is not None)
            chosen[slot] = best if scores[best] > 0 else next(in_example, phrases[0])
        return re.sub(r"\ba (?=[aeiou])", "an ", self.template.format(**chosen))


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def _without(words: list[str], phrase: list[str]) -> list[str] | None:
    """Return the words without the first occurrence of the phrase, or None if there is none."""
    for i in range(len(words) - len(phrase) + 1):
        if words[i : i + len(phrase)] == phrase:
            return words[:i] + words[i + len(phrase) :]
    return None


def _overlap(phrase: list[str], words: set[str], phrases: tuple[str, ...]) -> float:
    """Return the share of the phrase in the words. Words that all phrases share do not count."""
    shared = set.intersection(*(set(_words(other)) for other in phrases))
    distinctive = [word for word in phrase if word not in shared | _FILLERS | {"in", "on", "over"}]
    if not distinctive:
        return 0.0
    # This compares letter counts first, which is six times as fast as matching all words.
    found = (
        _similarity(match, word)
        for word in distinctive
        for match in get_close_matches(word, words, n=1, cutoff=_MIN_SIMILARITY)
    )
    return sum(found) / len(distinctive)


def _similarity(a: str, b: str) -> float:
    return SequenceMatcher(None, a.lower(), b.lower()).ratio()
