"""The definition of a study: what is compared, what is asked, of whom, under which rules.

A TOML file holds it. Once a study has been created its definition never changes, and every vote
carries the definition's hash, so that nobody can ask one question and report another.
"""

import hashlib
import re
import tomllib
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from human_eval.definition.platforms import Provider, settle
from human_eval.errors import StudyError

TiePolicy = Literal["forced", "tie", "tie_and_both_bad"]
Policy = Literal["balanced", "fixed"]
GoldRecipe = Literal["wrong_prompt", "shuffled", "degraded", "frozen", "identical"]
Erasure = Literal["anonymise", "delete"]

CHOICES: dict[str, tuple[str, ...]] = {
    "forced": ("a", "b"),
    "tie": ("a", "b", "tie"),
    "tie_and_both_bad": ("a", "b", "tie", "both_bad"),
}
PRESETS = Path(__file__).parent / "presets"
KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")  # in file names, columns and charts


@dataclass(frozen=True, kw_only=True)
class System:
    """Something that makes videos."""

    key: str
    title: str  # as charts print it
    family: str = ""  # systems that share a teacher
    steps: int | None = None  # sampling steps


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two systems that meet on every prompt. The study is about `a`; `b` is its opponent."""

    key: str
    a: str  # key of a system
    b: str


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a rater answers about a pair."""

    key: str
    wording: str
    ties: TiePolicy = "forced"
    primary: bool = False  # the claim rests on it; the others are secondary

    @property
    def choices(self) -> tuple[str, ...]:
        """The answers it takes."""
        return CHOICES[self.ties]


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """How pairs are handed out."""

    policy: Policy = "balanced"  # least voted first, in random order; or as listed
    lease_seconds: int = 900  # an unanswered pair returns after this long
    undo_seconds: int = 10  # an answer may be revised for this long


@dataclass(frozen=True, kw_only=True)
class Quotas:
    """How many pairs one rater may answer, checks among them; 0 is no limit."""

    per_study: int = 0
    per_comparison: int = 0
    per_day: int = 0  # of 24 hours


@dataclass(frozen=True, kw_only=True)
class Checks:
    """Pairs that are there to learn about the raters."""

    gold_share: float = 0.0  # of ballots, in [0, 0.5]
    gold_pairs: int = 20  # made per comparison when gold_share > 0
    gold_recipes: tuple[GoldRecipe, ...] = ("wrong_prompt", "shuffled", "degraded", "frozen")
    mirror_share: float = 0.0  # ballots that repeat an earlier pair with its sides swapped
    mirror_distance: int = 5  # ballots between a pair and its mirror
    min_gold_accuracy: float = 0.7  # below it, a rater is proposed for exclusion
    too_fast_seconds: float = 2.0  # answers sooner than this after both clips are ready


@dataclass(frozen=True, kw_only=True)
class Viewing:
    """What a rater must have seen before answering."""

    min_loops: int = 2  # complete loops of both clips, visible
    clip_seconds: float = 0.0  # of one loop; the server refuses answers that came sooner


@dataclass(frozen=True, kw_only=True)
class Consent:
    """What a rater agrees to."""

    text: str = ""
    on_erase: Erasure = "anonymise"  # what becomes of the answers when a rater asks to be erased


@dataclass(frozen=True, kw_only=True)
class Codes:
    """Completion codes that the crowd platform expects, by outcome."""

    done: str = ""
    screened_out: str = ""
    no_work_left: str = ""
    technical: str = ""


@dataclass(frozen=True, kw_only=True)
class Pay:
    """What a rater earns."""

    currency: str = "USD"
    per_pair: float = 0.0
    seconds_per_pair: float = 30.0  # planned
    platform_fee: float = 0.0  # share of the pay, on top of it


