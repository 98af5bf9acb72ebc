"""The definition of a study: systems, comparisons, questions and rules, read from a TOML file.

A study's definition never changes by itself once the study has been created; `amend` adds to it as
an event. Every vote stores the definition under which it was given, so votes cannot be reported
under a question other than the one asked.
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

from human_eval.definition.frames import check_frames
from human_eval.definition.platforms import Provider, build_provider, check_provider
from human_eval.errors import StudyError

Language = Literal["en", "de", "fr", "es", "zh", "ja", "ar"]
Dimension = Literal[
    "", "visual_quality", "motion_quality", "text_alignment", "VQ", "MQ", "TA"
]  # the last three are VideoAlign's words for the others
QuestionKind = Literal["choice", "scale"]
TiePolicy = Literal["forced", "tie", "tie_and_both_bad"]
Policy = Literal["balanced", "fixed"]
GoldRecipe = Literal["wrong_prompt", "shuffled", "degraded", "frozen", "identical"]
Erasure = Literal["anonymise", "delete"]

VIDEO_ALIGN = {"VQ": "visual_quality", "MQ": "motion_quality", "TA": "text_alignment"}
MAX_LABEL = 60  # characters on the button of a choice
PRESETS = Path(__file__).parent / "presets"
KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")  # in file names, columns and charts


@dataclass(frozen=True)
class Choice:
    """One possible answer to a question.

    Every analysis counts `shown`: left and right are one win for the system on that side, however
    strong the preference; tie and both_bad are ties. `strength` is stored and exported beside it,
    and only `statistics.win_rates` reads it.
    """

    shown: str  # left, right, tie or both_bad
    strength: int = 0  # on a scale: 1 slightly better, 2 much better; 0 elsewhere


_SIDES = (Choice("left"), Choice("right"))
CHOICES: dict[str, tuple[Choice, ...]] = {  # in the order in which raters see them
    "forced": _SIDES,
    "tie": (*_SIDES, Choice("tie")),
    "tie_and_both_bad": (*_SIDES, Choice("tie"), Choice("both_bad")),
    "scale": (
        Choice("left", 2),
        Choice("left", 1),
        Choice("tie"),
        Choice("right", 1),
        Choice("right", 2),
    ),
}


@dataclass(frozen=True, kw_only=True)
class System:
    """What is compared: a model at its settings."""

    key: str
    title: str  # printed on charts
    family: str = ""  # common to systems with one teacher
    steps: int | None = None  # sampling steps


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two systems, A and B, over all prompts. The claim is about `a`; `b` is its opponent."""

    key: str
    a: str  # key of a system
    b: str


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question that a rater answers about each pair."""

    key: str
    wording: str
    kind: QuestionKind = "choice"  # "scale": five points, the middle one a tie
    ties: TiePolicy = "forced"  # of a choice
    primary: bool = False  # the one question that claims rest on
    dimension: Dimension = ""  # what it measures, for exports that reward models are trained on
    labels: tuple[str, ...] = ()  # of the choices in their order; by default those of the page

    def __post_init__(self) -> None:
        object.__setattr__(self, "dimension", VIDEO_ALIGN.get(self.dimension, self.dimension))

    @property
    def offered(self) -> tuple[Choice, ...]:
        """The possible answers in the order in which raters see them."""
        return CHOICES["scale" if self.kind == "scale" else self.ties]

    @property
    def choices(self) -> tuple[str, ...]:
        """The possible answers in terms of systems: a, b, and the ties that it takes."""
        words = {"left": "a", "right": "b"}
        return tuple(dict.fromkeys(words.get(entry.shown, entry.shown) for entry in self.offered))

    @property
    def forced(self) -> bool:
        """Whether a rater must prefer one of the two."""
        return "tie" not in self.choices


@dataclass(frozen=True, kw_only=True)
class AssignmentRules:
    """How pairs are assigned to raters; the table [assignment]."""

    policy: Policy = "balanced"  # fewest votes first, in random order; "fixed": in order
    lease_seconds: int = 900  # after which an unanswered assignment expires
    undo_seconds: int = 10  # during which a rater may revise a submission


@dataclass(frozen=True, kw_only=True)
class Quotas:
    """How many pairs one rater may answer, attention checks included; 0 is no limit.

    A rater who returns in another session of a crowd platform starts that session's quotas anew.
    """

    per_study: int = 0  # in a session
    per_comparison: int = 0  # in a session
    per_day: int = 0  # in any 24 hours, over all sessions


@dataclass(frozen=True, kw_only=True)
class Checks:
    """Attention checks: pairs with a known answer (gold) and repeated pairs (mirrors)."""

    gold_share: float = 0.0  # of assignments, in [0, 0.5]
    gold_pairs: int = 20  # made for each comparison if gold_share > 0
    gold_recipes: tuple[GoldRecipe, ...] = ("wrong_prompt", "shuffled", "degraded", "frozen")
    mirror_share: float = 0.0  # of assignments: an earlier pair again, with its sides swapped
    mirror_distance: int = 5  # assignments between a pair and its mirror
    min_gold_accuracy: float = 0.7  # a rater below it is proposed for exclusion
    too_fast_seconds: float = 2.0  # from both clips ready; quicker answers count as too fast


@dataclass(frozen=True, kw_only=True)
class Viewing:
    """What a rater must have watched before answering."""

    min_loops: int = 2  # complete, visible loops of both clips
    clip_seconds: float = 0.0  # length of a loop; the server refuses answers that come sooner


@dataclass(frozen=True, kw_only=True)
class Consent:
    """The consent text, and what it says about erasure."""

    text: str = ""
    on_erase: Erasure = "anonymise"  # what happens to the votes of a rater who asks for erasure


@dataclass(frozen=True, kw_only=True)
class Codes:
    """Completion codes that the crowd platform expects, by how a session ends."""

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
    """Everything that is fixed before the first vote."""

    name: str
    version: int = 1
    title: str = ""
    language: Language = "en"  # of the raters' page; all other texts are yours
    prompts: str = "prompts.txt"  # a file of prompts, or "evalcrafter"
    max_prompt_length: int = 2000  # characters
    raters_per_pair: int = 3
    match_seeds: bool = True  # refuse pairs whose manifests name different seeds
    equalise: bool = False  # reduce the clips of a pair to the smaller size, rate and length
    anonymous: bool = False  # anyone with the address may rate; otherwise by invitation
    frame_ancestors: tuple[str, ...] = ()  # sites that may show the raters' page in a frame
    systems: tuple[System, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    questions: tuple[Question, ...] = ()
    assignment: AssignmentRules = field(default_factory=AssignmentRules)
    quotas: Quotas = field(default_factory=Quotas)
    checks: Checks = field(default_factory=Checks)
    viewing: Viewing = field(default_factory=Viewing)
    instructions: str = ""  # to raters, added to those of the page; must not name a system
    consent: Consent = field(default_factory=Consent)
    providers: tuple[Provider, ...] = ()  # crowd platforms whose raters come by a link
    codes: Codes = field(default_factory=Codes)
    pay: Pay = field(default_factory=Pay)
    source: str = field(default="", repr=False, compare=False)  # the TOML text
    # The definitions before each amendment, oldest first.
    earlier: "tuple[StudyDefinition, ...]" = field(default=(), repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_keys(self)
        _check_comparisons(self)
        _check_questions(self)
        _check_numbers(self)
        object.__setattr__(self, "frame_ancestors", check_frames(self.frame_ancestors))

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the TOML text, in hexadecimal."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    @property
    def first_hash(self) -> str:
        """The hash of the definition with which the study was created."""
        return self.earlier[0].hash if self.earlier else self.hash

    @property
    def versions(self) -> "tuple[StudyDefinition, ...]":
        """The earlier definitions and this one: number n was in force after n amendments."""
        return *self.earlier, self

    @property
    def primary(self) -> Question:
        """The primary question."""
        return next(question for question in self.questions if question.primary)

    def system(self, key: str) -> System:
        """Return the system with this key.

        Raises:
            StudyError: there is none; the message lists the keys of all systems.
        """
        return _find(self.systems, key, "system")

    def comparison(self, key: str) -> Comparison:
        """Return the comparison with this key, or raise as `system` does."""
        return _find(self.comparisons, key, "comparison")

    def question(self, key: str) -> Question:
        """Return the question with this key, or raise as `system` does."""
        return _find(self.questions, key, "question")

    def provider(self, key: str) -> Provider:
        """Return the crowd platform with this key, or raise as `system` does."""
        return _find(self.providers, key, "provider")


def load_definition(
    source: Path | str, settings: Mapping[str, Any] | None = None
) -> StudyDefinition:
    """Read a definition from a TOML file or a preset.

    Args:
        source: a path, or the name of a file in human_eval/definition/presets without ".toml".
        settings: values for a preset's `{placeholders}`, by name.

    Raises:
        StudyError: the file is missing or does not define a study, or a setting is unknown.
    """
    preset = PRESETS / f"{source}.toml"
    path = preset if preset.is_file() else Path(source)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in PRESETS.glob("*.toml")))
        raise StudyError(
            f"There is no definition {str(source)!r}. Give the path of a TOML file, or the name of "
            f"a preset: {known}."
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise StudyError(f"{path} is not UTF-8 ({error}). Save it as UTF-8.") from error
    return parse_definition(_fill(text, settings or {}), origin=str(path))


def parse_definition(text: str, *, origin: str = "the definition") -> StudyDefinition:
    """Read a definition from TOML.

    Raises:
        StudyError: it is not TOML, something is missing or unknown, or it contradicts itself.
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise StudyError(f"{origin} is not valid TOML: {error}. Correct that line.") from error
    values.pop("parameters", None)
    for key in ("source", "hash", "earlier"):
        if key in values:
            raise StudyError(f"{key!r} is computed. Remove it from {origin}.")
    definition = _build(StudyDefinition, {**values, "source": text}, origin)
    assert isinstance(definition, StudyDefinition)
    return definition


