"""What a small model knows: the words of its captions, and the nearest prompt made of them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from string import Formatter
from typing import Any

_FILLERS = {"a", "an", "the", "is"}
_CLOSE = 0.75  # similarity from which two words count as spellings of one another


@dataclass(frozen=True, kw_only=True)
class World:
    """The slots of a caption and the phrases that each slot may hold.

    A world without slots is open: it knows every prompt.
    """

    template: str = "{prompt}"  # e.g. "a {colour} {shape} {motion} {background}"
    slots: Mapping[str, tuple[str, ...]]  # "colour" -> ("red", ...), in the template's order
    examples: tuple[str, ...]

    @classmethod
    def from_json(cls, world: Mapping[str, Any]) -> "World":
        """Read the `world.json` of a model: each template field has its list in the plural."""
        fields = [field for _, field, _, _ in Formatter().parse(world["template"]) if field]
        slots = {field: tuple(world[f"{field}s"]) for field in fields}
        return cls(template=world["template"], slots=slots, examples=tuple(world["examples"]))

    def knows(self, prompt: str) -> bool:
        """Tell whether the prompt names one phrase of every slot and nothing else."""
        if not self.slots:
            return True
        rest = _words(prompt)
        for phrases in self.slots.values():
            found = next((p for p in phrases if _cut(rest, _words(p)) is not None), None)
            if found is None:
                return False
            rest = _cut(rest, _words(found)) or []
        return set(rest) <= _FILLERS

    def nearest(self, prompt: str) -> str:
        """Return the fitting prompt that keeps most of what the prompt says.

        A slot of which the prompt says nothing takes the phrase of the most similar example.
        """
        words = _words(prompt)
        example = max(self.examples, key=lambda text: _likeness(text, prompt))
        chosen = {}
        for slot, phrases in self.slots.items():
            scores = {phrase: _overlap(_words(phrase), words, phrases) for phrase in phrases}
            best = max(scores, key=lambda phrase: scores[phrase])
            in_example = (p for p in phrases if _cut(_words(example), _words(p)) is not None)
            chosen[slot] = best if scores[best] > 0 else next(in_example, phrases[0])
        return re.sub(r"\ba (?=[aeiou])", "an ", self.template.format(**chosen))

    def describe(self) -> str:
        """Name what fits in every slot, in one line a slot."""
        return "\n".join(f"{slot}: {', '.join(phrases)}" for slot, phrases in self.slots.items())


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def _cut(words: list[str], phrase: list[str]) -> list[str] | None:
    """Return the words without the first occurrence of the phrase; None if it does not occur."""
    for i in range(len(words) - len(phrase) + 1):
        if words[i : i + len(phrase)] == phrase:
            return words[:i] + words[i + len(phrase) :]
    return None


def _overlap(phrase: list[str], words: list[str], phrases: tuple[str, ...]) -> float:
    """Score how much of the phrase the words hold; words that all phrases share count nothing."""
    shared = set.intersection(*(set(_words(other)) for other in phrases))
    telling = [word for word in phrase if word not in shared | _FILLERS | {"in", "on", "over"}]
    if not telling:
        return 0.0
    found = [max((_likeness(word, other) for other in words), default=0.0) for word in telling]
    return sum(score for score in found if score >= _CLOSE) / len(telling)


def _likeness(a: str, b: str) -> float:
    return SequenceMatcher(None, a.lower(), b.lower()).ratio()
