"""Wan: the whole pipeline against diffusers' `WanPipeline` with tiny random weights."""

from dataclasses import replace

import pytest
import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from torch import nn
from torch.testing import assert_close

from demo.models import describe_models, load_model, read_request
from tests.support.tiny_models import randomise
from tests.turbo.models.test_placement import _activations as count_activations
from training.tiny import wan_parts, write_tiny
from turbo.diffusion.ddim import ddim_timesteps
from turbo.diffusion.distillation import (
    SolverGrid,
    consistency_loss,
    draw_batch,
    student_of,
    teacher_step,
)
from turbo.diffusion.schedule import FlowSchedule
from turbo.models.footprint import measure_footprint
from turbo.models.registry import MODELS
from turbo.networks.lora import LORA_FILE, add_lora, load_lora, merge_lora, save_lora
from turbo.networks.text import UMT5TextEncoder
from turbo.networks.vae import decode_latents
from turbo.networks.wan import WanNetwork
from turbo.pipeline import VideoPipeline
from turbo.types import Conditioning

STEPS = 4
FULL = {  # config.json of the published model, where it differs from diffusers' defaults
    "num_attention_heads": 12,
    "ffn_dim": 8960,
    "num_layers": 30,
}
PROMPT = "a red  star &amp; a cat"


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory):
    return write_tiny("tiny-wan", tmp_path_factory.mktemp("models") / "tiny-wan")


def parts(dtype: torch.dtype) -> dict:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = wan_parts()
    for name in ("teacher", "text_encoder"):
        randomise(made[name])
    for name in ("teacher", "vae", "text_encoder"):
        nn.Module.to(made[name], dtype)
    return made


class Grid(FlowMatchEulerDiscreteScheduler):
    """diffusers' scheduler on our timesteps, with times that are rounded once.

    Its own times come out of several roundings; the network is told 1000 times the difference.
    """

    dtype = torch.float32

    def set_timesteps(self, num_inference_steps=None, device=None, **rest):
        times = ddim_timesteps(num_inference_steps, spacing="trailing").double() / 1000
        super().set_timesteps(sigmas=times.tolist(), device=device)  # it applies the shift
        shift = self.config.shift
        sigmas = (shift * times / (1 + (shift - 1) * times)).to(self.dtype)
        assert_close(sigmas, self.sigmas[:-1].to(self.dtype), rtol=0, atol=1e-6)
        self.timesteps, self.sigmas = 1000 * sigmas, torch.cat([sigmas, sigmas.new_zeros(1)])


class ExactGrid(Grid):
    """The same in double precision: diffusers' own step rounds the latents to float32."""

    dtype = torch.float64

    def step(self, model_output, timestep, sample, return_dict=True):
        index = int((self.timesteps == timestep).nonzero())
        length = self.sigmas[index + 1] - self.sigmas[index]
        return (sample + length * model_output,)