@dataclass(frozen=True, kw_only=True)
class StudyDefinition:
    """Everything that is decided before the first vote."""

    name: str
    version: int = 1
    title: str = ""
    prompts: str = "prompts.txt"  # a text or CSV file, or "evalcrafter"
    raters_per_pair: int = 3
    match_seeds: bool = True  # refuse pairs whose clips tell differing seeds
    equalise: bool = False  # bring differing clips of a pair to the smaller size, rate and length
    anonymous: bool = False  # anyone may rate; otherwise by invitation
    systems: tuple[System, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    questions: tuple[Question, ...] = ()
    assignment: Assignment = field(default_factory=Assignment)
    quotas: Quotas = field(default_factory=Quotas)
    checks: Checks = field(default_factory=Checks)
    viewing: Viewing = field(default_factory=Viewing)
    instructions: str = ""  # to raters, beside what the page says anyway; names no system
    consent: Consent = field(default_factory=Consent)
    providers: tuple[Provider, ...] = ()  # crowd platforms whose raters come in by a link
    codes: Codes = field(default_factory=Codes)
    pay: Pay = field(default_factory=Pay)
    source: str = field(default="", repr=False, compare=False)  # the TOML itself

    def __post_init__(self) -> None:
        _check_keys(self)
        _check_comparisons(self)
        _check_numbers(self)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the TOML text, in hexadecimal."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    def system(self, key: str) -> System:
        """Return the system of that key.

        Raises:
            StudyError: there is none; the message lists those there are.
        """
        return _find(self.systems, key, "system")

    def comparison(self, key: str) -> Comparison:
        """Return the comparison of that key, or raise as `system` does."""
        return _find(self.comparisons, key, "comparison")

    def question(self, key: str) -> Question:
        """Return the question of that key, or raise as `system` does."""
        return _find(self.questions, key, "question")

    def provider(self, key: str) -> Provider:
        """Return the crowd platform of that key, or raise as `system` does."""
        return settle(_find(self.providers, key, "provider"))


def load_definition(
    source: Path | str, settings: Mapping[str, Any] | None = None
) -> StudyDefinition:
    """Read a definition from a TOML file or from a preset.

    Args:
        source: a path, or the name of a file in human_eval/definition/presets without its ending.
        settings: values for a preset's `{placeholders}`; those it does not need are refused.

    Raises:
        StudyError: no such file, or what it says is no study.
    """
    preset = PRESETS / f"{source}.toml"
    path = preset if preset.is_file() else Path(source)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in PRESETS.glob("*.toml")))
        raise StudyError(
            f"Expected a TOML file or a preset ({known}), got {str(source)!r}. Check the name."
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise StudyError(f"Expected {path} in UTF-8, got {error}. Save it as UTF-8.") from error
    return parse_definition(_fill(text, settings or {}), origin=str(path))


def parse_definition(text: str, *, origin: str = "the definition") -> StudyDefinition:
    """Read a definition from TOML.

    Raises:
        StudyError: it is not TOML, or lacks, adds or contradicts something.
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise StudyError(f"Expected TOML in {origin}, got: {error}. Correct that line.") from error
    values.pop("parameters", None)
    for key in ("source", "hash"):
        if key in values:
            raise StudyError(f"Expected no {key!r} in {origin}; it is computed. Remove it.")
    definition = _build(StudyDefinition, {**values, "source": text}, origin)
    assert isinstance(definition, StudyDefinition)
    return definition


def _fill(text: str, settings: Mapping[str, Any]) -> str:
    """Put the parameters of a preset in place; `[parameters]` lists their defaults or choices."""
    try:
        parameters = tomllib.loads(text).get("parameters", {})
    except tomllib.TOMLDecodeError:
        return text  # refused with its line by `parse_definition`
    unknown = sorted(set(settings) - set(parameters))
    if unknown:
        raise StudyError(
            f"Expected a parameter from {sorted(parameters)}, got {unknown[0]!r}. "
            "The definition's [parameters] table lists them."
        )
    for name, choices in parameters.items():
        value = settings.get(name, choices[0])
        if value not in choices:
            raise StudyError(f"Expected {name} from {choices}, got {value!r}. Choose one.")
        text = text.replace("{" + name + "}", str(value))
    return text


def _build(cls: Any, values: Any, where: str) -> Any:
    """Make a dataclass from a TOML table, refusing unknown keys and wrong types."""
    if not isinstance(values, dict):
        raise StudyError(f"Expected a table for {where}, got {values!r}. Write [{where}].")
    hints = get_type_hints(cls)
    known = {entry.name for entry in fields(cls)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise StudyError(
            f"Expected keys from {sorted(known - {'source'})} in {where}, got {unknown[0]!r}. "
            "Correct or remove it."
        )
    built = {name: _convert(hints[name], value, name) for name, value in values.items()}
    try:
        return cls(**built)
    except TypeError as error:
        missing = re.findall(r"'(\w+)'", str(error))
        raise StudyError(
            f"Expected {', '.join(missing)} in {where}, got none. Add what is missing."
        ) from error


def _convert(hint: Any, value: Any, name: str) -> Any:
    if is_dataclass(hint):
        return _build(hint, value, name)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is tuple:
        if not isinstance(value, list):
            raise StudyError(f"Expected a list for {name}, got {value!r}. Write it in brackets.")
        return tuple(_convert(arguments[0], entry, name) for entry in value)
    if origin is Literal:
        expected, right = f"one of {list(arguments)}", value in arguments
    elif origin in (Union, types.UnionType):
        return None if value is None else _convert(arguments[0], value, name)
    elif hint is float:
        expected, right = "a number", type(value) in (int, float)
    else:
        expected, right = f"a value of type {hint.__name__}", type(value) is hint
    if not right:
        raise StudyError(f"Expected {expected} for {name}, got {value!r}. Correct the definition.")
    return float(value) if hint is float else value


def _find(entries: Sequence[Any], key: str, noun: str) -> Any:
    for entry in entries:
        if entry.key == key:
            return entry
    raise StudyError(
        f"Expected a {noun} from {[entry.key for entry in entries]}, got {key!r}. "
        "The definition of the study lists them."
    )


def _check_keys(definition: StudyDefinition) -> None:
    for noun in ("systems", "comparisons", "questions"):
        keys = [entry.key for entry in getattr(definition, noun)]
        if not keys:
            raise StudyError(f"Expected at least one of {noun}, got none. Add [[{noun}]].")
        for key in [definition.name, *keys]:
            if not KEY.fullmatch(key):
                raise StudyError(
                    f"Expected a key of letters, digits, '.', '_' and '-', got {key!r} in {noun}. "
                    "Rename it; titles may hold anything."
                )
        _check_once(noun, keys)
    _check_once("providers", [settle(provider).key for provider in definition.providers])
    if definition.providers and not definition.quotas.per_study:
        raise StudyError(
            "Expected per_study in [quotas] with [[providers]], got none: their raters are paid by "
            "the session. Say how many pairs one has."
        )


def _check_once(noun: str, keys: Sequence[str]) -> None:
    if len({key.casefold() for key in keys}) < len(keys):
        raise StudyError(f"Expected each key of {noun} once, got {keys}. Rename one.")


def _check_comparisons(definition: StudyDefinition) -> None:
    seen: dict[frozenset[str], str] = {}
    for comparison in definition.comparisons:
        definition.system(comparison.a), definition.system(comparison.b)
        pair = frozenset((comparison.a, comparison.b))
        if len(pair) == 1:
            raise StudyError(
                f"Expected two systems in {comparison.key}, got {comparison.a!r} twice. "
                "Compare it with another one."
            )
        if pair in seen:
            raise StudyError(
                f"Expected each pair of systems in one comparison, got it in {seen[pair]} and "
                f"{comparison.key}. Remove one; raise raters_per_pair for more votes."
            )
        seen[pair] = comparison.key
    primary = [question.key for question in definition.questions if question.primary]
    if len(primary) != 1:
        raise StudyError(
            f"Expected exactly one primary question, got {primary}. Set primary = true on the one "
            "that the claim rests on."
        )


def _check_numbers(definition: StudyDefinition) -> None:
    checks, assignment, pay = definition.checks, definition.assignment, definition.pay
    bounds = [
        ("version", definition.version, 1, 10**6),
        ("raters_per_pair", definition.raters_per_pair, 1, 1000),
        ("lease_seconds", assignment.lease_seconds, 10, 7 * 86400),
        ("undo_seconds", assignment.undo_seconds, 0, 3600),
        ("per_study", definition.quotas.per_study, 0, 10**9),
        ("per_comparison", definition.quotas.per_comparison, 0, 10**9),
        ("per_day", definition.quotas.per_day, 0, 10**9),
        ("gold_share", checks.gold_share, 0, 0.5),
        ("gold_pairs", checks.gold_pairs, 1, 10**5),
        ("mirror_share", checks.mirror_share, 0, 0.5),
        ("mirror_distance", checks.mirror_distance, 1, 10**5),
        ("min_gold_accuracy", checks.min_gold_accuracy, 0, 1),
        ("too_fast_seconds", checks.too_fast_seconds, 0, 3600),
        ("min_loops", definition.viewing.min_loops, 0, 100),
        ("clip_seconds", definition.viewing.clip_seconds, 0, 600),
        ("per_pair", pay.per_pair, 0, 10**6),
        ("seconds_per_pair", pay.seconds_per_pair, 1, 86400),
        ("platform_fee", pay.platform_fee, 0, 10),
    ]
    for name, value, low, high in bounds:
        if not low <= value <= high:
            raise StudyError(
                f"Expected {name} between {low} and {high}, got {value}. Correct the definition."
            )
    if checks.gold_share and not checks.gold_recipes:
        raise StudyError("Expected gold_recipes with a gold_share, got none. List at least one.")
