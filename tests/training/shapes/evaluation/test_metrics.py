"""Metrics without a network: zero for clean clips, and known distances."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from training.shapes.evaluation.metrics import (
    displacement,
    flicker,
    frame_change,
    frechet_distance,
    sprite_row,
)
from training.shapes.world.flaws import PIXEL_FLAWS
from training.shapes.world.scenes import FRAMES, Scene, draw_background, draw_clip


def draw(motion: str, background: str = "white") -> np.ndarray:
    return draw_clip(Scene("red", "heart", motion, background), np.random.default_rng(0))


@pytest.mark.parametrize("motion", ["moving left", "jumping", "circling", "blinking"])
@pytest.mark.parametrize("background", ["black", "night", "desert"])
def test_clean_clips_do_not_flicker_however_they_move(motion, background):
    assert flicker(draw(motion, background)) <= (0 if background == "desert" else 0.2)


def test_noise_and_unsteady_light_flicker():
    rng = np.random.default_rng(0)
    clip, scene = draw("moving left"), Scene("red", "heart", "moving left", "white")

    assert flicker(PIXEL_FLAWS["noise"](clip, scene, rng)) > 3
    assert flicker(PIXEL_FLAWS["flicker"](clip, scene, rng)) > 3


def test_displacement_is_the_path_of_the_sprite():
    run = 14 / (FRAMES - 1)  # pixels in all, over the steps between frames

    for motion in ("moving left", "moving right", "moving up", "moving down"):
        assert displacement(draw(motion)) == pytest.approx(run)
    assert displacement(draw("standing still")) == 0
    assert displacement(draw("blinking")) == 0


def test_a_frozen_clip_and_an_empty_scene_do_not_move():
    frozen = np.repeat(draw("circling")[:1], FRAMES, axis=0)
    empty = np.tile(draw_background("meadow"), (FRAMES, 1, 1, 1))

    for clip in (frozen, empty):
        assert displacement(clip) == 0
        assert frame_change(clip) == 0


def test_a_pale_clip_moves_as_far_as_a_bright_one():
    clip = draw("moving up", "meadow")
    pale = (0.45 * clip + 0.55 * 170).astype(np.uint8)

    assert displacement(pale) == pytest.approx(displacement(clip))
    assert frame_change(pale) < frame_change(clip)


def test_the_row_of_the_sprite_counts_from_the_top():
    clip = draw("standing still")
    higher = np.roll(clip, -4, axis=1)
    empty = np.tile(draw_background("meadow"), (FRAMES, 1, 1, 1))

    assert sprite_row(higher) == pytest.approx(sprite_row(clip) - 4)
    assert sprite_row(empty) is None


def test_frechet_distance_of_normals_is_known():
    rng = np.random.default_rng(0)
    base = rng.normal(size=(200_000, 2))

    distance = frechet_distance(base * [2, 1] + [3, 0], base, ridge=0)

    assert distance == pytest.approx(3**2 + (2 - 1) ** 2, rel=0.01)  # means, then spreads


def test_frechet_distance_agrees_with_the_matrix_root():
    rng = np.random.default_rng(1)
    ours, theirs = rng.normal(size=(80, 5)) @ rng.normal(size=(5, 5)), rng.normal(size=(90, 5))
    a, b = np.cov(ours, rowvar=False), np.cov(theirs, rowvar=False)
    apart = ours.mean(axis=0) - theirs.mean(axis=0)

    expected = apart @ apart + np.trace(a + b - 2 * sqrtm(a @ b).real)

    assert frechet_distance(ours, theirs, ridge=0) == pytest.approx(expected)


def test_frechet_distance_accepts_constant_features():
    features = np.zeros((10, 3))
    features[:, 0] = np.arange(10)

    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_refuses_a_single_clip():
    with pytest.raises(ValueError, match="at least two clips"):
        frechet_distance(np.zeros((1, 3)), np.zeros((5, 3)))
