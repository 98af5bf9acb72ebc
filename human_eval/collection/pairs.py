"""Store prompts and clips, and make pairs of them."""

import random
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

from sqlalchemy import Connection, Row, insert, select

from human_eval.clips.ingest import Clip
from human_eval.clips.media import Shape
from human_eval.definition.definition import StudyDefinition
from human_eval.definition.prompts import Prompt
from human_eval.errors import StudyError
from human_eval.storage.events import record
from human_eval.storage.tables import ClipRow, PairRow, PromptRow

ORDER_BITS = 62


def add_prompts(connection: Connection, prompts: Sequence[Prompt]) -> None:
    """Store the prompts of a new study."""
    connection.execute(
        insert(PromptRow),
        [
            {
                "prompt_index": prompt.index,
                "text": prompt.text,
                "display": prompt.display,
                "category": prompt.category,
            }
            for prompt in prompts
        ],
    )


def list_prompts(connection: Connection) -> list[Prompt]:
    """Return the prompts in order."""
    rows = connection.execute(select(PromptRow.__table__).order_by(PromptRow.prompt_index))
    return [Prompt(row.prompt_index, row.text, _categories(row.category)) for row in rows]


def _categories(category: str) -> tuple[str, ...]:
    return () if category == Prompt(0, "").category else tuple(category.split("|"))


def add_clip(connection: Connection, clip: Clip, *, now: int, variant: str = "") -> None:
    """Store an accepted clip. A refused one becomes an event, and can be ingested again.

    Raises:
        StudyError: another clip of that system and prompt is stored.
    """
    about = {"system": clip.system, "prompt_index": clip.prompt_index, "reason": clip.reason}
    if clip.status != "ok":
        subject = f"clip:{clip.system}/{clip.prompt_index}"
        record(connection, "clip_refused", actor="ingest", subject=subject, now=now, payload=about)
        return
    taken = select(ClipRow.id).where(
        ClipRow.system == clip.system,
        ClipRow.prompt_index == clip.prompt_index,
        ClipRow.variant == variant,
    )
    if connection.execute(taken).first():
        raise StudyError(
            f"The study already has a clip of {clip.system} for prompt {clip.prompt_index}. Create "
            "a new study for new clips."
        )
    columns = set(ClipRow.__table__.columns.keys()) - {"id", "variant"}
    values = {name: getattr(clip, name) for name in columns}
    connection.execute(insert(ClipRow), {**values, "variant": variant})


def list_clips(connection: Connection, variant: str | None = "") -> list[Clip]:
    """Return the stored clips: the originals, the attention checks of one recipe, or (None) all."""
    table = ClipRow.__table__
    statement = (
        select(table, PromptRow.text.label("prompt"))
        .join(PromptRow, PromptRow.prompt_index == ClipRow.prompt_index)
        .order_by(ClipRow.system, ClipRow.prompt_index)
    )
    if variant is not None:
        statement = statement.where(ClipRow.variant == variant)
    names = {*table.columns.keys(), "prompt"} - {"id", "variant"}
    rows = connection.execute(statement)
    return [Clip(**{name: getattr(row, name) for name in names}) for row in rows]


def make_pairs(
    connection: Connection,
    definition: StudyDefinition,
    *,
    rng: random.Random,
    simulated: bool = False,
    partial: bool = False,
) -> dict[str, int]:
    """Pair the clips of every comparison that is complete.

    Args:
        simulated: for simulated raters, who have separate pairs.
        partial: also pair the clips of incomplete comparisons.

    Returns:
        New pairs by comparison.

    Raises:
        StudyError: the clips of a pair differ in shape, as two runs at one time can leave them.
    """
    clips, indices, paired = _pairable(connection, simulated)
    made: dict[str, int] = {}
    rows: list[dict[str, Any]] = []
    for place, comparison in enumerate(definition.comparisons):
        complete = [
            index
            for index in indices
            if (comparison.a, index) in clips and (comparison.b, index) in clips
        ]
        if len(complete) < len(indices) and not partial:
            continue
        for index in complete:
            if (comparison.key, index) in paired:
                continue
            clip_a, clip_b = clips[comparison.a, index], clips[comparison.b, index]
            _check_alike(clip_a, clip_b)
            made[comparison.key] = made.get(comparison.key, 0) + 1
            listed = index * len(definition.comparisons) + place
            rows += _pair_rows(
                definition,
                {
                    "comparison": comparison.key,
                    "prompt_index": index,
                    "simulated": simulated,
                    "clip_a": clip_a.id,
                    "clip_b": clip_b.id,
                },
                listed if definition.assignment.policy == "fixed" else rng.getrandbits(ORDER_BITS),
            )
    if rows:
        connection.execute(insert(PairRow), rows)
    return made


def _pairable(
    connection: Connection, simulated: bool
) -> tuple[dict[tuple[str, int], Row[Any]], Sequence[int], set[tuple[str, int]]]:
    """Return clips by system and prompt, the prompts, and the (comparison, prompt) that exist."""
    spotless = select(ClipRow.__table__).where(ClipRow.variant == "")
    clips = {(row.system, row.prompt_index): row for row in connection.execute(spotless)}
    ordered = select(PromptRow.prompt_index).order_by(PromptRow.prompt_index)
    indices = connection.execute(ordered).scalars().all()
    real = select(PairRow.comparison, PairRow.prompt_index).where(
        PairRow.kind == "real", PairRow.simulated == simulated
    )
    paired = {(row.comparison, row.prompt_index) for row in connection.execute(real)}
    return clips, indices, paired


def _check_alike(a: Row[Any], b: Row[Any]) -> None:
    shape_a, shape_b = (
        Shape(row.width, row.height, Fraction(row.fps), row.frames) for row in (a, b)
    )
    if shape_a != shape_b:
        raise StudyError(
            f"The clips of prompt {a.prompt_index} have different shapes ({a.system}: {shape_a}; "
            f"{b.system}: {shape_b}). Create a new version of the study, and ingest the clips with "
            "one command."
        )


def _pair_rows(
    definition: StudyDefinition, pair: dict[str, Any], order_key: int
) -> Iterable[dict[str, Any]]:
    common = {**pair, "variant": "", "taken": 0, "order_key": order_key, "withheld": False}
    yield {**common, "kind": "real", "target": definition.raters_per_pair, "gold_answer": None}
    if definition.checks.mirror_share:
        yield {**common, "kind": "mirror", "target": None, "gold_answer": None}
