"""One pair as a rater sees it: prompt, left clip, right clip. Carries no system name."""

from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, select
from sqlalchemy.orm import aliased

from human_eval.clips.media import PADDING
from human_eval.errors import NotYours
from human_eval.storage.tables import AssignmentRow, ClipRow, PairRow, PromptRow


@dataclass(frozen=True)
class PairView:
    """A pair with its sides fixed."""

    prompt: str
    left: str  # name in the media folder; only the server sees it
    right: str
    width: int  # pixels; both clips have the same shape
    height: int
    fps: float
    frames: int
    bytes: int  # sent for either side: equal, so that the size does not identify a system
    until: int  # Unix time in milliseconds; then the clips are no longer served


def show(connection: Connection, assignment_id: int) -> PairView:
    """Return the pair of an assignment.

    Raises:
        NotYours: there is no such assignment.
    """
    row = connection.execute(_SHOWN, {"assignment": assignment_id}).one_or_none()
    if row is None:
        raise NotYours("This pair does not belong to the study. Reload the page.")
    left, right = (row.a, row.b) if row.side_a == "left" else (row.b, row.a)
    weight = max(row.bytes_a, row.bytes_b) + PADDING
    shape = (row.width, row.height, row.fps, row.frames)
    return PairView(row.display, left, right, *shape, weight, row.expires_at)


_ClipA, _ClipB = aliased(ClipRow), aliased(ClipRow)
_SHOWN = (
    select(
        PromptRow.display,
        _ClipA.stored_name.label("a"),
        _ClipB.stored_name.label("b"),
        _ClipA.width,
        _ClipA.height,
        _ClipA.fps,
        _ClipA.frames,
        _ClipA.bytes.label("bytes_a"),
        _ClipB.bytes.label("bytes_b"),
        AssignmentRow.side_a,
        AssignmentRow.expires_at,
    )
    .select_from(AssignmentRow)
    .join(PairRow, PairRow.id == AssignmentRow.pair_id)
    .join(PromptRow, PromptRow.prompt_index == PairRow.prompt_index)
    .join(_ClipA, _ClipA.id == PairRow.clip_a)
    .join(_ClipB, _ClipB.id == PairRow.clip_b)
    .where(AssignmentRow.id == bindparam("assignment"))
)
