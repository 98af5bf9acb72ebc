"""The one pipeline against whole runs, from prompt to video.

Students: against recorded runs of both published pipelines. Teachers, of which no run is recorded:
against diffusers' own sampler.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor
from torch.testing import assert_close

import turbo.pipeline
from tests.support.golden import Golden, merged_lora, modelscope_unet, shapes_of, videocrafter_unet
from tests.support.tiny_models import make_unet
from turbo.card import ModelCard
from turbo.convert.text import map_open_clip_text
from turbo.convert.vae import map_latent_diffusion_vae
from turbo.diffusion.schedule import NoiseSchedule
from turbo.models.registry import find_card
from turbo.networks.text import TextEncoder, clip_tokenizer
from turbo.networks.unet import Conditioning, VideoUNet
from turbo.pipeline import VideoPipeline

# Errors are fed back from step to step. The recording states no bound for whole runs, because none
# was measured. Here the largest relative difference of anything recorded is 4.2e-5, in clean
# latents (of up to 84: random networks make large ones), and 4e-6 in frames.
WHOLE_RUN = 1e-4
DECODED = 3e-5  # absolute, as recorded


@dataclass
class Trace:
    """What passed through a pipeline."""

    noisy: list[Tensor] = field(default_factory=list)
    timesteps: list[int] = field(default_factory=list)
    output: list[Tensor] = field(default_factory=list)
    clean: list[Tensor] = field(default_factory=list)
    frames: list[Tensor] = field(default_factory=list)


@pytest.fixture
def trace(monkeypatch) -> Trace:
    """Listen at every seam of the pipeline."""
    seen = Trace()
    sample, decode = turbo.pipeline.sample_latents, turbo.pipeline.decode_latents

    def sample_and_tell(*arguments) -> Iterator[Tensor]:
        for clean in sample(*arguments):
            seen.clean.append(clean)
            yield clean

    def decode_and_tell(*arguments, **options) -> Tensor:
        seen.frames.append(decode(*arguments, **options))
        return seen.frames[-1]

    monkeypatch.setattr(turbo.pipeline, "sample_latents", sample_and_tell)
    monkeypatch.setattr(turbo.pipeline, "decode_latents", decode_and_tell)
    return seen


@pytest.fixture
def draw_recorded(monkeypatch):
    """Have the pipeline draw recorded noise instead of its own."""

    def replace(latents: Tensor, noises: Tensor | list[Tensor]) -> None:
        draws = itertools.chain([latents], noises)
        monkeypatch.setattr("turbo.pipeline.draw_noise", lambda *_: next(draws))
        monkeypatch.setattr("turbo.diffusion.few_step.draw_noise", lambda *_: next(draws))

    return replace


def _listen(unet: VideoUNet, seen: Trace) -> None:
    def tell(_, arguments, output):
        seen.noisy.append(arguments[0])
        seen.timesteps.append(arguments[1].item())
        seen.output.append(output)

    unet.register_forward_hook(tell)


def _text_encoder(recorded: Golden) -> TextEncoder:
    """Build the recorded tower; of its vocabulary only the tokens of the prompts are recorded."""
    weights = recorded.weights()
    width = weights["model.positional_embedding"].shape[1]
    words = torch.zeros(49408, width)
    words[recorded["token_rows/ids"]] = recorded["token_rows/values__f16"].float()
    weights["model.token_embedding.weight"] = words
    heads = recorded.metadata("config")["arch"]["text_cfg"]["heads"]
    part = map_open_clip_text(shapes_of(weights), "model.", heads=heads)
    return TextEncoder(clip_tokenizer(), part.filled(weights))


def _card(tmp_path, run: dict, height: int, width: int) -> ModelCard:
    return ModelCard(
        name="recorded",
        title="Recorded",
        family="recorded",
        role="student",
        sampler="consistency",
        licence="Apache-2.0",
        folder=tmp_path,
        unet="unet",
        height=height,
        width=width,
        num_frames=run["num_frames"],
        fps=24,  # of the clip; the network is told another
        conditioning_fps=run.get("fps"),
        origin_steps=run["lcm_origin_steps"],
        motion_strength=run.get("motion_gs") if run.get("use_motion_cond") else None,
        motion_share=run.get("percentage", 0.5),
        default_steps=run["steps"],
        max_steps=50,
        default_guidance=run["guidance_scale"],
        min_guidance=1.0,
        max_guidance=15.0,
        guidance_kind="",
    )


@pytest.mark.parametrize("run", ["v1_4step", "v1_1step", "v2_4step", "v1lora_2step"])
def test_pipeline_has_parity_with_videocrafter(run, golden, trace, draw_recorded, tmp_path):
    """Timesteps, network outputs, noisy and clean latents of every step, and the frames.

    The published pipeline draws noise at its last step too, which changes nothing; ours does not.
    """
    recorded, vae = golden("pipeline_vc2_tiny"), golden("vae_tiny").weights()
    told, weights = recorded.metadata("runs")[run], golden("vc2_unet_tiny").weights()
    if run.startswith("v1lora"):
        weights = merged_lora(golden("lora_vc2_tiny"), weights)
    unet = videocrafter_unet(recorded, run[:2], weights)
    _listen(unet, trace)
    expected = {name: recorded[f"{run}/{name}"] for name in ("eps", "denoised", "prev_samples")}
    height, width = recorded[f"{run}/videos"].shape[-2:]
    latents = recorded[f"{run}/latents"]
    draw_recorded(latents, [] if told["steps"] == 1 else recorded[f"{run}/noises"])
    pipeline = VideoPipeline(
        _card(tmp_path, told, height, width),
        unet,
        map_latent_diffusion_vae(shapes_of(vae)).filled(vae),
        _text_encoder(golden("text_tiny")),
        NoiseSchedule.scaled_linear(),
    )

    video = pipeline(told["prompt"][0])

    assert trace.timesteps == recorded[f"{run}/timesteps"].tolist()
    noisy = torch.stack(trace.noisy)
    assert torch.equal(noisy[0], latents)
    assert_close(noisy[1:], expected["prev_samples"][:-1], rtol=WHOLE_RUN, atol=WHOLE_RUN)
    assert_close(torch.stack(trace.output), expected["eps"], rtol=WHOLE_RUN, atol=WHOLE_RUN)
    assert_close(torch.stack(trace.clean), expected["denoised"], rtol=WHOLE_RUN, atol=WHOLE_RUN)
    [frames] = trace.frames
    wanted = (recorded[f"{run}/videos"].transpose(1, 2) / 2 + 0.5).clamp(0, 1)
    assert_close(frames, wanted, rtol=WHOLE_RUN, atol=WHOLE_RUN)
    assert video.fps == 24


def test_pipeline_has_parity_with_modelscope(
    golden,
    trace,
    draw_recorded,
    tmp_path,
    tiny_vae,
    tiny_text_encoder,
    monkeypatch,
):
    recorded = golden("pipeline_ms_tiny")
    unet = modelscope_unet(recorded, "v1", golden("ms_unet_tiny").weights())
    _listen(unet, trace)
    draw_recorded(recorded["latents"], recorded["noises"])
    monkeypatch.setattr(tiny_text_encoder, "encode", lambda _: recorded["prompt_embeds"])
    _, _, frames, height, width = recorded["latents"].shape
    # The run it was: see the recording's note.
    run = {"steps": 4, "lcm_origin_steps": 50, "guidance_scale": 7.5, "num_frames": frames}
    pipeline = VideoPipeline(
        _card(tmp_path, run, 2 * height, 2 * width),
        unet,
        tiny_vae,
        tiny_text_encoder,
        NoiseSchedule.scaled_linear(),
    )

    pipeline("a cat")

    assert trace.timesteps == [999, 759, 519, 279]
    assert_close(trace.clean[-1], recorded["denoised"], rtol=WHOLE_RUN, atol=WHOLE_RUN)


@dataclass(frozen=True, kw_only=True)
class TeacherRun:
    """What a teacher's published sampler is set to."""

    scheduler: dict
    eta: float
    guidance: float  # s in the Imagen convention
    told_fps: int | None = None
    scaled: bool = False  # the network learned from clean latents shrunk by `_scale`


