"""The judge and its training pairs: clips with one more flaw score lower."""

import os
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from training.shapes.evaluation.judge import (
    JUDGE,
    JUDGE_SCENES,
    Judge,
    find_scene,
    load_judge,
    measure_judge,
    preference_loss,
    save_judge,
    to_frames,
)
from training.shapes.evaluation.systems import System, load_system
from training.shapes.models import rewards
from training.shapes.world.flaws import (
    INVISIBLE_WHEN_STILL,
    LATENT_FLAWS,
    PIXEL_FLAWS,
    Bank,
    PairSource,
    draw_bank,
)
from training.shapes.world.scenes import (
    HELD_OUT_SCENES,
    SCENES,
    TEMPLATES,
    TRAIN_SCENES,
    WORDS,
    draw_clip,
)
from turbo.models.registry import WEIGHTS


@pytest.fixture(scope="module")
def judge() -> Judge:
    return load_judge()


@pytest.fixture(scope="module")
def vae():
    return load_system(System("VAE", "shapes-teacher"), WEIGHTS / "shapes").vae


def drawn_bank(scenes) -> Bank:
    """A bank made without a VAE: the corrupted clips are black."""
    rng = np.random.default_rng(0)
    clips = torch.from_numpy(np.stack([draw_clip(scene, rng) for scene in scenes]))
    corrupted = torch.zeros(len(scenes), 2, *clips.shape[1:], dtype=torch.uint8)
    return Bank(clips, corrupted, torch.zeros(len(scenes), 2, dtype=torch.int64))


def test_judge_and_rewards_never_learn_from_the_same_scene():
    assert not set(JUDGE_SCENES) & set(rewards.SCENES)
    assert not set(JUDGE_SCENES) & set(HELD_OUT_SCENES)
    for attribute, words in WORDS.items():
        assert {getattr(scene, attribute) for scene in JUDGE_SCENES} == set(words)
    assert set(JUDGE_SCENES) < set(TRAIN_SCENES)


@pytest.mark.parametrize("name", PIXEL_FLAWS)
def test_a_drawn_flaw_shows_and_leaves_the_clip_a_clip(name):
    rng = np.random.default_rng(0)
    movable = [s for s in SCENES[::31] if s.motion != "standing still"]
    for scene in movable if name in INVISIBLE_WHEN_STILL else SCENES[::31]:
        clip = draw_clip(scene, np.random.default_rng(1))
        before = clip.copy()
        corrupted = PIXEL_FLAWS[name](clip, scene, rng)

        assert (corrupted.shape, corrupted.dtype) == (clip.shape, np.uint8)
        np.testing.assert_array_equal(clip, before)
        if name != "shaking":  # a shake may be drawn still, and a plain scene hides a small one
            assert (corrupted != clip).any(), scene


@pytest.mark.parametrize("name", LATENT_FLAWS)
def test_a_flaw_of_latents_is_finite_and_changes_them(name):
    generator = torch.Generator().manual_seed(0)
    latents, other = torch.randn(2, 1, 4, 16, 8, 8, generator=generator)

    corrupted = LATENT_FLAWS[name](latents, other, generator)

    assert corrupted.shape == latents.shape
    assert corrupted.isfinite().all()
    assert (corrupted - latents).abs().mean() > 0.05


def test_pairs_show_their_own_scenes_only():
    scenes = [scene for scene in JUDGE_SCENES if scene.background == "white"]
    source, rng = PairSource(scenes, drawn_bank(scenes)), np.random.default_rng(0)

    pairs = [source.draw(rng) for _ in range(200)]

    assert {pair.scene for pair in pairs} <= set(scenes)
    kinds = {pair.kind for pair in pairs}
    assert {"wrong colour", "wrong shape", "wrong motion"} < kinds
    assert "wrong background" not in kinds  # there is no scene to take it from
    assert all(pair.shared != pair.kind for pair in pairs)
    assert any(pair.shared for pair in pairs)


def test_the_same_seed_draws_the_same_pair():
    scenes = JUDGE_SCENES[:50]
    source = PairSource(scenes, drawn_bank(scenes))
    first, second = (source.draw(np.random.default_rng(5)) for _ in range(2))

    assert first.kind == second.kind
    np.testing.assert_array_equal(first.worse, second.worse)


def test_a_bank_of_other_scenes_is_refused():
    with pytest.raises(ValueError, match="Expected a bank of 50 scenes, got 40"):
        PairSource(JUDGE_SCENES[:50], drawn_bank(JUDGE_SCENES[:40]))


