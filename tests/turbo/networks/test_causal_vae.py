"""The causal VAE: how frames and latents correspond, and gradients through a window of frames."""

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch.testing import assert_close

from training.tiny import wan_parts
from turbo.networks.vae import (
    decode_chosen,
    decode_latents,
    decode_window,
    encode_frames,
    first_frame,
    latent_index,
    latent_shape,
)
from turbo.rewards.feedback import WeightedReward, Window, mix_rewards


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLWan:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = wan_parts()["vae"]
    return made.double().eval().requires_grad_(False)


def draw_latents(frames: int = 4, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 4, frames, 2, 2, generator=generator, dtype=torch.float64)


def test_the_first_latent_holds_one_frame_and_the_others_four(vae):
    assert [latent_index(vae, frame) for frame in range(10)] == [0, 1, 1, 1, 1, 2, 2, 2, 2, 3]
    assert [first_frame(vae, latent) for latent in range(4)] == [0, 1, 5, 9]
    assert latent_shape(vae, 13, 16, 24) == (4, 4, 2, 3)


def test_encoding_and_decoding_are_those_of_diffusers(vae):
    frames = torch.rand(2, 9, 3, 16, 16, dtype=torch.float64)
    mean, std = (
        torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )

    latents = encode_frames(vae, frames)
    decoded = decode_latents(vae, latents)

    theirs = vae.encode(2 * frames.transpose(1, 2) - 1).latent_dist.mode()
    assert_close(latents * std + mean, theirs, rtol=0, atol=1e-12)
    assert_close(decoded, vae.decode(theirs).sample.transpose(1, 2) / 2 + 0.5, rtol=0, atol=1e-12)


@pytest.mark.parametrize("count", [4, 8])
def test_other_numbers_of_frames_are_refused(count, vae):
    with pytest.raises(ValueError, match="Give it "):
        encode_frames(vae, torch.zeros(1, count, 3, 16, 16, dtype=torch.float64))


@pytest.mark.parametrize("recompute", [False, True])
def test_chosen_frames_are_those_of_the_whole_video(vae, recompute):
    latents = draw_latents().requires_grad_()
    chosen = torch.tensor([[7, 2], [12, 11]])

    [found] = decode_chosen(vae, latents, [chosen], recompute=recompute)

    whole = decode_latents(vae, latents.detach())
    assert_close(found, torch.stack([whole[0, chosen[0]], whole[1, chosen[1]]]))


def gradient(vae, latents: torch.Tensor, first: int, *, recompute: bool = False) -> torch.Tensor:
    """Return the gradient of a score of the frames of the latents from `first` on."""
    latents = latents.clone().requires_grad_()
    score = decode_window(vae, latents, first, clamp=False, recompute=recompute).sin().sum()
    return torch.autograd.grad(score, latents)[0]


def test_a_gradient_reaches_the_window_alone(vae):
    found = gradient(vae, draw_latents(), 2)

    assert found[:, :, :2].abs().max() == 0
    assert found[:, :, 2:].abs().amin(dim=(1, 3, 4)).min() > 0


def test_the_gradient_within_the_window_is_exact(vae):
    """The latents of the window have their whole gradient; only the history's is left out."""
    latents = draw_latents()
    whole = latents.clone().requires_grad_()
    frames = decode_latents(vae, whole, clamp=False)[:, first_frame(vae, 2) :]
    [expected] = torch.autograd.grad(frames.sin().sum(), whole)

    found = gradient(vae, latents, 2)

    assert_close(found[:, :, 2:], expected[:, :, 2:])
    assert expected[:, :, :2].abs().max() > 0


def test_recomputation_changes_no_gradient(vae):
    latents = draw_latents()

    assert_close(gradient(vae, latents, 1, recompute=True), gradient(vae, latents, 1))


def kept_bytes(run) -> int:
    """Return the bytes that autograd keeps for the backward pass."""
    sizes: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        held = run()
    assert held is not None
    return sum(sizes.values())


def test_a_window_needs_the_memory_of_its_own_latents(vae):
    latents = draw_latents(8).requires_grad_()

    whole = kept_bytes(lambda: decode_window(vae, latents, 0))
    last_two = kept_bytes(lambda: decode_window(vae, latents, 6))

    assert last_two < 0.35 * whole


@pytest.mark.parametrize("at_start", [True, False])
def test_a_reward_selects_within_its_window(vae, at_start):
    seen = []

    def score(frames: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        seen.append(frames.shape)
        return frames.mean(dim=(1, 2, 3, 4))

    latents = draw_latents().requires_grad_()
    reward = WeightedReward(
        name="", model=score, weight=1.0, frames=3, window=Window(5, at_start=at_start)
    )

    mixed = mix_rewards(latents, ["a", "b"], vae, [reward], torch.Generator().manual_seed(3))
    [found] = torch.autograd.grad(mixed.loss, latents)

    assert seen == [(2, 3, 3, 16, 16)]
    reached = found.abs().amax(dim=(1, 3, 4)) > 0
    if at_start:
        assert not reached[:, 2:].any()  # frames 0 to 4 are in latents 0 and 1
    assert reached.any(dim=1).all()
    with pytest.raises(ValueError):
        Window(14).draw(13, torch.Generator())