@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize(
    "frames, height, width", [pytest.param(5, 32, 32, marks=pytest.mark.slow), (9, 16, 48)]
)
@pytest.mark.parametrize(
    "shift, guidance",
    [
        pytest.param(3.0, 1.0, marks=pytest.mark.slow),
        pytest.param(3.0, 5.0, marks=pytest.mark.slow),
        pytest.param(8.0, 1.0, marks=pytest.mark.slow),
        (8.0, 5.0),
    ],
)
def test_the_pipeline_is_that_of_diffusers(
    card, dtype, bound, frames, height, width, shift, guidance
):
    made = parts(dtype)
    card = replace(card, num_frames=frames, height=height, width=width, flow_shift=shift)
    text = UMT5TextEncoder(made["tokenizer"], made["text_encoder"])
    schedule = FlowSchedule.shifted(shift, dtype=dtype)
    ours = VideoPipeline(card, made["teacher"], made["vae"], text, schedule)
    noise = torch.randn(1, *ours.latent_shape, generator=torch.Generator().manual_seed(0))

    *_, result = ours.stream([PROMPT], [0], steps=STEPS, guidance=guidance, noise=noise)
    decoded = decode_latents(made["vae"], result.latents)

    config = {k: v for k, v in made["teacher"].config.items() if k != "guidance_dim"}
    transformer = WanTransformer3DModel.from_config(config)
    transformer.load_state_dict(made["teacher"].state_dict())
    theirs = WanPipeline(
        made["tokenizer"],
        made["text_encoder"],
        made["vae"],
        (ExactGrid if dtype == torch.float64 else Grid)(shift=shift),
        nn.Module.to(transformer, dtype).eval(),
    )
    theirs.set_progress_bar_config(disable=True)
    arguments = {
        "prompt": PROMPT,
        "height": height,
        "width": width,
        "num_frames": frames,
        "num_inference_steps": STEPS,
        "guidance_scale": guidance,
        "latents": noise,
        "max_sequence_length": 24,
    }
    latents = theirs(**arguments, output_type="latent").frames
    video = theirs(**arguments, output_type="pt").frames

    assert result.latents.dtype == latents.dtype == dtype
    assert_close(result.latents, latents, rtol=0, atol=bound)
    assert_close(decoded, video, rtol=0, atol=bound)
    assert decoded.shape == (1, frames, 3, height, width)


@pytest.mark.slow
def test_prompts_are_encoded_as_diffusers_does():
    made = parts(torch.float32)
    theirs = WanPipeline(made["tokenizer"], made["text_encoder"], made["vae"], Grid())
    prompts = [PROMPT, "", "a" * 40]

    ours = UMT5TextEncoder(made["tokenizer"], made["text_encoder"])

    expected, _ = theirs.encode_prompt(prompts, max_sequence_length=24, device="cpu")
    assert_close(ours.encode(prompts), expected, rtol=0, atol=1e-6)
    assert ours.unread("the cat " + "a" * 40 + " and a dog").endswith("and a dog")


def test_the_full_network_has_the_published_number_of_parameters():
    """That of `diffusion_pytorch_model.safetensors` in Wan-AI/Wan2.1-T2V-1.3B."""
    with torch.device("meta"):
        ours, theirs = WanNetwork(), WanTransformer3DModel(**FULL)

    shapes = {name: weight.shape for name, weight in ours.state_dict().items()}
    assert shapes == {name: weight.shape for name, weight in theirs.state_dict().items()}
    assert sum(weight.numel() for weight in ours.parameters()) == 1_418_996_800


def test_a_student_starts_as_its_teacher_at_every_guidance_scale():
    teacher = parts(torch.float32)["teacher"]
    noisy, told = torch.randn(2, 4, 2, 4, 4), torch.tensor([999.0, 20.5])
    embeds = torch.randn(2, 5, 16)

    for share in (False, True):
        student = student_of(teacher, share=share)
        output = student(noisy, told, embeds, Conditioning(guidance=torch.randn(2, 256)))
        assert torch.equal(output, teacher(noisy, told, embeds))


@pytest.mark.parametrize(
    "condition",
    [
        Conditioning(guidance=torch.zeros(2, 256)),  # of a teacher
        Conditioning(fps=torch.tensor([8, 8])),
        Conditioning(motion=torch.zeros(2, 256)),
    ],
)
def test_the_network_refuses_conditions_it_does_not_take(condition):
    with pytest.raises(ValueError):
        parts(torch.float32)["teacher"](
            torch.zeros(2, 4, 2, 4, 4), torch.zeros(2), torch.zeros(2, 5, 16), condition
        )


def test_the_network_refuses_latents_that_its_patches_do_not_fill():
    with pytest.raises(ValueError, match="divisible by 16"):
        parts(torch.float32)["teacher"](
            torch.zeros(1, 4, 2, 4, 5), torch.zeros(1), torch.zeros(1, 5, 16)
        )


def test_a_folder_with_a_card_makes_a_clip(card):
    video = VideoPipeline.load(card)("a cat", seed=1, steps=2)

    assert video.frames.shape == (9, 32, 32, 3)
    assert video.recipe["guidance"] == card.default_guidance