TEACHERS = {
    "videocrafter2": TeacherRun(
        scheduler={"beta_end": 0.012, "steps_offset": 1, "timestep_spacing": "leading"},
        eta=1.0,
        guidance=12.0,
        told_fps=28,
        scaled=True,
    ),
    "modelscope": TeacherRun(
        scheduler={"beta_end": 0.012, "steps_offset": 1, "timestep_spacing": "leading"},
        eta=0.0,
        guidance=9.0,
    ),
    "shapes-teacher": TeacherRun(
        scheduler={
            "beta_end": 0.02,
            "timestep_spacing": "trailing",
            "prediction_type": "v_prediction",
        },
        eta=1.0,
        guidance=2.0,
    ),
}


def _scale(timestep: int) -> float:
    """Return VideoCrafter2's scale of clean latents: from 1 down to 0.7 at timestep 399."""
    return 1 - 0.3 * min(timestep / 399, 1)


@torch.inference_mode()
def _teacher_states(
    run: TeacherRun, unet: VideoUNet, text_encoder: TextEncoder, noise: Tensor, steps: int
) -> list[Tensor]:
    """Return the latents after every step of diffusers' scheduler.

    It knows no scales: its step is corrected by what the clean latents lack.
    """
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        **run.scheduler,
    )
    scheduler.set_timesteps(steps)
    timesteps = [*scheduler.timesteps.tolist(), 0]
    generator = torch.Generator().manual_seed(3)
    noisy = torch.randn(noise.shape, generator=generator)
    told = Conditioning(fps=torch.tensor([run.told_fps]) if run.told_fps else None)
    states = []
    for start, end in itertools.pairwise(timesteps):
        cond, uncond = (
            unet(noisy, torch.tensor([start]), text_encoder.encode([prompt]), told)
            for prompt in ("a cat", "")
        )
        guided = uncond + run.guidance * (cond - uncond)
        step = scheduler.step(guided, start, noisy, eta=run.eta, generator=generator)
        noisy = step.prev_sample
        if run.scaled:
            lacking = _scale(end) / _scale(start) - 1
            noisy = noisy + scheduler.alphas_cumprod[end].sqrt() * lacking * (
                step.pred_original_sample
            )
        states.append(noisy)
    return states


