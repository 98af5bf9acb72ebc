"""The one UNet: sizes, conditioning, parity with the published networks, loading."""

import inspect
import logging

import pytest
import torch
from diffusers import UNet3DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.testing import assert_close

from tests.support.tiny_models import make_unet
from turbo.networks.unet import TemporalConv, VideoUNet
from turbo.types import Conditioning


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


def test_an_attention_mask_is_refused_rather_than_ignored(tiny_unet):
    attention = tiny_unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    hidden = torch.zeros(1, 4, attention.to_q.in_features)

    with pytest.raises(ValueError, match="attention mask"):
        attention(hidden, attention_mask=torch.ones(1, 4, dtype=torch.bool))


def test_a_prompt_is_projected_once_per_video_with_the_same_result(tiny_unet):
    layer = tiny_unet.get_submodule("down_blocks.0.attentions.0.transformer_blocks.0.attn2")
    rows = []
    layer.to_k.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    inputs = torch.randn(2, 4, 3, 4, 4), torch.tensor([519, 19]), torch.randn(2, 6, 16)

    class EveryFrame(AttnProcessor):
        def __call__(self, *inputs, frames=1, temb=None, attention_mask=None, **context):
            return super().__call__(*inputs, **context)

    ours = tiny_unet(*inputs)
    for module in tiny_unet.modules():
        if isinstance(module, Attention):
            module.set_processor(EveryFrame())
    assert_close(ours, tiny_unet(*inputs), rtol=1e-4, atol=1e-5)
    assert rows == [2, 6]


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


def _dropping(network: nn.Module) -> dict[str, float]:
    """Return the places that drop values in training, each with its share."""
    drops = {n: m.p for n, m in network.named_modules() if isinstance(m, nn.Dropout)}
    return {name: share for name, share in drops.items() if share > 0}


def test_dropout_is_where_the_published_network_has_it_in_its_temporal_convolutions():
    with torch.device("meta"):
        ours, published = VideoUNet(), UNet3DConditionModel(attention_head_dim=64)

    assert _dropping(ours) == _dropping(published)
    assert len(_dropping(ours)) == 66
    assert all(".temp_convs." in name for name in _dropping(ours))
    assert _dropping(make_unet(temporal_dropout=0.0)) == {}


def _step(unet: VideoUNet) -> tuple[Tensor, dict[str, Tensor], int]:
    """Return output and gradients of a step in train mode, and the bytes kept between passes."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in unet.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    torch.manual_seed(0)  # noise, and the masks of dropout
    unet.train().zero_grad()
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        output = unet(*_inputs(batch=2))
    output.square().mean().backward()
    return output.detach(), {n: p.grad for n, p in unet.named_parameters()}, sum(kept.values())


@pytest.mark.parametrize("skip_temporal_for_one_frame", [False, True])
def test_recomputing_activations_keeps_every_number_and_a_part_of_the_memory(
    skip_temporal_for_one_frame,
):
    unet = make_unet(
        skip_temporal_for_one_frame=skip_temporal_for_one_frame, layers_per_block=2
    ).requires_grad_(True)
    output, gradients, memory = _step(unet)

    unet.enable_gradient_checkpointing()
    same_output, same_gradients, less = _step(unet)
    unet.disable_gradient_checkpointing()
    _, _, again = _step(unet)

    assert torch.equal(output, same_output)
    for name, gradient in gradients.items():
        assert torch.equal(gradient, same_gradients[name]), name
    assert less < 0.4 * memory
    assert again == memory


@pytest.mark.parametrize("frames, skips", [(1, True), (2, False)])
def test_one_frame_passes_a_modelscope_network_without_temporal_layers(frames, skips):
    with_them = make_unet()
    without = make_unet(skip_temporal_for_one_frame=True)
    noisy, timesteps, text = torch.randn(1, 4, frames, 4, 4), torch.tensor([5]), _inputs()[2]

    same = torch.equal(with_them(noisy, timesteps, text), without(noisy, timesteps, text))

    assert same == (not skips)


@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32])
def test_latents_come_back_in_their_own_precision(weights):
    unet = nn.Module.to(make_unet(time_cond_proj_dim=256, fps_conditioning=True), weights)
    conditioning = Conditioning(guidance=torch.randn(1, 256), fps=torch.tensor([8]))

    assert unet(*_inputs(), conditioning).dtype == torch.float32


@pytest.mark.parametrize("fps", [8, 8.0, torch.tensor(8), torch.tensor([8.0]), [8]])
def test_a_frame_rate_is_a_tensor_of_whole_numbers_per_video(fps):
    with pytest.raises(ValueError, match="fps"):
        Conditioning(fps=fps)


@pytest.mark.parametrize(
    "conditioning",
    [{"fps": torch.tensor([8])}, {"fps": torch.tensor([8, 8]), "guidance": torch.zeros(1, 256)}],
)
def test_one_condition_is_not_repeated_over_a_batch(conditioning):
    with pytest.raises(ValueError):
        make_unet(fps_conditioning=True, time_cond_proj_dim=256)(
            *_inputs(2), Conditioning(**conditioning)
        )