def test_a_bank_is_read_back_as_it_was_drawn(vae, tmp_path):
    scenes = JUDGE_SCENES[:3]
    drawn = draw_bank(vae, scenes, 0, tmp_path / "bank.safetensors")
    read = draw_bank(vae, scenes, 1, tmp_path / "bank.safetensors")

    for field in fields(Bank):
        assert torch.equal(getattr(drawn, field.name), getattr(read, field.name))
    clean = torch.from_numpy(draw_clip(scenes[0], np.random.default_rng(0)))
    assert (drawn.reconstructed[0].int() - clean.int()).abs().float().mean() < 6
    assert (drawn.corrupted[0].int() - drawn.reconstructed[0].int()).abs().float().mean() > 0.5


def test_a_bank_whose_writing_is_killed_leaves_no_file(vae, tmp_path, monkeypatch):
    def kill(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", kill)
    with pytest.raises(KeyboardInterrupt):
        draw_bank(vae, JUDGE_SCENES[:3], 0, tmp_path / "bank.safetensors")

    assert not (tmp_path / "bank.safetensors").exists()


def test_the_loss_reaches_every_weight():
    """All but the bias of quality: a preference is a difference, in which it cancels."""
    scenes = JUDGE_SCENES[:60]
    source, rng = PairSource(scenes, drawn_bank(scenes)), np.random.default_rng(0)
    torch.manual_seed(0)
    untrained = Judge()

    preference_loss(untrained, [source.draw(rng) for _ in range(4)]).backward()

    for name, weight in untrained.named_parameters():
        if name != "quality.bias":  # rounding alone
            assert weight.grad is not None and weight.grad.abs().sum() > 1e-6, name


def test_captions_of_every_wording_name_their_scene():
    for scene in SCENES[::17]:
        assert {find_scene(scene.caption(template)) for template in TEMPLATES} == {scene}
    with pytest.raises(ValueError, match="'a corgi' is not a caption"):
        find_scene("a corgi")


def test_a_saved_judge_scores_as_before(tmp_path):
    torch.manual_seed(0)
    untrained = Judge().eval()
    clip = to_frames([draw_clip(SCENES[0], np.random.default_rng(0))])
    scenes = JUDGE_SCENES[:50]
    source = PairSource(scenes, drawn_bank(scenes))
    save_judge(untrained, measure_judge(untrained, source, count=4), tmp_path)

    loaded = load_judge(tmp_path)

    torch.testing.assert_close(
        loaded(clip, [SCENES[0]]), untrained(clip, [SCENES[0]]), atol=0.02, rtol=0.02
    )
    assert (tmp_path / "judge.safetensors").stat().st_size < 500_000
    assert "wrong motion" in (tmp_path / "README.md").read_text()


def test_the_error_for_a_missing_judge_names_the_command(tmp_path):
    with pytest.raises(FileNotFoundError, match="python -m training.shapes judge"):
        load_judge(tmp_path)


@torch.inference_mode()
def test_the_judge_knows_which_caption_fits_on_held_out_scenes(judge):
    rng = np.random.default_rng(3)
    for attribute, words in WORDS.items():
        scenes = [HELD_OUT_SCENES[i] for i in rng.integers(len(HELD_OUT_SCENES), size=24)]
        others = [
            replace(s, **{attribute: rng.choice([w for w in words if w != getattr(s, attribute)])})
            for s in scenes
        ]
        frames = to_frames([draw_clip(scene, rng) for scene in scenes])

        right = judge(frames, [scene.caption() for scene in scenes])
        wrong = judge(frames, others)

        assert (right > wrong).float().mean() >= 0.9, attribute


@torch.inference_mode()
@pytest.mark.parametrize("name", ["watermark", "washed out", "noise", "frozen", "vanishing"])
def test_the_judge_prefers_clean_clips_on_held_out_scenes(judge, name):
    rng = np.random.default_rng(4)
    scenes = [scene for scene in HELD_OUT_SCENES[::6] if scene.motion != "standing still"]
    clean = [draw_clip(scene, rng) for scene in scenes]
    corrupted = [PIXEL_FLAWS[name](draw_clip(scene, rng), scene, rng) for scene in scenes]

    better, worse = judge(to_frames(clean), scenes), judge(to_frames(corrupted), scenes)

    assert (better > worse).float().mean() >= 0.85


@torch.inference_mode()
def test_the_judges_score_is_quality_plus_log_probabilities(judge):
    scene = HELD_OUT_SCENES[0]
    frames = to_frames([draw_clip(scene, np.random.default_rng(0))])
    features = judge.features(frames)
    fits = torch.stack([judge.rate_fit(features, [other]) for other in SCENES])

    assert fits.exp().sum() == pytest.approx(1, abs=1e-4)  # over every combination of words
    expected = judge.rate_quality(features) + judge.rate_fit(features, [scene])
    torch.testing.assert_close(judge(frames, [scene]), expected)


def test_the_committed_judge_is_small_and_has_a_card():
    assert (JUDGE / "judge.safetensors").stat().st_size <= 500_000
    assert "Held-out accuracy" in (JUDGE / "README.md").read_text()
