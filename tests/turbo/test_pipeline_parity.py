"""The one pipeline against whole runs, from prompt to video.

Students: against recorded runs of both published pipelines. Teachers, of which no run is recorded:
against diffusers' own sampler.
"""

import itertools
from dataclasses import dataclass, field, replace

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor
from torch.testing import assert_close

from tests.support.golden import Golden, merged_lora, modelscope_unet, shapes_of, videocrafter_unet
from tests.support.tiny_models import make_unet
from turbo.card import ModelCard
from turbo.convert.text import map_open_clip_text
from turbo.convert.vae import map_latent_diffusion_vae
from turbo.diffusion.schedule import NoiseSchedule
from turbo.models.registry import find_card
from turbo.networks.text import CLIPTextEncoder, clip_tokenizer
from turbo.networks.unet import VideoUNet
from turbo.networks.vae import decode_latents
from turbo.pipeline import VideoPipeline
from turbo.types import Conditioning

# Errors are fed back from step to step. The recording states no bound for whole runs, because none
# was measured. Here the largest relative difference of anything recorded is 4.2e-5, in clean
# latents (of up to 84: random networks make large ones), and 4e-6 in frames.
WHOLE_RUN = 1e-4
DECODED = 3e-5  # absolute, as recorded


@dataclass
class Trace:
    """Inputs and outputs of a network, by call."""

    noisy: list[Tensor] = field(default_factory=list)
    timesteps: list[int] = field(default_factory=list)
    output: list[Tensor] = field(default_factory=list)


def _listen(unet: VideoUNet) -> Trace:
    trace = Trace()

    def record(_, arguments, output):
        trace.noisy.append(arguments[0])
        trace.timesteps.append(arguments[1].item())
        trace.output.append(output)

    unet.register_forward_hook(record)
    return trace


def _text_encoder(recorded: Golden) -> CLIPTextEncoder:
    """Build the recorded tower; of its vocabulary only the tokens of the prompts are recorded."""
    weights = recorded.weights()
    width = weights["model.positional_embedding"].shape[1]
    words = torch.zeros(49408, width)
    words[recorded["token_rows/ids"]] = recorded["token_rows/values__f16"].float()
    weights["model.token_embedding.weight"] = words
    sizes = recorded.metadata("config")["arch"]["text_cfg"]
    part = map_open_clip_text(
        shapes_of(weights), "model.", blocks=sizes["layers"] - 1, heads=sizes["heads"]
    )
    return CLIPTextEncoder(clip_tokenizer(), part.filled(weights))


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
def test_pipeline_has_parity_with_videocrafter(run, golden, tmp_path):
    """Timesteps, network outputs, noisy and clean latents of every step, and the frames.

    The published pipeline adds noise after its last step too, which changes nothing; ours does not.
    """
    recorded, vae = golden("pipeline_vc2_tiny"), golden("vae_tiny").weights()
    settings, weights = recorded.metadata("runs")[run], golden("vc2_unet_tiny").weights()
    if run.startswith("v1lora"):
        weights = merged_lora(golden("lora_vc2_tiny"), weights)
    unet = videocrafter_unet(recorded, run[:2], weights)
    trace = _listen(unet)
    expected = {name: recorded[f"{run}/{name}"] for name in ("eps", "denoised", "prev_samples")}
    height, width = recorded[f"{run}/videos"].shape[-2:]
    latents = recorded[f"{run}/latents"]
    pipeline = VideoPipeline(
        _card(tmp_path, settings, height, width),
        unet,
        map_latent_diffusion_vae(shapes_of(vae)).filled(vae),
        _text_encoder(golden("text_tiny")),
        NoiseSchedule.scaled_linear(),
    )
    noises = [] if settings["steps"] == 1 else list(recorded[f"{run}/noises"])

    *updates, result = pipeline.stream(
        settings["prompt"][:1], [0], noise=latents, step_noise=noises
    )

    cleans = torch.stack([update.clean for update in updates if update.clean is not None])
    assert trace.timesteps == recorded[f"{run}/timesteps"].tolist()
    noisy = torch.stack(trace.noisy)
    assert torch.equal(noisy[0], latents)
    assert_close(noisy[1:], expected["prev_samples"][:-1], rtol=WHOLE_RUN, atol=WHOLE_RUN)
    assert_close(torch.stack(trace.output), expected["eps"], rtol=WHOLE_RUN, atol=WHOLE_RUN)
    assert_close(cleans, expected["denoised"], rtol=WHOLE_RUN, atol=WHOLE_RUN)
    frames = decode_latents(pipeline.vae, result.latents, clamp=False)
    wanted = recorded[f"{run}/videos"].transpose(1, 2) / 2 + 0.5
    assert_close(frames.clamp(0, 1), wanted.clamp(0, 1), rtol=WHOLE_RUN, atol=WHOLE_RUN)
    [video] = result.videos
    shown = torch.from_numpy(video.frames).permute(0, 3, 1, 2)[None] / 255
    assert_close(shown, wanted.clamp(0, 1), rtol=0, atol=0.5 / 255 + WHOLE_RUN)
    assert video.fps == 24


