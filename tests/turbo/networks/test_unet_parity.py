"""The one UNet against everything recorded of the published networks, through the converter.

Networks at full width are too large to record; those recorded have the published layers at smaller
widths. In the `tiny` ones some layers cannot be seen in the output; in the `recipe` ones every
parameter can. So float32 is compared on the `recipe` ones, double precision on both.
"""

from functools import cache
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from tests.support.golden import Golden, modelscope_unet, shapes_of, variant_of, videocrafter_unet
from tests.support.tiny_models import make_unet
from turbo.convert.unet import map_videocrafter_unet
from turbo.networks.unet import ConditionedTimestepEmbedding, VideoUNet
from turbo.types import Conditioning

pytestmark = pytest.mark.filterwarnings("ignore:.*should be kept in float32")
SINGLE = 2e-5  # absolute, as recorded
DOUBLE = 1e-12


@pytest.fixture
def recorded(file, golden) -> Golden:
    return golden(file)


@pytest.fixture
def weights(recorded, file) -> dict[str, torch.Tensor]:
    """Return a copy: a network takes its weights as they are, and one test changes them."""
    return dict(_weights(recorded.folder / f"{file}.safetensors"))


@cache
def _weights(path: Path) -> dict[str, torch.Tensor]:
    return Golden(path).weights()


def _double(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.double() for name, tensor in weights.items()}


def _run_videocrafter(
    unet: VideoUNet, recorded: Golden, case: str, noisy: torch.Tensor | None = None
) -> torch.Tensor:
    """Call a network as the recorded case did; `noisy` decides of batch and precision."""
    told = recorded.metadata("cases")[case]
    arguments = told.get("kwargs", {"v1": ["timestep_cond"]}.get(case, []))
    if case == "v2":
        arguments = ["timestep_cond", "motion_cond"]
    noisy = recorded["x"] if noisy is None else noisy
    batch = len(noisy)
    conditioning = Conditioning(
        guidance=recorded["timestep_cond"][:batch] if "timestep_cond" in arguments else None,
        motion=recorded["motion_cond"][:batch] if "motion_cond" in arguments else None,
        fps=torch.tensor([told["fps"]] * batch),
    )
    return unet(noisy, recorded["timesteps"][:batch], recorded["context"][:batch], conditioning)


def _run_modelscope(
    unet: VideoUNet, recorded: Golden, noisy: torch.Tensor, guidance: torch.Tensor | None
) -> torch.Tensor:
    batch = len(noisy)
    return unet(
        noisy,
        recorded["timesteps"][:batch],
        recorded["encoder_hidden_states"][:batch],
        Conditioning(guidance=guidance),
    )


@pytest.mark.parametrize("file", ["vc2_unet_recipe"])
@pytest.mark.parametrize("variant", ["teacher", "v1", "v2"])
def test_network_has_parity_with_videocrafter(recorded, weights, variant):
    cases = [case for case in recorded.metadata("cases") if case.split("_")[0] == variant]
    unet = videocrafter_unet(recorded, variant, weights)

    for case in cases:
        output = _run_videocrafter(unet, recorded, case)

        assert_close(output, recorded[f"{case}/out"], rtol=0, atol=SINGLE, msg=case)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["vc2_unet_tiny", "vc2_unet_recipe"])
@pytest.mark.parametrize("variant", ["teacher", "v1", "v2"])
def test_network_has_parity_with_videocrafter_in_double_precision(recorded, weights, variant):
    """Where float32 shows only rounding, float64 shows the formula."""
    cases = [case for case in recorded.metadata("cases") if case.split("_")[0] == variant]
    unet = videocrafter_unet(recorded, variant, _double(weights))

    for case in cases:
        output = _run_videocrafter(unet, recorded, case, recorded["x"].double())

        assert_close(output, recorded[f"{case}/out__f64"], rtol=0, atol=DOUBLE, msg=case)


