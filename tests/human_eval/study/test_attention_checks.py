"""Pairs with a known answer: as many as were asked for, and nothing but the fault tells them."""

from sqlalchemy import select
from sqlalchemy.orm import aliased

from human_eval.definition.prompts import Prompt
from human_eval.storage.tables import ClipRow, PairRow
from human_eval.study.attention_checks import make_gold
from human_eval.study.store import create_study
from tests.support.studies import add_clips, define, make_clip

CHECKS = """
[checks]
gold_share = 0.2
gold_pairs = {pairs}
gold_recipes = ["wrong_prompt"]
"""


def start(tmp_path, *, prompts: int, pairs: int):
    prompts = [Prompt(index, f"prompt {index}") for index in range(prompts)]
    return create_study(tmp_path / "study", define(extra=CHECKS.format(pairs=pairs)), prompts)


def add_pair(store, index: int, **changes) -> None:
    clips = [make_clip(system, index, **changes) for system in ("ours", "theirs")]
    add_clips(store, clips, pair=False)


def count_golds(store) -> int:
    golds = select(PairRow.id).where(PairRow.kind == "gold", ~PairRow.simulated)
    with store.read() as connection:
        return len(connection.execute(golds).all())


def test_clips_that_come_in_bit_by_bit_make_no_more_gold_than_asked_for(tmp_path):
    store = start(tmp_path, prompts=12, pairs=4)
    for index in range(12):
        add_pair(store, index)
        make_gold(store)
        assert count_golds(store) <= 4
    assert count_golds(store) == 4
    assert make_gold(store) == 0
    store.close()


def test_the_clip_of_another_prompt_has_the_shape_of_its_partner(tmp_path):
    store = start(tmp_path, prompts=10, pairs=10)
    for index in range(10):
        add_pair(store, index, frames=16 if index % 2 else 12)
    assert make_gold(store) == 10

    a, b = aliased(ClipRow), aliased(ClipRow)
    lengths = (
        select(a.frames, b.frames)
        .select_from(PairRow)
        .join(a, a.id == PairRow.clip_a)
        .join(b, b.id == PairRow.clip_b)
        .where(PairRow.kind == "gold")
    )
    with store.read() as connection:
        assert all(ours == theirs for ours, theirs in connection.execute(lengths))
    store.close()


def test_no_gold_is_made_where_no_other_clip_has_the_shape(tmp_path):
    store = start(tmp_path, prompts=2, pairs=2)
    add_pair(store, 0, frames=12)
    add_pair(store, 1, frames=16)

    assert make_gold(store) == 0
    store.close()