def test_pipeline_has_parity_with_modelscope(golden, tmp_path, tiny_vae, tiny_text_encoder):
    recorded = golden("pipeline_ms_tiny")
    unet = modelscope_unet(recorded, "v1", golden("ms_unet_tiny").weights())
    trace = _listen(unet)
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

    *_, result = pipeline.stream(
        ["a cat"],
        [0],
        prompt_embeds=recorded["prompt_embeds"],
        noise=recorded["latents"],
        step_noise=list(recorded["noises"]),
    )

    assert trace.timesteps == [999, 759, 519, 279]
    assert_close(result.latents, recorded["denoised"], rtol=WHOLE_RUN, atol=WHOLE_RUN)


@dataclass(frozen=True, kw_only=True)
class TeacherRun:
    """What a teacher's published sampler is set to."""

    scheduler: dict
    eta: float
    guidance: float  # s in the Imagen convention
    network_fps: int | None = None
    scaled: bool = False  # the network learned from clean latents shrunk by `_scale`


TEACHERS = {
    "videocrafter2": TeacherRun(
        scheduler={"beta_end": 0.012, "steps_offset": 1, "timestep_spacing": "leading"},
        eta=1.0,
        guidance=12.0,
        network_fps=28,
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
    run: TeacherRun, unet: VideoUNet, text_encoder: CLIPTextEncoder, noise: Tensor, steps: int
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
    told = Conditioning(fps=torch.tensor([run.network_fps]) if run.network_fps else None)
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
def test_a_teachers_run_agrees_with_diffusers(name, tiny_vae, tiny_text_encoder, tmp_path):
    """The card's sampler, spacing, eta, scales, guidance and frame rate, step by step."""
    run, steps = TEACHERS[name], 5
    card = replace(find_card(name), folder=tmp_path, height=8, width=16, num_frames=3)
    unet = make_unet(fps_conditioning=run.network_fps is not None)
    schedule = NoiseSchedule.scaled_linear(
        beta_end=card.beta_end, prediction_type=card.prediction_type
    )
    pipeline = VideoPipeline(card, unet, tiny_vae, tiny_text_encoder, schedule)
    noisy = _listen(unet).noisy

    *_, result = pipeline.stream(["a cat"], [3], steps=steps)

    states = [*noisy[2::2], result.latents]  # two calls a step; the first input is the noise
    theirs = _teacher_states(run, unet, tiny_text_encoder, torch.empty(1, 4, 3, 4, 8), steps)
    assert_close(torch.stack(states), torch.stack(theirs), rtol=WHOLE_RUN, atol=WHOLE_RUN)


@pytest.mark.parametrize("run", ["v1_4step", "v1_1step", "v2_4step", "v1lora_2step"])
def test_decoding_has_parity_with_videocrafter(run, golden):
    """Of the recorded latents alone, so that nothing of the run before adds to the error."""
    recorded, weights = golden("pipeline_vc2_tiny"), golden("vae_tiny").weights()
    vae = map_latent_diffusion_vae(shapes_of(weights)).filled(weights)

    with torch.inference_mode():
        frames = decode_latents(vae, recorded[f"{run}/denoised"][-1])

    wanted = (recorded[f"{run}/videos"].transpose(1, 2) / 2 + 0.5).clamp(0, 1)
    assert_close(frames, wanted, rtol=0, atol=DECODED / 2)


def test_decoding_five_axes_has_parity_with_videocrafter(golden):
    recorded = golden("vae_tiny")
    weights = recorded.weights()
    vae = map_latent_diffusion_vae(shapes_of(weights)).filled(weights)

    with torch.inference_mode():
        frames = decode_latents(vae, recorded["decode5d/latents"])

    wanted = (recorded["decode5d/out"].transpose(1, 2) / 2 + 0.5).clamp(0, 1)
    assert_close(frames, wanted, rtol=0, atol=DECODED / 2)
