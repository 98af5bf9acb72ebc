"""Pairs whose better side is known, because we spoiled the other one.

They look like any other pair, and they never count as evidence about a system.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from sqlalchemy import Connection, insert, select

from human_eval.clips.ingest import Clip, Place
from human_eval.clips.media import Footage, read_footage, store_footage
from human_eval.collection import pairs
from human_eval.definition.definition import Comparison
from human_eval.storage.tables import ClipRow, PairRow
from human_eval.study.store import StudyStore

BLOCKS = 8  # the degraded clip keeps every eighth pixel in each direction
NOISE = 25.0  # its standard deviation, of 255 levels

Progress = Callable[[int, int], None]


def make_gold(store: StudyStore, *, progress: Progress = lambda done, total: None) -> int:
    """Make the definition's gold pairs for every comparison that has pairs; return their number.

    Those that exist are kept and counted, so that an interrupted run goes on where it stopped,
    and clips that come in later add no more than are missing.
    """
    checks = store.definition.checks
    if not checks.gold_share:
        return 0
    plans = []
    with store.read() as connection:
        clips = {(clip.system, clip.prompt_index): clip for clip in pairs.list_clips(connection)}
    for comparison in store.definition.comparisons:
        spoiled = _spoiled_prompts(store, comparison)
        rng = random.Random(f"0 {comparison.key} {len(spoiled)}")
        indices = sorted(
            index
            for system, index in clips
            if system == comparison.a and (comparison.b, index) in clips and index not in spoiled
        )
        recipes = list(islice(cycle(checks.gold_recipes), len(spoiled), checks.gold_pairs))
        chosen = rng.sample(indices, min(len(recipes), len(indices)))
        for index, recipe in zip(chosen, recipes, strict=False):
            plans.append((comparison, index, recipe, rng.choice("ab"), rng.getrandbits(32)))
    made, numbers = 0, _stored_clips(store)
    for number, (comparison, index, recipe, answer, draw) in enumerate(plans, 1):
        rng = random.Random(draw)
        made += _make_one(store, clips, numbers, comparison, index, recipe, answer, rng)
        progress(number, len(plans))
    return made


def _make_one(
    store: StudyStore,
    clips: Mapping[Place, Clip],
    stored: Mapping[Place, int],
    comparison: Comparison,
    index: int,
    recipe: str,
    answer: str,
    rng: random.Random,
) -> bool:
    """Spoil one side of a pair; return False if no clip of the study can stand for it.

    Args:
        clips, stored: the unspoiled clips of the study, and their numbers in its database.
    """
    kind = "identical" if recipe == "identical" else "gold"
    good = comparison.a if answer == "a" else comparison.b
    bad = comparison.b if answer == "a" else comparison.a
    spoiled: int | Clip
    if recipe == "identical":
        spoiled = stored[good, index]
    elif recipe == "wrong_prompt":
        partner = clips[good, index]
        others = [
            clip.prompt_index
            for clip in clips.values()
            if clip.system == bad and clip.prompt != partner.prompt and clip.shape == partner.shape
        ]
        if not others:
            return False
        spoiled = stored[bad, rng.choice(sorted(others))]
    else:
        spoiled = spoil(clips[bad, index], recipe, store.media, rng)
    with store.write() as connection:
        number = spoiled if isinstance(spoiled, int) else _add(connection, store, spoiled, recipe)
        sides = {"clip_a": stored[good, index], "clip_b": number}
        if answer == "b":
            sides = {"clip_a": number, "clip_b": stored[good, index]}
        pair = {
            "comparison": comparison.key,
            "prompt_index": index,
            "kind": kind,
            "variant": recipe,
            "gold_answer": answer if kind == "gold" else None,
            "target": None,
            "taken": 0,
            "withheld": False,
            "order_key": store.rng.getrandbits(pairs.ORDER_BITS),
            **sides,
        }
        rows = [{**pair, "simulated": simulated} for simulated in (False, True)]
        connection.execute(insert(PairRow), rows)
    return True


def _spoiled_prompts(store: StudyStore, comparison: Comparison) -> set[int]:
    """Return the prompts for which a comparison has a gold pair."""
    made = select(PairRow.prompt_index).where(
        PairRow.comparison == comparison.key,
        PairRow.kind.in_(["gold", "identical"]),
        ~PairRow.simulated,
    )
    with store.read() as connection:
        return set(connection.execute(made).scalars())


def _stored_clips(store: StudyStore) -> dict[Place, int]:
    """Return the numbers of the systems' own clips, by system and prompt."""
    spotless = select(ClipRow.id, ClipRow.system, ClipRow.prompt_index).where(ClipRow.variant == "")
    with store.read() as connection:
        return {(row.system, row.prompt_index): row.id for row in connection.execute(spotless)}


def _add(connection: Connection, store: StudyStore, clip: Clip, recipe: str) -> int:
    """Store a spoiled clip, unless another comparison has spoiled the same one in this way."""
    mine = select(ClipRow.id).where(
        ClipRow.system == clip.system,
        ClipRow.prompt_index == clip.prompt_index,
        ClipRow.variant == recipe,
    )
    if (known := connection.execute(mine).scalar()) is not None:
        return known
    pairs.add_clip(connection, clip, now=store.clock(), variant=recipe)
    return connection.execute(mine).scalar_one()


def spoil(clip: Clip, recipe: str, media: Path, rng: random.Random) -> Clip:
    """Write a spoiled copy of a clip, by the recipe that all clips of a study went through."""
    footage = read_footage(media / clip.stored_name)
    worse = Footage(SPOILERS[recipe](footage.pixels, rng), footage.fps)
    name, digest, size = store_footage(worse, media)
    return replace(clip, stored_name=name, sha256=digest, bytes=size)


def _shuffle(pixels: np.ndarray, rng: random.Random) -> np.ndarray:
    """Put the frames in a random order."""
    order = list(range(len(pixels)))
    rng.shuffle(order)
    return pixels[order]


def _degrade(pixels: np.ndarray, rng: random.Random) -> np.ndarray:
    """Replace the picture by big squares of one colour each, and add noise."""
    coarse = pixels[:, ::BLOCKS, ::BLOCKS]
    large = coarse.repeat(BLOCKS, axis=1).repeat(BLOCKS, axis=2)
    large = large[:, : pixels.shape[1], : pixels.shape[2]]
    noise = np.random.default_rng(rng.getrandbits(32)).normal(0, NOISE, large.shape)
    return np.clip(large + noise, 0, 255).astype(np.uint8)


def _freeze(pixels: np.ndarray, rng: random.Random) -> np.ndarray:
    """Show the first frame throughout."""
    return pixels[:1].repeat(len(pixels), axis=0)


SPOILERS: dict[str, Callable[[np.ndarray, random.Random], np.ndarray]] = {
    "shuffled": _shuffle,
    "degraded": _degrade,
    "frozen": _freeze,
}
