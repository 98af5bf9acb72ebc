"""Reward models and their mixture: values, pairing of prompts, gradients."""

from functools import partial

import numpy as np
import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import cosine_similarity, normalize
from torch.testing import assert_close
from transformers import CLIPConfig, CLIPModel

from tests.support.golden import Golden, recipe_weights
from tests.support.tiny_models import make_unet, randomise
from turbo.diffusion.distillation import (
    SolverGrid,
    consistency_loss,
    draw_batch,
    draw_guidance,
    student_of,
)
from turbo.networks.lora import add_lora
from turbo.networks.text import clip_tokenizer, tokenize
from turbo.networks.vae import decode_latents
from turbo.rewards.feedback import (
    WeightedReward,
    draw_frames,
    draw_squares,
    mix_rewards,
    recompute_blocks,
    stride_frames,
)
from turbo.rewards.image_text import ImageTextReward
from turbo.rewards.preprocess import (
    CLIP_MEAN,
    CLIP_STD,
    center_crop,
    letterbox,
    normalise,
    prepare_videos,
    scale_short_side,
    stretch,
)
from turbo.rewards.text_cache import cache_texts
from turbo.rewards.viclip import ViCLIP, ViCLIPConfig, VideoTextReward, load_viclip, save_viclip

PROMPTS = ["a cat", "tac a"]


@pytest.fixture
def image_reward(tiny_text_encoder) -> ImageTextReward:
    tower = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
    }
    tokenizer = tiny_text_encoder.tokenizer
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 24,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": 0,
    }
    vision = {"image_size": 8, "patch_size": 4}
    config = CLIPConfig(text_config=tower | text, vision_config=tower | vision, projection_dim=8)
    return ImageTextReward(randomise(CLIPModel(config), seed=4), tokenizer)


@pytest.fixture
def tiny_viclip(tiny_text_encoder) -> ViCLIP:
    config = ViCLIPConfig(
        size=8,
        patch=4,
        num_frames=2,
        width=16,
        layers=1,
        heads=2,
        vocabulary=len(tiny_text_encoder.tokenizer),
        length=24,
        text_width=16,
        text_layers=1,
        text_heads=2,
        embed=8,
    )
    return randomise(ViCLIP(config), seed=5)


@pytest.fixture
def video_reward(tiny_viclip, tiny_text_encoder) -> VideoTextReward:
    return VideoTextReward(tiny_viclip, tiny_text_encoder.tokenizer)