def test_the_estimated_activations_are_those_of_a_call(card, tmp_path):
    with torch.device("meta"):
        network = WanNetwork(
            num_attention_heads=4, attention_head_dim=64, ffn_dim=1500, num_layers=2, text_dim=64
        ).eval()
        vae = AutoencoderKLWan(base_dim=16).eval()
    network.save_config(tmp_path / "teacher")
    vae.save_config(tmp_path / "vae")
    (tmp_path / "text_encoder").mkdir()
    card = replace(card, folder=tmp_path, num_frames=13, height=128, width=256)

    found = measure_footprint(card)

    shapes = (1, 16, 4, 16, 32), (1,), (1, 512, 64)
    arguments = [torch.empty(shape, device="meta") for shape in shapes]
    called = count_activations(network, lambda network: network(*arguments))
    decoded = count_activations(vae, lambda vae: vae.decode(arguments[0]))
    assert 0.95 < found.denoise / called < 1.2
    assert 0.95 < found.decode * found.frames / decoded < 1.2


def test_adapters_are_saved_loaded_and_merged_without_a_change(tmp_path):
    teacher = parts(torch.float32)["teacher"]
    generator = torch.Generator().manual_seed(0)
    student = add_lora(student_of(teacher).requires_grad_(False), 2, generator=generator)
    for weight in student.parameters():
        if weight.requires_grad:
            weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
    condition = Conditioning(guidance=torch.randn(1, 256))
    inputs = torch.randn(1, 4, 2, 4, 4), torch.tensor([700.0]), torch.randn(1, 5, 16), condition
    expected = student(*inputs)

    save_lora(student, tmp_path / LORA_FILE)
    loaded = load_lora(student_of(teacher), tmp_path / LORA_FILE)

    assert not torch.allclose(expected, teacher(*inputs[:3]), atol=1e-3)
    assert torch.equal(loaded(*inputs), expected)
    assert_close(merge_lora(loaded)(*inputs), expected, rtol=0, atol=1e-5)


def test_the_consistency_loss_takes_eulers_step_and_trains_the_adapters():
    teacher, schedule = parts(torch.float32)["teacher"], FlowSchedule.shifted(3.0)
    student = add_lora(student_of(teacher, share=True).requires_grad_(False), 2)
    embeds = torch.randn(2, 5, 16)
    batch = draw_batch(
        torch.randn(2, 4, 2, 4, 4),
        embeds,
        torch.zeros_like(embeds),
        torch.tensor([3.0, 6.0]),
        grid=SolverGrid(50),
        generator=torch.Generator().manual_seed(0),
    )

    noisy = batch.add_noise(schedule)
    stepped = teacher_step(teacher, schedule, noisy, batch)
    loss = consistency_loss(student, student, teacher, noisy, batch, schedule)
    loss.value.backward()

    told = 1000 * schedule.sigmas[batch.start]
    cond, uncond = teacher(noisy, told, embeds), teacher(noisy, told, batch.uncond_embeds)
    scale = (batch.guidance_scale + 1).view(2, 1, 1, 1, 1)
    length = (schedule.sigmas[batch.end] - schedule.sigmas[batch.start]).view(2, 1, 1, 1, 1)
    assert_close(stepped, noisy + length * (uncond + scale * (cond - uncond)), rtol=0, atol=1e-4)
    trained = {name: weight.grad for name, weight in student.named_parameters() if "lora_B" in name}
    assert trained and all(torch.isfinite(grad).all() for grad in trained.values())
    assert sum(grad.abs().sum() for grad in trained.values()) > 0


@pytest.mark.slow
def test_the_page_makes_a_clip_with_a_folder(card, monkeypatch, tmp_path):
    monkeypatch.setitem(MODELS, card.name, card)

    generate = load_model(card.name)
    request = read_request(describe_models(), card.name, "a cat", seed=1, steps=2)
    *_, last = generate(request, tmp_path / "clip.mp4")

    assert last.clip is not None and last.clip.frames == card.num_frames
    assert (tmp_path / "clip.mp4").stat().st_size > 0