@pytest.mark.parametrize("file", ["vc2_unet_tiny"])
@pytest.mark.parametrize("frames", [1, 16, 19])
def test_network_has_parity_with_videocrafter_at_other_lengths(recorded, weights, frames):
    """One frame too passes its temporal layers, unlike ModelScope's."""
    unet = videocrafter_unet(recorded, "v1", weights)

    output = unet(
        recorded[f"v1_T{frames}/x"],
        torch.tensor([499]),
        recorded["context"][:1],
        Conditioning(guidance=recorded["timestep_cond"][:1], fps=torch.tensor([16])),
    )

    assert_close(output, recorded[f"v1_T{frames}/out"], rtol=0, atol=SINGLE)


@pytest.mark.slow
@pytest.mark.parametrize("file, tolerance", [("vc2_unet_tiny", 5e-5), ("vc2_unet_recipe", 1e-5)])
def test_gradients_have_parity_with_videocrafter(recorded, weights, tolerance):
    weights = variant_of(weights, "v2")
    part = map_videocrafter_unet(shapes_of(weights))
    unet = part.filled(weights).requires_grad_(True)
    noisy = recorded["x"].requires_grad_()

    output = _run_videocrafter(unet, recorded, "v2", noisy)
    (output * recorded["v2_backward/gout"]).sum().backward()

    expected = recorded["v2_backward/grad_x"]
    assert_close(noisy.grad, expected, rtol=0, atol=2e-5 * expected.abs().max().item())
    ours = {part.origins[name].name: p.grad for name, p in unet.named_parameters()}
    names = recorded.metadata("param_grad_names")
    norms = recorded["v2_backward/param_grad_norms"]
    assert set(names) == set(ours)
    for name, norm in zip(names, norms.tolist(), strict=True):
        if norm > 1e-3:  # below, rounding; the recorded ones were summed in float32 too
            assert ours[name].norm().item() == pytest.approx(norm, rel=tolerance), name


@pytest.mark.parametrize("file", ["ms_unet_recipe"])
@pytest.mark.parametrize("variant, case", [("teacher", "teacher"), ("v1", "student")])
def test_network_has_parity_with_modelscope(recorded, weights, variant, case):
    unet = modelscope_unet(recorded, variant, weights)
    guidance = None if variant == "teacher" else recorded["timestep_cond"]

    output = _run_modelscope(unet, recorded, recorded["x"], guidance)

    assert_close(output, recorded[f"{case}/out"], rtol=0, atol=SINGLE)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["ms_unet_tiny", "ms_unet_recipe"])
@pytest.mark.parametrize("variant, case", [("teacher", "teacher"), ("v1", "student")])
def test_network_has_parity_with_modelscope_in_double_precision(recorded, weights, variant, case):
    unet = modelscope_unet(recorded, variant, _double(weights))
    guidance = None if variant == "teacher" else recorded["timestep_cond"]

    output = _run_modelscope(unet, recorded, recorded["x"].double(), guidance)

    assert_close(output, recorded[f"{case}/out__f64"], rtol=0, atol=DOUBLE)


@pytest.mark.parametrize("file", ["ms_unet_recipe"])
@pytest.mark.parametrize("case", ["student_T1", "student_oddhw"])
def test_network_has_parity_with_modelscope_at_other_sizes(recorded, weights, case):
    """One frame skips the temporal layers, as published; odd sizes are rounded up on the way."""
    unet = modelscope_unet(recorded, "v1", weights)

    output = _run_modelscope(unet, recorded, recorded[f"{case}/x"], recorded["timestep_cond"][:1])

    assert_close(output, recorded[f"{case}/out"], rtol=0, atol=SINGLE)


def test_sinusoids_of_timesteps_and_frame_rates_are_in_parity_with_the_published_ones(golden):
    recorded = golden("functions")
    names = recorded.names("timestep_embedding/")

    for name in names:
        width = int(name.partition("/")[2])
        embedding = ConditionedTimestepEmbedding(
            width, 8, guidance_dim=None, fps=True, motion=False
        )
        unet = make_unet()
        unet.time_proj.num_channels = width  # as a network of that width has it

        for project in (embedding.fps_proj, unet.time_proj):
            assert_close(project(recorded["t"]), recorded[name], rtol=0, atol=1e-4)
    assert names