def random_frames(count: int, frames: int, height: int = 8, width: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(count, frames, 3, height, width, generator=generator)


def published_viclip(recorded: Golden) -> ViCLIP:
    vision, text = recorded.metadata("vision_config"), recorded.metadata("text_config")
    model = ViCLIP(
        ViCLIPConfig(
            size=vision["input_resolution"],
            patch=vision["patch_size"],
            num_frames=vision["num_frames"],
            width=vision["width"],
            layers=vision["layers"],
            heads=vision["heads"],
            vocabulary=text["vocab_size"],
            length=text["context_length"],
            text_width=text["transformer_width"],
            text_layers=text["transformer_layers"],
            text_heads=text["transformer_heads"],
            embed=text["embed_dim"],
        )
    )
    model.load_state_dict(recipe_weights(recorded, temp=0.01))
    return model.eval().requires_grad_(False).double()


def test_viclip_is_in_parity_with_the_published_implementation(golden):
    """Both encoders, the score and its gradient, in float64."""
    recorded = golden("viclip_tiny")
    model = published_viclip(recorded)
    frames = recorded["frames"].double().requires_grad_(True)

    videos = model.vision_encoder(frames)
    texts = model.text_encoder(recorded["text_ids"].long())
    score = cosine_similarity(videos, texts)
    score.sum().backward()

    assert_close(videos, recorded["video_features_raw__f64"], rtol=0, atol=1e-12)
    for found, name, tolerance in [
        (texts, "text_features_raw", 2e-6),
        (normalize(videos), "video_features", 2e-6),
        (score, "score", 2e-6),
        (frames.grad, "grad_frames", 1e-7),
    ]:
        assert_close(found, recorded[name].double(), rtol=0, atol=tolerance)


def test_viclips_tokens_are_in_parity_with_the_published_ones(golden):
    recorded = golden("viclip_tiny")
    tokenizer = clip_tokenizer()
    tokenizer.model_max_length = recorded.metadata("text_config")["context_length"]

    ids = tokenize(tokenizer, recorded.metadata("prompts"))

    assert torch.equal(ids, recorded["text_ids"].long())


def draw_waves(height: int, width: int) -> torch.Tensor:
    """Draw the two recorded pictures (2, 3, height, width), in float64."""
    y = torch.arange(height, dtype=torch.float64)[:, None] / (height - 1)
    x = torch.arange(width, dtype=torch.float64)[None] / (width - 1)
    waves = [
        torch.sin(2 * np.pi * ((3 + k) * y + (5 + c) * x * (1 + k) + 0.37 * c))
        for k in range(2)
        for c in range(3)
    ]
    return (0.5 + 0.5 * torch.stack(waves)).unflatten(0, (2, 3))


@pytest.mark.parametrize("reward", ["hps", "clip", "pick", "image_reward", "viclip"])
@pytest.mark.parametrize(("height", "width"), [(320, 512), (40, 64)])
def test_prepared_pictures_are_in_parity_with_the_published_rewards(height, width, reward, golden):
    """Pixels and means.

    Computed in float64. The recording rounded the coordinates of its pictures to float32, which
    moves pixels by up to 7e-6, and normalised ones by up to 2.5e-5.
    """
    recorded, images = golden("reward_preprocess"), draw_waves(height, width)
    name = f"{height}x{width}"
    assert_close(
        images[..., ::11, ::11], recorded[f"{name}/input_strided11"].double(), rtol=0, atol=1e-5
    )

    if reward == "hps":
        squares = letterbox(images, 224)
    elif reward in ("clip", "pick"):
        squares = stretch(images, 224)
    elif reward == "image_reward":
        squares = center_crop(scale_short_side(images, 224))
    else:
        top, left, *_ = recorded[f"{name}/viclip_crop_top_left_h_w"].tolist()
        squares = scale_short_side(images, 224)[..., top : top + 224, left : left + 224]
    if reward == "viclip":
        pixels = prepare_videos(squares[:, None], 224)[:, 0]
    else:
        pixels = normalise(squares, CLIP_MEAN, CLIP_STD)

    assert pixels.shape == (2, 3, 224, 224)
    strided = recorded[f"{name}/{reward}_strided11"].double()
    assert_close(pixels[..., ::11, ::11], strided, rtol=0, atol=3e-5)
    means = pixels.mean((2, 3)), pixels.abs().mean((2, 3))
    for ours, kind in zip(means, ("mean", "absmean"), strict=True):
        assert_close(ours, recorded[f"{name}/{reward}_{kind}"].double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("height", "width", "bars"), [(320, 512, (42, 0)), (256, 256, (0, 0)), (576, 1024, (49, 0))]
)
def test_a_wide_picture_gets_black_bars(height, width, bars):
    fitted = letterbox(torch.ones(1, 3, height, width), 224)[0, 0]

    inside = fitted[bars[0] : 224 - bars[0], bars[1] : 224 - bars[1]]
    assert fitted.shape == (224, 224) and (inside > 0.99).all()
    assert fitted.sum().item() == pytest.approx(inside.sum().item())


def test_the_middle_of_a_wide_picture_is_cut_out():
    images = torch.arange(6.0).expand(1, 3, 2, 6)

    assert center_crop(images)[0, 0].tolist() == [[2, 3], [2, 3]]


def test_an_image_reward_is_the_mean_over_the_frames(image_reward):
    frames = random_frames(2, 3)

    together = image_reward(frames, PROMPTS)

    single = torch.stack([image_reward(frames[:, [f]], PROMPTS) for f in range(3)])
    assert_close(together, single.mean(dim=0))


@pytest.mark.parametrize("name", ["image_reward", "video_reward"])
def test_every_video_is_scored_against_its_own_prompt(name, request):
    reward = request.getfixturevalue(name)
    frames = random_frames(2, 2)

    together = reward(frames, PROMPTS)

    apart = torch.cat([reward(frames[i : i + 1], PROMPTS[i : i + 1]) for i in range(2)])
    assert_close(together, apart)
    assert not torch.allclose(together, reward(frames, PROMPTS[::-1]), atol=1e-3)


@pytest.mark.parametrize("name", ["image_reward", "video_reward"])
def test_a_missing_prompt_is_refused(name, request):
    with pytest.raises(ValueError, match="2 prompts"):
        request.getfixturevalue(name)(random_frames(2, 2), PROMPTS[:1])


def test_a_video_reward_takes_its_own_number_of_frames_only(video_reward):
    with pytest.raises(ValueError, match="2 frames a video, got 2 and 3"):
        video_reward(random_frames(2, 3), PROMPTS)


def test_a_video_reward_depends_on_the_order_of_the_frames(video_reward):
    frames = random_frames(1, 2)

    assert not torch.allclose(
        video_reward(frames, PROMPTS[:1]), video_reward(frames.flip(1), PROMPTS[:1]), atol=1e-4
    )


@pytest.mark.parametrize("name", ["image_reward", "video_reward"])
def test_a_prompt_is_embedded_once_and_scored_the_same_in_any_company(name, request):
    reward, calls = request.getfixturevalue(name), []
    text = reward.model.text_model if name == "image_reward" else reward.model.text_encoder
    text.register_forward_hook(lambda *call: calls.append(1))
    frames = random_frames(2, 2)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        reward(frames, PROMPTS[::-1])  # what it remembers can be used in training, too

    together = reward(frames.requires_grad_(True), PROMPTS)
    together.sum().backward()

    assert len(calls) == 2
    fresh = reward(frames, [PROMPTS[0], "another"])
    assert len(calls) == 3
    assert torch.equal(fresh[0], together[0])
    reward.double()(frames.double(), PROMPTS)
    assert len(calls) == 5  # other weights


def test_only_the_prompts_last_used_are_remembered():
    embedded = []

    def embed(prompts):
        embedded.extend(prompts)
        return torch.zeros(len(prompts), 1)

    remember = cache_texts(embed, torch.nn.Linear(1, 1), size=2)
    for prompt in "abaca":
        remember([prompt])

    assert embedded == ["a", "b", "c"]
    remember(["b"])
    assert embedded == ["a", "b", "c", "b"]


def test_squares_are_drawn_for_each_video_and_reach_all_of_the_width():
    frames = torch.arange(10.0).expand(2, 3, 3, 4, 10)
    generator, lefts = torch.Generator().manual_seed(0), []

    for _ in range(40):
        squares = draw_squares(frames, generator)
        assert squares.shape == (2, 3, 3, 4, 4)
        assert (squares == squares[:, :1, :1, :1]).all()  # one place in all frames of a video
        lefts.append(tuple(squares[:, 0, 0, 0, 0].int().tolist()))

    assert {left for pair in lefts for left in pair} == set(range(7))
    assert any(first != second for first, second in lefts)


def test_a_frame_that_two_rewards_score_is_decoded_once(tiny_vae, monkeypatch):
    clean, decoded, seen = torch.randn(2, 4, 6, 4, 4), [], {}
    decode = tiny_vae.decode
    monkeypatch.setattr(tiny_vae, "decode", lambda z: decoded.append(len(z)) or decode(z))

    def score(frames, prompts, name):
        seen[name] = frames
        return frames.mean(dim=(1, 2, 3, 4))

    chosen = {"some": torch.tensor([4, 1]), "all": torch.arange(6)}
    rewards = [
        WeightedReward(
            name=name,
            model=partial(score, name=name),
            weight=1.0,
            frames=len(frames),
            select=lambda available, count, generator, frames=frames: frames,
        )
        for name, frames in chosen.items()
    ]
    mix_rewards(clean, PROMPTS, tiny_vae, rewards, torch.Generator())

    assert sum(decoded) == 12
    whole = decode_latents(tiny_vae, clean)
    for name, frames in chosen.items():
        assert_close(seen[name], whole[:, frames])


def test_the_frames_of_each_video_are_drawn_for_it_alone(tiny_vae):
    one = torch.randn(1, 4, 6, 4, 4)
    seen = []
    reward = WeightedReward(
        name="one",
        model=lambda frames, prompts: seen.append(frames) or frames.mean(dim=(1, 2, 3, 4)),
        weight=1.0,
        frames=3,
    )

    mix_rewards(torch.cat([one, one]), PROMPTS, tiny_vae, [reward], torch.Generator())

    [[first, second]] = seen
    assert not torch.equal(first, second)


def test_stretched_pictures_are_smoothed_before_they_shrink():
    stripes = torch.zeros(1, 3, 64, 64)
    stripes[..., ::4] = 1.0

    assert_close(stretch(stripes, 16)[..., 2:-2, 2:-2], torch.full((1, 3, 12, 12), 0.25))


def test_a_random_crop_is_drawn_by_the_generator_of_the_batch(tiny_vae):
    clean, seen = torch.randn(2, 4, 2, 4, 8), []

    def score(frames, prompts):
        seen.append(frames)
        return frames.mean(dim=(1, 2, 3, 4))

    for seed in (0, 0, 1):
        reward = WeightedReward(name="", model=score, weight=1.0, frames=2, random_crop=True)
        mix_rewards(clean, PROMPTS, tiny_vae, [reward], torch.Generator().manual_seed(seed))

    assert seen[0].shape[-2:] == (8, 8)
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])


