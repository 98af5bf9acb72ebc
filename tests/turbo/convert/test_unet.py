"""The published UNets: every name, every shape, every configuration.

Their numbers are compared in test_turbo_unet_parity.py, through the same key maps.
"""

import gzip
import json

import pytest

from tests.support.golden import LACKING, shapes_of
from turbo.convert.unet import map_modelscope_unet, map_videocrafter_unet


def inventory(golden, name):
    """Return names and shapes of a full-size published network."""
    file = golden("vc2_unet_recipe").folder / "inventory" / f"{name}.json.gz"
    return {
        key: tuple(shape) for key, shape in json.loads(gzip.decompress(file.read_bytes())).items()
    }


@pytest.mark.parametrize(
    "name, parameters",
    [
        ("vc2_unet_teacher", 1_413_284_420),
        ("vc2_unet_v1_student", 1_413_366_340),
        ("vc2_unet_v2_student", 1_413_653_060),
        ("ms_unet_teacher", 1_411_233_860),
        ("ms_unet_student", 1_411_315_780),
    ],
)
def test_full_size_names_and_shapes_are_the_published_ones(name, parameters, golden):
    published = inventory(golden, name)
    find = map_videocrafter_unet if name.startswith("vc2") else map_modelscope_unet

    part = find(published)

    assert part.expected == published
    assert part.parameters == parameters
    assert set(part.network.config.block_out_channels) == {320, 640, 1280}
    assert part.network.config.attention_head_dim == 64


def test_key_map_is_the_published_one(golden):
    theirs_to_diffusers = inventory_map(golden)
    own = ("fps_embedding.", "motion_cond_proj.", "combine_proj.")

    part = map_videocrafter_unet(inventory(golden, "vc2_unet_v2_student"))

    for ours, origin in part.origins.items():
        expected = theirs_to_diffusers[origin.name]
        prefix = "time_embedding." if expected.startswith(own) else ""
        assert ours == f"{prefix}{expected}"


def inventory_map(golden):
    folder = golden("vc2_unet_recipe").folder / "inventory"
    file = folder / "vc2_unet_v2_key_map_to_diffusers.json.gz"
    return json.loads(gzip.decompress(file.read_bytes()))


def test_a_prefix_and_other_tensors_are_passed_over(golden):
    published = inventory(golden, "vc2_latentdiffusion_ckpt")
    prefix = "model.diffusion_model."

    part = map_videocrafter_unet(published, prefix)

    assert part.expected == {n: s for n, s in published.items() if n.startswith(prefix)}


def recorded_shapes(recorded):
    """Return the shapes of recorded weights, without drawing those of a recipe."""
    if "recipe" in recorded.file.metadata():
        return {n: tuple(shape) for n, shape in recorded.metadata("sd_shapes").items()}
    return shapes_of(recorded.weights())


@pytest.mark.parametrize("name", ["vc2_unet_tiny", "vc2_unet_recipe"])
@pytest.mark.parametrize("variant", ["teacher", "v1", "v2"])
def test_configuration_read_from_shapes_is_the_recorded_one(name, variant, golden):
    recorded = golden(name)
    sizes = recorded.metadata("config")
    published = {
        name: shape
        for name, shape in recorded_shapes(recorded).items()
        if not name.startswith(LACKING[variant])
    }

    config = map_videocrafter_unet(published).network.config

    widths = [sizes["model_channels"] * times for times in sizes["channel_mult"]]
    assert config.block_out_channels == widths
    assert config.layers_per_block == sizes["num_res_blocks"]
    assert config.attention_head_dim == sizes["num_head_channels"]
    assert config.cross_attention_dim == sizes["context_dim"]
    assert config.fps_conditioning
    guided = sizes["time_cond_proj_dim"] if variant != "teacher" else None
    assert config.time_cond_proj_dim == guided
    assert config.motion_conditioning == (variant == "v2")


def test_a_network_without_its_landmarks_is_refused_by_name(golden):
    published = inventory(golden, "vc2_unet_teacher")
    del published["middle_block.1.transformer_blocks.0.attn2.to_k.weight"]

    with pytest.raises(KeyError, match="middle_block.1.transformer_blocks.0.attn2.to_k.weight"):
        map_videocrafter_unet(published)