def _fill(text: str, settings: Mapping[str, Any]) -> str:
    """Fill in the placeholders of a preset.

    Its table [parameters] lists the choices of each; the first one is the default.
    """
    try:
        parameters = tomllib.loads(text).get("parameters", {})
    except tomllib.TOMLDecodeError:
        return text  # `parse_definition` refuses it and names the line
    unknown = sorted(set(settings) - set(parameters))
    if unknown:
        raise StudyError(
            f"The definition has no parameter {unknown[0]!r}. Its parameters are: "
            f"{', '.join(sorted(parameters)) or 'none'}."
        )
    for name, choices in parameters.items():
        value = settings.get(name, choices[0])
        if value not in choices:
            raise StudyError(f"{name} cannot be {value!r}. Choose one of {choices}.")
        text = text.replace("{" + name + "}", str(value))
    return text


def _build(cls: Any, values: Any, where: str) -> Any:
    """Build a dataclass from a TOML table, refusing unknown keys and wrong types."""
    if not isinstance(values, dict):
        raise StudyError(f"{where} must be a table, not {values!r}. Write [{where}].")
    hints = get_type_hints(cls)
    known = {entry.name for entry in fields(cls)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise StudyError(
            f"{where} has the unknown key {unknown[0]!r}. Correct or remove it; the keys are: "
            f"{', '.join(sorted(known - {'source', 'earlier'}))}."
        )
    built = {name: _convert(hints[name], value, name) for name, value in values.items()}
    try:
        return build_provider(**built) if cls is Provider else cls(**built)
    except TypeError as error:
        missing = re.findall(r"'(\w+)'", str(error))
        raise StudyError(f"{where} has no {', '.join(missing)}. Add it.") from error


def _convert(hint: Any, value: Any, name: str) -> Any:
    if is_dataclass(hint):
        return _build(hint, value, name)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is tuple:
        if not isinstance(value, list):
            raise StudyError(f"{name} must be a list, not {value!r}. Write it in brackets.")
        return tuple(_convert(arguments[0], entry, name) for entry in value)
    if origin is Literal:
        expected, right = f"one of {', '.join(map(repr, arguments))}", value in arguments
    elif origin in (Union, types.UnionType):
        return None if value is None else _convert(arguments[0], value, name)
    elif hint is float:
        expected, right = "a number", type(value) in (int, float)
    else:
        expected, right = f"a value of type {hint.__name__}", type(value) is hint
    if not right:
        raise StudyError(f"{name} must be {expected}, not {value!r}. Correct the definition.")
    return float(value) if hint is float else value


def _find(entries: Sequence[Any], key: str, noun: str) -> Any:
    for entry in entries:
        if entry.key == key:
            return entry
    known = ", ".join(entry.key for entry in entries) or "none"
    raise StudyError(f"The study has no {noun} {key!r}. It defines: {known}.")


def _check_keys(definition: StudyDefinition) -> None:
    _check_key(definition.name, f"The name {definition.name!r} of the study")
    for noun in ("systems", "comparisons", "questions"):
        keys = [entry.key for entry in getattr(definition, noun)]
        if not keys:
            raise StudyError(f"The definition has no {noun}. Add [[{noun}]].")
        for key in keys:
            _check_key(key, f"The key {key!r} in {noun}")
        _check_once(noun, keys)
    for provider in definition.providers:
        check_provider(provider)
    _check_once("providers", [provider.key for provider in definition.providers])
    if definition.providers and not definition.quotas.per_study:
        raise StudyError(
            "Raters of [[providers]] are paid by the session. Set per_study in [quotas] to the "
            "number of pairs in a session."
        )


def _check_key(key: str, what: str) -> None:
    if not KEY.fullmatch(key):
        raise StudyError(
            f"{what} is not of the right form: up to 64 letters, digits, '.', '_' and '-', the "
            "first a letter or a digit. Rename it; a title may contain any character."
        )


def _check_once(noun: str, keys: Sequence[str]) -> None:
    if len({key.casefold() for key in keys}) < len(keys):
        raise StudyError(
            f"Two {noun} have the same key, upper and lower case alike: {', '.join(keys)}. Rename "
            "one."
        )


def _check_comparisons(definition: StudyDefinition) -> None:
    seen: dict[frozenset[str], str] = {}
    for comparison in definition.comparisons:
        definition.system(comparison.a), definition.system(comparison.b)
        pair = frozenset((comparison.a, comparison.b))
        if len(pair) == 1:
            raise StudyError(
                f"{comparison.key} compares {comparison.a!r} with itself. Name two systems."
            )
        if pair in seen:
            raise StudyError(
                f"{seen[pair]} and {comparison.key} compare the same two systems. Remove one; for "
                "more votes, raise raters_per_pair."
            )
        seen[pair] = comparison.key


def _check_questions(definition: StudyDefinition) -> None:
    primary = [question.key for question in definition.questions if question.primary]
    if len(primary) != 1:
        raise StudyError(
            f"A study has exactly one primary question; this one has {len(primary)}. Set "
            "primary = true on the question that the claim rests on."
        )
    measured = [question.dimension for question in definition.questions if question.dimension]
    if len(set(measured)) < len(measured):
        raise StudyError(
            f"Two questions have the same dimension: {', '.join(measured)}. Set it on one of them."
        )

    for question in definition.questions:
        if question.kind == "scale" and question.ties != "forced":
            raise StudyError(
                f"{question.key} is a scale, whose middle is a tie. Remove its setting of ties."
            )
        _check_labels(question)


def _check_labels(question: Question) -> None:
    labels = [label.strip() for label in question.labels]
    if not labels:
        return
    if len(labels) != len(question.offered):
        order = ", ".join(
            f"{entry.shown} {entry.strength or ''}".strip() for entry in question.offered
        )
        raise StudyError(
            f"{question.key} has {len(labels)} labels for {len(question.offered)} choices. Give "
            f"each choice its label, in this order: {order}."
        )
    longest = max(labels, key=len)
    if len(longest) > MAX_LABEL:
        raise StudyError(
            f"The label {longest!r} of {question.key} has {len(longest)} characters; a button has "
            f"space for {MAX_LABEL}. Shorten it, and explain it in the wording."
        )
    if "" in labels or len(set(labels)) < len(labels):
        raise StudyError(f"Two labels of {question.key} are equal, or one is empty. Correct them.")


def _check_numbers(definition: StudyDefinition) -> None:
    checks, assignment, pay = definition.checks, definition.assignment, definition.pay
    bounds = [
        ("version", definition.version, 1, 10**6),
        ("max_prompt_length", definition.max_prompt_length, 1, 10**5),
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
                f"{name} is {value}, but must be between {low} and {high}. Correct the definition."
            )
    if checks.gold_share + checks.mirror_share >= 1:
        raise StudyError(
            f"gold_share is {checks.gold_share} and mirror_share {checks.mirror_share}, so that "
            "all pairs are attention checks. Lower one of them, so that their sum is below 1."
        )
    if checks.gold_share and not checks.gold_recipes:
        raise StudyError("gold_recipes is empty, but gold_share is not 0. List a recipe.")