def kept_bytes(compute, *arguments):
    """Return what a function computes, and how much of it is kept for the backward pass."""
    kept = []

    def keep(tensor):
        kept.append(tensor.nbytes)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        return compute(*arguments), sum(kept)


def test_a_reward_that_recomputes_has_the_same_gradient_and_keeps_less(image_reward, video_reward):
    for reward in (image_reward, video_reward):
        found = []
        for _ in range(2):
            frames = random_frames(2, 2).requires_grad_(True)
            scores, kept = kept_bytes(reward, frames, PROMPTS)
            scores.sum().backward()
            found.append((kept, scores.detach(), frames.grad))
            recompute_blocks(reward)
        (before, score, gradient), (after, again, recomputed) = found

        assert gradient.abs().sum() > 0
        assert torch.equal(score, again) and torch.equal(gradient, recomputed)
        assert after < 0.6 * before


def test_a_saved_viclip_is_the_same_when_loaded(tiny_viclip, tmp_path):
    save_viclip(tiny_viclip, tmp_path)

    loaded = load_viclip(tmp_path)

    assert loaded.config == tiny_viclip.config
    frames = random_frames(1, 2)
    assert_close(
        loaded.vision_encoder(frames), tiny_viclip.vision_encoder(frames), atol=2e-2, rtol=0
    )


