"""Latents: scaling, chunks, gradients."""

from copy import deepcopy

import pytest
import torch
from torch.testing import assert_close

from turbo.networks.vae import decode_latents, encode_frames, quicken_on_cpu


@pytest.fixture
def frames():
    return torch.rand(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_latents_are_scaled_by_shift_then_factor(tiny_vae, frames):
    images = 2 * frames[1, :1] - 1

    latents = encode_frames(tiny_vae, frames)

    mode = tiny_vae.encode(images).latent_dist.mode()
    assert latents.shape == (2, 4, 3, 4, 4)
    assert_close(latents[1, :, 0], (mode[0] - 0.25) * 0.5, rtol=0, atol=1e-5)


def test_decoding_undoes_the_scaling(tiny_vae, frames):
    latents = encode_frames(tiny_vae, frames)

    decoded = decode_latents(tiny_vae, latents)

    image = tiny_vae.decode(latents[1:, :, 0] / 0.5 + 0.25).sample[0]
    assert_close(decoded[1, 0], (image / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-5)


def test_a_vae_without_shift_has_none(tiny_vae, frames):
    shifted = encode_frames(tiny_vae, frames)

    tiny_vae.register_to_config(shift_factor=None)

    assert_close(encode_frames(tiny_vae, frames), shifted + 0.125, rtol=0, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 4, 6])
def test_chunks_change_nothing(tiny_vae, frames, chunk):
    latents = encode_frames(tiny_vae, frames)

    assert_close(encode_frames(tiny_vae, frames, chunk=chunk), latents, rtol=0, atol=1e-5)
    whole = decode_latents(tiny_vae, latents)
    assert_close(decode_latents(tiny_vae, latents, chunk=chunk), whole, rtol=0, atol=1e-5)


def test_a_quickened_vae_decodes_the_same_but_for_the_last_bits(tiny_vae, frames):
    latents = encode_frames(tiny_vae, frames)
    quick = quicken_on_cpu(deepcopy(tiny_vae))

    kernels = [weight for weight in quick.parameters() if weight.ndim == 4]
    assert kernels
    assert all(k.is_contiguous(memory_format=torch.channels_last) for k in kernels)
    expected = decode_latents(tiny_vae, latents)
    assert_close(decode_latents(quick, latents), expected, rtol=0, atol=1e-5)


def test_posterior_is_drawn_from_the_generator(tiny_vae, frames):
    def draw(seed):
        return encode_frames(tiny_vae, frames, torch.Generator().manual_seed(seed))

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_decoded_frames_lie_in_the_unit_range_and_pass_gradients(tiny_vae):
    latents = torch.randn(1, 4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    latents.requires_grad_()

    decoded = decode_latents(tiny_vae, latents)
    decoded.mean().backward()

    assert decoded.min() >= 0 and decoded.max() <= 1
    assert latents.grad.abs().sum() > 0


def test_decoding_without_clamping_keeps_what_the_clamp_cuts_off(tiny_vae, frames):
    latents = 20 * encode_frames(tiny_vae, frames)

    whole = decode_latents(tiny_vae, latents, clamp=False)

    assert whole.min() < 0 or whole.max() > 1
    assert_close(whole.clamp(0, 1), decode_latents(tiny_vae, latents))
