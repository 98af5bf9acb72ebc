"""The one UNet: sizes, conditioning, parity with the published networks, loading."""

import inspect
import logging

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from conftest import make_unet
from golden import modelscope_unet, videocrafter_unet
from turbo.consistency import bind_consistency_function
from turbo.sampling import few_step_timesteps, sample_latents
from turbo.unet import Conditioning, TemporalConv, VideoUNet


@pytest.mark.parametrize(
    "parameters, configuration",
    [
        (1_411_233_860, {}),
        (1_411_315_780, {"time_cond_proj_dim": 256}),
        (1_413_284_420, {"fps_conditioning": True}),
        (1_413_366_340, {"fps_conditioning": True, "time_cond_proj_dim": 256}),
        (
            1_413_653_060,
            {"fps_conditioning": True, "time_cond_proj_dim": 256, "motion_conditioning": True},
        ),
    ],
)
def test_configurations_have_the_published_sizes(parameters, configuration):
    with torch.device("meta"):
        unet = VideoUNet(**configuration)

    assert sum(parameter.numel() for parameter in unet.parameters()) == parameters


@pytest.mark.parametrize("batch, channels, frames", [(1, 8, 1), (2, 8, 5)])
@pytest.mark.parametrize("width", [3, 1])
def test_temporal_conv_is_a_conv3d(batch, channels, frames, width):
    reference = nn.Conv3d(channels, 6, (width, 1, 1), padding=(width // 2, 0, 0))
    ours = TemporalConv(channels, 6, (width, 1, 1), padding=(width // 2, 0, 0))
    ours.load_state_dict(reference.state_dict())
    hidden = torch.randn(batch, channels, frames, 4, 3)

    assert_close(ours(hidden), reference(hidden), rtol=0, atol=1e-5)


def test_every_temporal_convolution_is_quick(tiny_unet):
    slow = [module for module in tiny_unet.modules() if type(module) is nn.Conv3d]

    assert not slow
    assert any(isinstance(module, TemporalConv) for module in tiny_unet.modules())


def _inputs(batch=1):
    return torch.randn(batch, 4, 3, 4, 4), torch.tensor([519] * batch), torch.randn(batch, 6, 16)


def test_frame_rate_changes_the_output():
    unet, inputs = make_unet(fps_conditioning=True), _inputs()

    slow, fast = (unet(*inputs, Conditioning(fps=torch.tensor([fps]))) for fps in (8, 16))

    assert not torch.allclose(slow, fast)


def test_motion_of_zero_is_not_the_absence_of_motion():
    """As in the published v2: without a motion embedding its combining layer is skipped."""
    unet = make_unet(time_cond_proj_dim=256, motion_conditioning=True)
    inputs, guidance = _inputs(), torch.randn(1, 256)
    zero = torch.cat([torch.zeros(1, 128), torch.ones(1, 128)], dim=1)

    without = unet(*inputs, Conditioning(guidance=guidance))
    with_zero = unet(*inputs, Conditioning(guidance=guidance, motion=zero))

    assert not torch.allclose(without, with_zero)


@pytest.mark.parametrize(
    "configuration, conditioning, message",
    [
        ({}, {"guidance": torch.zeros(1, 256)}, "Expected no guidance embedding"),
        ({"fps_conditioning": True}, {}, "Expected an fps for this network, got None."),
        ({}, {"fps": torch.tensor([8])}, "Expected no fps for this network, got one."),
        (
            {"time_cond_proj_dim": 256},
            {"guidance": torch.zeros(1, 256), "motion": torch.zeros(1, 256)},
            "Expected a motion embedding beside a guidance embedding",
        ),
    ],
)
def test_conditioning_a_network_was_not_built_for_is_refused(configuration, conditioning, message):
    with pytest.raises(ValueError, match=message):
        make_unet(**configuration)(*_inputs(), Conditioning(**conditioning))


def test_saved_network_loads_without_complaint(tmp_path, caplog):
    unet = make_unet(time_cond_proj_dim=256, patch_size=2)
    unet.save_pretrained(tmp_path)
    logging.getLogger("diffusers").addHandler(caplog.handler)

    loaded = VideoUNet.from_pretrained(tmp_path, local_files_only=True)

    logging.getLogger("diffusers").removeHandler(caplog.handler)
    assert not caplog.records
    for name, tensor in unet.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    arguments = set(inspect.signature(VideoUNet.__init__).parameters) - {"self"}
    assert {name for name in loaded.config if not name.startswith("_")} == arguments


def test_patches_leave_the_shape_of_latents():
    unet = make_unet(patch_size=2)
    noisy = torch.randn(1, 4, 3, 8, 8)

    assert unet(noisy, torch.tensor([5]), torch.randn(1, 6, 16)).shape == noisy.shape


def test_dropout_is_off_in_eval_mode(tiny_unet):
    inputs = _inputs()

    assert torch.equal(tiny_unet(*inputs), tiny_unet(*inputs))


@pytest.mark.parametrize("variant", ["teacher", "v1"])
def test_network_agrees_with_published_modelscope(variant, golden):
    recorded = golden("ms_unet_tiny")
    unet = modelscope_unet(recorded, variant)
    guidance = None if variant == "teacher" else recorded["timestep_cond"]

    output = unet(
        recorded["x"],
        recorded["timesteps"],
        recorded["encoder_hidden_states"],
        Conditioning(guidance=guidance),
    )

    expected = recorded["teacher/out" if variant == "teacher" else "student/out"]
    assert_close(output, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "case, variant",
    [("teacher", "teacher"), ("teacher_fps8", "teacher"), ("v1", "v1"), ("v1_fps24", "v1")]
    + [("v2", "v2"), ("v2_nomotion", "v2")],
)
def test_network_agrees_with_published_videocrafter(case, variant, golden):
    recorded = golden("vc2_unet_tiny")
    unet = videocrafter_unet(recorded, variant)
    told = recorded.metadata("cases")[case]
    conditioning = Conditioning(
        guidance=recorded["timestep_cond"] if "timestep_cond" in told["kwargs"] else None,
        motion=recorded["motion_cond"] if "motion_cond" in told["kwargs"] else None,
        fps=torch.tensor([told["fps"]] * 2),
    )

    output = unet(recorded["x"], recorded["timesteps"], recorded["context"], conditioning)

    assert_close(output, recorded[f"{case}/out"], rtol=0, atol=2e-5)


def test_four_steps_agree_with_the_published_pipeline(golden, schedule, monkeypatch):
    recorded = golden("pipeline_ms_tiny")
    noises = iter(recorded["noises"])
    monkeypatch.setattr("turbo.sampling.draw_noise", lambda *_: next(noises))
    unet = modelscope_unet(golden("ms_unet_tiny"), "v1")
    function = bind_consistency_function(
        unet, schedule, recorded["prompt_embeds"], torch.tensor([7.5])
    )

    *_, latents = sample_latents(
        function, schedule, recorded["latents"], few_step_timesteps(4, 50), []
    )

    assert_close(latents, recorded["denoised"], rtol=1e-4, atol=1e-4)