def test_frames_for_the_image_reward_are_distinct():
    for seed in range(20):
        frames = draw_frames(16, 6, torch.Generator().manual_seed(seed))
        assert len(set(frames.tolist())) == 6 and max(frames) < 16


def test_frames_for_the_video_reward_are_the_even_or_the_odd_ones():
    seen = {
        tuple(stride_frames(16, 8, torch.Generator().manual_seed(seed)).tolist())
        for seed in range(20)
    }

    assert seen == {tuple(range(0, 16, 2)), tuple(range(1, 16, 2))}


@pytest.mark.parametrize("pick", [draw_frames, stride_frames])
def test_more_frames_than_there_are_is_refused(pick):
    with pytest.raises(ValueError, match="from 1 to 4"):
        pick(4, 5, torch.Generator())


def test_the_loss_is_the_weighted_sum_of_any_number_of_rewards(tiny_vae):
    clean = torch.zeros(2, 4, 4, 4, 4)
    shapes, scores = [], {"image": [0.1, 0.3], "other": [1.0, 2.0], "video": [0.5, 0.7]}

    def score(frames, prompts, name):
        shapes.append(frames.shape[1])
        return torch.tensor(scores[name])

    image, other, video = (
        WeightedReward(name=name, model=partial(score, name=name), weight=weight, frames=frames)
        for name, weight, frames in (("image", 1.5, 1), ("other", 0.1, 3), ("video", 2.0, 2))
    )

    def mix(*rewards):
        return mix_rewards(clean, PROMPTS, tiny_vae, rewards, torch.Generator())

    assert_close(mix().loss, torch.tensor(0.0))
    assert_close(mix(image, video).loss, torch.tensor(-(1.5 * 0.2 + 2.0 * 0.6)))
    all_three = mix(image, other, video)
    assert_close(all_three.loss, torch.tensor(-(1.5 * 0.2 + 0.1 * 1.5 + 2.0 * 0.6)))
    assert {name: score.tolist() for name, score in all_three.scores.items()} == {
        name: pytest.approx(values) for name, values in scores.items()
    }
    assert shapes[-3:] == [1, 3, 2]


def test_each_reward_moves_the_adapters_and_nothing_else(
    image_reward, video_reward, tiny_unet, tiny_vae, schedule
):
    student = add_lora(student_of(tiny_unet).requires_grad_(False), rank=2)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 2, 4, 4, generator=generator)
    embeds = torch.randn(2, 5, 16, generator=generator)
    guidance = draw_guidance(2, generator)
    batch = draw_batch(latents, embeds, embeds, guidance, grid=SolverGrid(), generator=generator)
    target, noisy = make_unet(time_cond_proj_dim=256), batch.add_noise(schedule)
    estimate = consistency_loss(student, target, tiny_unet, noisy, batch, schedule)
    # Latents of random networks saturate the decoder, and saturated pixels pass no gradient.
    clean = 0.05 * estimate.clean
    for reward in (image_reward, video_reward):
        student.zero_grad()
        mixture = [WeightedReward(name="", model=reward, weight=1.0, frames=2)]

        mixed = mix_rewards(clean, PROMPTS, tiny_vae, mixture, generator)
        mixed.loss.backward(retain_graph=True)

        moved = {n for n, p in student.named_parameters() if p.grad is not None and p.grad.any()}
        assert any("lora_B" in name for name in moved)
        assert "time_embedding.cond_proj.weight" in moved
        assert all("lora_" in name or "cond_proj" in name for name in moved)
        frozen = [*tiny_unet.parameters(), *tiny_vae.parameters(), *reward.parameters()]
        assert all(p.grad is None for p in frozen)
