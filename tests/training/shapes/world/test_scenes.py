"""The shapes world: clips show what their captions say, and the probes read it from the pixels."""

from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest

from training.shapes.evaluation.probes import has_watermark, read_clip
from training.shapes.world.scenes import (
    BACKGROUNDS,
    FRAMES,
    HELD_OUT_SCENES,
    MOTIONS,
    SCENES,
    SIZE,
    SPRITES,
    TEMPLATES,
    TRAIN_SCENES,
    WORDS,
    Defects,
    Scene,
    corrupt_clip,
    draw_background,
    draw_caption,
    draw_clip,
    draw_example,
    reword,
)

CLEAN = Defects(watermark=0, washed_out=0, noise=0, wrong_caption=0)


def test_held_out_scenes_cover_every_word_and_share_none_with_training():
    assert not set(HELD_OUT_SCENES) & set(TRAIN_SCENES)
    assert len(HELD_OUT_SCENES) + len(TRAIN_SCENES) == len(SCENES)
    for attribute in asdict(SCENES[0]):
        words = {getattr(scene, attribute) for scene in SCENES}
        assert {getattr(scene, attribute) for scene in HELD_OUT_SCENES} == words
        assert {getattr(scene, attribute) for scene in TRAIN_SCENES} == words


def test_a_caption_names_every_attribute():
    scene = Scene("orange", "star", "moving left", "night")

    assert scene.caption() == "an orange star moving left in the night sky"


def test_clips_have_the_size_the_models_expect():
    clip, caption = draw_example(np.random.default_rng(0))

    assert clip.shape == (FRAMES, SIZE, SIZE, 3)
    assert clip.dtype == np.uint8
    assert caption


def test_the_same_seed_draws_the_same_example():
    first, second = (draw_example(np.random.default_rng(3)) for _ in range(2))

    np.testing.assert_array_equal(first[0], second[0])
    assert first[1] == second[1]


@pytest.mark.parametrize("motion", MOTIONS)
def test_probes_read_every_attribute_of_clean_clips(motion):
    rng = np.random.default_rng(1)
    scenes = [scene for scene in SCENES if scene.motion == motion][::7]

    hits = [read_clip(draw_clip(scene, rng)).matches(scene)["all"] for scene in scenes]

    assert np.mean(hits) >= 0.97


def test_probes_reject_an_empty_scene():
    for name in BACKGROUNDS:
        reading = read_clip(np.tile(draw_background(name), (FRAMES, 1, 1, 1)))
        assert (reading.shape, reading.colour, reading.motion) == (None, None, None)
        assert (reading.background, reading.washed_out) == (name, False)


@pytest.mark.parametrize("washed_out", [0, 1])
def test_probes_read_pale_clips_too_and_say_that_they_are_pale(washed_out):
    rng = np.random.default_rng(6)
    flawed = Defects(watermark=0, washed_out=washed_out, noise=0)

    readings = [(s, read_clip(corrupt_clip(draw_clip(s, rng), flawed, rng))) for s in SCENES[::29]]

    assert np.mean([reading.matches(scene)["all"] for scene, reading in readings]) >= 0.97
    assert {reading.washed_out for _, reading in readings} == {bool(washed_out)}


def test_probes_reject_a_blob_as_a_shape():
    clip = np.tile(draw_background("white"), (FRAMES, 1, 1, 1))
    clip[:, 4:9, 4:28] = (225, 40, 45)  # a bar is none of the sprites

    assert read_clip(clip).shape is None


def test_probes_take_jitter_for_no_motion():
    rng = np.random.default_rng(2)
    still = draw_clip(Scene("red", "circle", "standing still", "black"), rng)
    jitter = np.stack([np.roll(f, tuple(rng.integers(-6, 7, 2)), axis=(0, 1)) for f in still])

    assert read_clip(jitter).motion is None


def test_probes_take_a_clip_played_backwards_for_the_opposite_motion():
    clip = draw_clip(Scene("blue", "heart", "moving up", "desert"), np.random.default_rng(0))

    assert read_clip(clip[::-1]).motion == "moving down"


def test_probes_take_shuffled_frames_for_no_direction():
    rng = np.random.default_rng(4)
    clip = draw_clip(Scene("green", "star", "moving right", "black"), rng)

    assert read_clip(clip[rng.permutation(FRAMES)]).motion is None


@pytest.mark.parametrize("attribute", WORDS)
def test_another_word_for_a_training_scene_names_no_held_out_one(attribute):
    rng = np.random.default_rng(0)

    for scene in TRAIN_SCENES:
        other = reword(scene, attribute, rng)
        assert not other.is_held_out
        assert {name for name in WORDS if getattr(other, name) != getattr(scene, name)} == {
            attribute
        }
    # A held-out scene may get any other word: the accuracy of rewards is measured on these.
    words = {getattr(reword(HELD_OUT_SCENES[0], attribute, rng), attribute) for _ in range(200)}
    assert words == {*WORDS[attribute]} - {getattr(HELD_OUT_SCENES[0], attribute)}


def test_no_training_caption_is_that_of_a_held_out_scene():
    rng, wrong = np.random.default_rng(0), Defects(wrong_caption=1)
    held_out = {scene.caption(words) for scene in HELD_OUT_SCENES for words in TEMPLATES}

    for scene in TRAIN_SCENES:
        caption = draw_caption(scene, wrong, rng)
        assert caption not in held_out
        assert caption not in {scene.caption(words) for words in TEMPLATES}


def test_defects_come_as_often_as_asked():
    rng = np.random.default_rng(0)
    scene = Scene("red", "square", "standing still", "black")
    clip = draw_clip(scene, rng)

    corrupted = [(corrupt_clip(clip, Defects(), rng) != clip).any() for _ in range(600)]
    told = Counter(
        all(word in draw_caption(scene, Defects(), rng) for word in ("red", "square", "still"))
        for _ in range(600)
    )

    assert np.mean(corrupted) == pytest.approx(1 - 0.75 * 0.8 * 0.85, abs=0.06)
    assert told[False] > 10
    np.testing.assert_array_equal(corrupt_clip(clip, CLEAN, rng), clip)


def test_the_watermark_probe_tells_marked_from_clean_clips():
    rng = np.random.default_rng(0)
    marked = Defects(watermark=1, washed_out=0, noise=0)
    scenes = HELD_OUT_SCENES[::3]

    found = np.mean([has_watermark(corrupt_clip(draw_clip(s, rng), marked, rng)) for s in scenes])
    false = np.mean([has_watermark(draw_clip(s, rng)) for s in scenes])

    assert found >= 0.95
    assert false <= 0.02


def test_sprites_differ_from_one_another():
    masks = np.stack([bitmap != "." for bitmap in SPRITES.values()]).reshape(len(SPRITES), -1)
    both = (masks[:, None] & masks[None]).sum(-1) / (masks[:, None] | masks[None]).sum(-1)

    assert (both - np.eye(len(SPRITES))).max() < 0.9