@pytest.mark.parametrize("name", TEACHERS)
def test_a_teachers_run_agrees_with_diffusers(
    name, monkeypatch, tiny_vae, tiny_text_encoder, tmp_path
):
    """The card's sampler, spacing, eta, scales, guidance and frame rate, step by step."""
    run, states, steps = TEACHERS[name], [], 5
    card = replace(find_card(name), folder=tmp_path, height=8, width=16, num_frames=3)
    unet = make_unet(fps_conditioning=run.told_fps is not None)
    schedule = NoiseSchedule.scaled_linear(
        beta_end=card.beta_end, prediction_type=card.prediction_type
    )
    pipeline = VideoPipeline(card, unet, tiny_vae, tiny_text_encoder, schedule)
    sample = turbo.pipeline.sample_ddim

    def sample_and_tell(*arguments, **options) -> Iterator[Tensor]:
        for state in sample(*arguments, **options):
            states.append(state)
            yield state

    monkeypatch.setattr(turbo.pipeline, "sample_ddim", sample_and_tell)

    pipeline("a cat", seed=3, steps=steps)

    theirs = _teacher_states(run, unet, tiny_text_encoder, torch.empty(1, 4, 3, 4, 8), steps)
    assert_close(torch.stack(states), torch.stack(theirs), rtol=WHOLE_RUN, atol=WHOLE_RUN)


@pytest.mark.parametrize("run", ["v1_4step", "v1_1step", "v2_4step", "v1lora_2step"])
def test_decoding_has_parity_with_videocrafter(run, golden):
    """Of the recorded latents alone, so that nothing of the run before adds to the error."""
    recorded, weights = golden("pipeline_vc2_tiny"), golden("vae_tiny").weights()
    vae = map_latent_diffusion_vae(shapes_of(weights)).filled(weights)

    with torch.inference_mode():
        frames = turbo.pipeline.decode_latents(vae, recorded[f"{run}/denoised"][-1])

    wanted = (recorded[f"{run}/videos"].transpose(1, 2) / 2 + 0.5).clamp(0, 1)
    assert_close(frames, wanted, rtol=0, atol=DECODED / 2)


def test_decoding_five_axes_has_parity_with_videocrafter(golden):
    recorded = golden("vae_tiny")
    weights = recorded.weights()
    vae = map_latent_diffusion_vae(shapes_of(weights)).filled(weights)

    with torch.inference_mode():
        frames = turbo.pipeline.decode_latents(vae, recorded["decode5d/latents"])

    wanted = (recorded["decode5d/out"].transpose(1, 2) / 2 + 0.5).clamp(0, 1)
    assert_close(frames, wanted, rtol=0, atol=DECODED / 2)
