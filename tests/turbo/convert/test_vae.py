"""The published VAE: LDM's names, and those diffusers used then and uses now."""

import gzip
import json

import torch
from torch.testing import assert_close

from tests.support.golden import shapes_of
from turbo.convert.vae import map_diffusers_vae, map_latent_diffusion_vae
from turbo.networks.vae import decode_latents

PREFIX = "first_stage_model."


def test_full_size_names_and_shapes_are_the_published_ones(golden):
    folder = golden("vae_tiny").folder / "inventory"
    file = folder / "vc2_latentdiffusion_ckpt.json.gz"
    published = json.loads(gzip.decompress(file.read_bytes()))

    part = map_latent_diffusion_vae({n: tuple(s) for n, s in published.items()}, PREFIX)

    assert part.expected == {n: tuple(s) for n, s in published.items() if n.startswith(PREFIX)}
    assert part.parameters == 83_653_863
    assert part.network.config.scaling_factor == 0.18215


@torch.no_grad()
def test_converted_vae_parity(golden):
    recorded = golden("vae_tiny")
    weights = recorded.weights()
    vae = map_latent_diffusion_vae(shapes_of(weights)).filled(weights)

    posterior = vae.encode(recorded["encode/x"]).latent_dist
    decoded = vae.decode(recorded["decode/z"]).sample
    frames = decode_latents(vae, recorded["decode5d/latents"])

    assert_close(posterior.parameters, recorded["encode/moments"], rtol=0, atol=2e-5)
    assert_close(posterior.mode(), recorded["encode/mode"], rtol=0, atol=2e-5)
    sample = posterior.mean + posterior.std * recorded["encode/noise"]
    assert_close(sample, recorded["encode/sample"], rtol=0, atol=2e-5)
    assert_close(decoded, recorded["decode/out"], rtol=0, atol=2e-5)
    expected = (recorded["decode5d/out"] / 2 + 0.5).clamp(0, 1).transpose(1, 2)
    assert_close(frames, expected, rtol=0, atol=2e-5)


@torch.no_grad()
def test_converted_vae_parity_in_double_precision(golden):
    recorded = golden("vae_tiny")
    weights = {name: tensor.double() for name, tensor in recorded.weights().items()}
    vae = map_latent_diffusion_vae(shapes_of(weights)).filled(weights)

    decoded = vae.decode(recorded["decode/z"].double()).sample
    moments = vae.encode(recorded["encode/x"].double()).latent_dist.parameters

    assert_close(decoded, recorded["decode/out__f64"], rtol=0, atol=1e-12)
    assert_close(moments, recorded["encode/moments__f64"], rtol=0, atol=1e-12)


def test_both_names_diffusers_has_had_lead_to_the_same_tensors(golden):
    weights = golden("vae_tiny").weights()
    present = map_latent_diffusion_vae(shapes_of(weights)).rename(weights)
    former = {}
    for name, tensor in present.items():
        for now, then in {"to_q": "query", "to_k": "key", "to_v": "value"}.items():
            name = name.replace(f".{now}.", f".{then}.")
        former[name.replace(".to_out.0.", ".proj_attn.")] = tensor
    assert set(former) != set(present)

    for published in (present, former):
        renamed = map_diffusers_vae(shapes_of(published)).rename(published)

        assert_close(renamed, present, rtol=0, atol=0)
