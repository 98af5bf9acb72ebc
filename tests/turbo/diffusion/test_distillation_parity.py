"""T2V-Turbo's training step against the published one, from pixels and prompts to the gradients."""

from functools import partial

import diffusers.models.autoencoders.vae as diffusers_vae
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from tests.support.golden import (
    Golden,
    latent_diffusion_vae,
    shapes_of,
    variant_of,
    videocrafter_unet,
)
from turbo.convert.adapters import adapter_order
from turbo.convert.text import map_open_clip_text
from turbo.convert.unet import map_videocrafter_unet
from turbo.diffusion.consistency import boundary_scalings, embed_guidance_scale
from turbo.diffusion.ddim import signal_scales
from turbo.diffusion.distillation import (
    DistillationBatch,
    SolverGrid,
    consistency_loss,
    pseudo_huber,
    teacher_step,
    update_ema,
)
from turbo.networks.lora import inject_adapters
from turbo.networks.text import CLIPTextEncoder, clip_tokenizer
from turbo.networks.unet import VideoUNet
from turbo.networks.vae import decode_chosen, encode_frames

both_steps = pytest.mark.parametrize("step", ["step_a", "step_b"])


def adapted_unet(network: Golden, adapters: Golden) -> tuple[VideoUNet, list[str]]:
    """Convert a student with active adapters; with it, its adapted layers in published order."""
    weights = variant_of(network.weights(), "v1")
    part = map_videocrafter_unet(shapes_of(weights))
    unet = part.filled({name: tensor.double() for name, tensor in weights.items()})
    layers = adapter_order(part)
    table = adapters.metadata("table")
    inject_adapters(unet, {layer: rank for layer, (_, _, rank) in zip(layers, table, strict=True)})
    for index, layer in enumerate(layers):
        module = unet.get_submodule(layer)
        for side, end in ((module.lora_A, "down"), (module.lora_B, "up")):
            weight = adapters[f"lora/{index:04d}.{end}"].double()
            side["default"].weight = torch.nn.Parameter(weight)
    return unet.eval(), layers


def recorded_batch(recorded: Golden, step: str, fps: int) -> DistillationBatch:
    start, end = SolverGrid().interval(recorded[f"{step}/index"])
    return DistillationBatch(
        clean=recorded[f"{step}/latents"].double(),
        noise=recorded[f"{step}/noise"].double(),
        start=start,
        end=end,
        guidance_scale=recorded[f"{step}/w"],
        prompt_embeds=recorded[f"{step}/prompt_embeds"].double(),
        uncond_embeds=recorded[f"{step}/uncond_prompt_embeds"].double(),
        fps=torch.full_like(start, fps),
    )


def assert_near(ours: torch.Tensor, recorded: torch.Tensor, tolerance: float) -> None:
    """Compare within the recording's own relative 1e-4; `tolerance` is absolute, near zero."""
    assert_close(ours.double(), recorded.double(), rtol=1e-4, atol=tolerance)


def score_images(frames: torch.Tensor) -> torch.Tensor:
    """Return the recorded image reward of every frame: its mean and a tenth of its deviation."""
    return frames.mean((2, 3, 4)) + 0.1 * frames.std((2, 3, 4))


def score_video(frames: torch.Tensor) -> torch.Tensor:
    """Return the recorded video reward: how much it changes, and half its mean."""
    return frames.diff(dim=1).square().mean((1, 2, 3, 4)) + frames.mean((1, 2, 3, 4)) / 2


@pytest.mark.slow
@both_steps
def test_the_training_step_is_in_parity_with_the_published_one(step, golden, published_schedule):
    """From encoded videos to the gradient of every adapter, ours in double precision.

    No second implementation vouched for losses, landings and gradients. Ours does; what is left is
    the rounding of the recording, enlarged in the gradients by the bend of the loss within its
    kappa of zero.
    """
    recorded, network = golden("training_step_v1_tiny"), golden("vc2_unet_tiny")
    settings = recorded.metadata("steps")[step]
    student, layers = adapted_unet(network, golden("lora_vc2_tiny"))
    doubled = {name: tensor.double() for name, tensor in network.weights().items()}
    teacher = videocrafter_unet(network, "teacher", doubled)
    vae = latent_diffusion_vae(golden("vae_tiny"), torch.float64)
    batch = recorded_batch(recorded, step, settings["fps"])

    loss = consistency_loss(
        student,
        student,
        teacher,
        batch.add_noise(published_schedule),
        batch,
        published_schedule,
        distance=partial(pseudo_huber, kappa=settings["huber_c"]),
    )
    total = loss.value
    shown = {}

    def image_reward(frames: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        shown["reward_decoded"], shown["reward"] = frames.flatten(0, 1), score_images(frames)
        return shown["reward"].mean(dim=1)

    def video_reward(frames: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        shown["video_decoded"], shown["video_reward"] = frames, score_video(frames)
        return shown["video_reward"]

    rows, frames = (recorded[f"{step}/reward_{name}_idx"] for name in ("batch", "frame"))
    prompts = [settings["prompts"][row] for row in rows]
    [decoded] = decode_chosen(vae, loss.clean[rows], [frames.expand(len(rows), -1)])
    image = image_reward(decoded, prompts)
    total = total - settings["reward_scale"] * image.mean()
    assert_near(-settings["reward_scale"] * image.mean(), recorded[f"{step}/reward_loss"], 1e-6)
    if settings["video_reward_scale"]:
        frames = recorded[f"{step}/video_frame_idx"]
        every = frames.expand(len(loss.clean), -1)
        [decoded] = decode_chosen(vae, loss.clean, [every])
        video = video_reward(decoded, settings["prompts"])
        video_loss = -settings["video_reward_scale"] * video.mean()
        assert_near(video_loss, recorded[f"{step}/video_rm_loss"], 1e-6)
        total = total + video_loss
    total.backward()

    assert torch.equal(batch.start, recorded[f"{step}/start_timesteps"])
    assert torch.equal(batch.end, recorded[f"{step}/timesteps"])
    assert_near(loss.clean, recorded[f"{step}/model_pred"], 2e-4)
    assert_near(loss.target, recorded[f"{step}/target"], 2e-4)
    assert_near(loss.value, recorded[f"{step}/distill_loss"], 2e-6)
    for name, ours in shown.items():
        if recorded.names(f"{step}/{name}"):
            assert_near(ours.flatten(), recorded[f"{step}/{name}"].flatten(), 3e-5)
    check_gradients(student, layers, recorded, step)


def check_gradients(student: VideoUNet, layers: list[str], recorded: Golden, step: str) -> None:
    gradients = {}
    names = recorded.metadata("lora_grad_names")
    modules = list(dict.fromkeys(name.rpartition(".lora_")[0] for name in names))
    for ours, theirs in zip(layers, modules, strict=True):
        module = student.get_submodule(ours)
        gradients[f"{theirs}.lora_down.weight"] = module.lora_A["default"].weight.grad
        gradients[f"{theirs}.lora_up.weight"] = module.lora_B["default"].weight.grad
    norms = torch.stack([gradients[name].norm() for name in names])
    assert_close(norms, recorded[f"{step}/lora_grad_norms"], rtol=1e-3, atol=1e-6)
    total = recorded[f"{step}/lora_total_grad_norm"]
    assert_close(norms.norm().float(), total, rtol=1e-4, atol=0)
    for name in recorded.names(f"{step}/grad/"):
        gradient, expected = gradients[name.removeprefix(f"{step}/grad/")], recorded[name]
        assert (gradient - expected).norm() < 1e-3 * expected.norm(), name


@both_steps
def test_every_intermediate_is_in_parity_with_the_published_step(step, golden, published_schedule):
    """What the loss is made of: noisy latents, teacher, landing, embeddings, boundary scalings."""
    recorded, network = golden("training_step_v1_tiny"), golden("vc2_unet_tiny")
    doubled = {name: tensor.double() for name, tensor in network.weights().items()}
    teacher = videocrafter_unet(network, "teacher", doubled)
    batch = recorded_batch(recorded, step, recorded.metadata("steps")[step]["fps"])
    outputs = []
    teacher.register_forward_hook(lambda module, inputs, output: outputs.append(output))

    noisy = batch.add_noise(published_schedule)
    landed = teacher_step(teacher, published_schedule, noisy, batch)

    cond, uncond = outputs[0].chunk(2)
    guided = cond + batch.guidance_scale.view(-1, 1, 1, 1, 1) * (cond - uncond)
    clean, noise = published_schedule.split(noisy, guided, batch.start)
    assert_near(noisy, recorded[f"{step}/noisy_model_input"], 2e-6)
    assert_near(cond, recorded[f"{step}/cond_teacher_output"], 2e-5)
    assert_near(uncond, recorded[f"{step}/uncond_teacher_output"], 2e-5)
    # Amplified by the guidance scale, and by 1 / alpha.
    assert_near(noise, recorded[f"{step}/teacher_pred_noise"], 3e-4)
    assert_near(clean, recorded[f"{step}/teacher_pred_x0"], 2e-3)
    assert_near(landed, recorded[f"{step}/x_prev"], 2e-4)
    embedded = embed_guidance_scale(batch.guidance_scale)
    assert_near(embedded, recorded[f"{step}/w_embedding"], 2e-3)
    for timesteps, name in ((batch.start, "_start"), (batch.end, "")):
        c_skip, c_out = boundary_scalings(timesteps)
        assert_near(c_skip, recorded[f"{step}/c_skip{name}"], 1e-7)
        assert_near(c_out, recorded[f"{step}/c_out{name}"], 1e-7)


@both_steps
def test_encoded_videos_are_in_parity_with_the_published_step(step, golden, monkeypatch):
    recorded = golden("training_step_v1_tiny")
    vae = latent_diffusion_vae(golden("vae_tiny"))
    draws = recorded[f"{step}/vae_noise"]
    taken = []

    def draw(shape: tuple[int, ...], **_: object) -> torch.Tensor:
        done = sum(len(draw) for draw in taken)
        taken.append(draws[done : done + shape[0]])
        return taken[-1]

    monkeypatch.setattr(diffusers_vae, "randn_tensor", draw)
    frames = recorded[f"{step}/pixel_values"].float() / 2 + 0.5

    latents = encode_frames(vae, frames, torch.Generator())

    assert sum(len(draw) for draw in taken) == len(draws)
    assert_near(latents, recorded[f"{step}/latents"], 2e-5)


@both_steps
def test_encoded_prompts_are_in_parity_with_the_published_step(step, golden):
    recorded, tower = golden("training_step_v1_tiny"), golden("text_tiny")
    architecture = tower.metadata("config")["arch"]["text_cfg"]
    weights = tower.weights()
    words = torch.zeros(architecture["vocab_size"], architecture["width"])
    words[tower["token_rows/ids"]] = tower["token_rows/values__f16"].float()
    weights["model.token_embedding.weight"] = words
    blocks, heads = architecture["layers"] - 1, architecture["heads"]
    part = map_open_clip_text(shapes_of(weights), "model.", blocks=blocks, heads=heads)
    encoder = CLIPTextEncoder(clip_tokenizer(), part.filled(weights))
    prompts = recorded.metadata("steps")[step]["prompts"]

    assert_near(encoder.encode(prompts), recorded[f"{step}/prompt_embeds"], 2e-5)
    empty = encoder.encode([""] * len(prompts))
    assert_near(empty, recorded[f"{step}/uncond_prompt_embeds"], 2e-5)


def test_a_recorded_average_is_in_parity_with_the_published_one(golden):
    recorded = golden("training_step_v2_tiny")
    average, student = (
        nn.ParameterList(recorded[f"ema/{name}"] for name in names)
        for names in (("target0_before", "target1_before"), ("source0", "source1"))
    )

    update_ema(average, student, decay=0.95)

    assert_near(average[0].detach(), recorded["ema/target0_after"], 3e-7)
    assert_near(average[1].detach(), recorded["ema/target1_after"], 3e-7)


def test_scaled_steps_are_in_parity_with_the_published_solver(golden, published_schedule):
    """The solver's option for VideoCrafter2's shrunken latents, which no published student uses."""
    recorded = golden("ddim_solver")
    start, end = SolverGrid().interval(recorded["solver50_scale/index"])
    scales = signal_scales()
    clean = recorded["solver200/pred_x0"] * (scales[end] / scales[start]).view(-1, 1, 1, 1, 1)

    landed = published_schedule.ddim_step(clean, recorded["solver200/pred_noise"], end)

    assert_near(landed, recorded["solver50_scale/x_prev"], 1e-6)
    assert_near(scales[SolverGrid().timesteps], recorded["solver50_scale/ddim_scale_arr"], 1e-7)
    _, before = SolverGrid().interval(torch.arange(50))
    assert_near(scales[before], recorded["solver50_scale/ddim_scale_arr_prev"], 1e-7)


@pytest.mark.parametrize("num_steps", [50, 200])
def test_solver_tables_are_in_parity_with_the_published_ones(num_steps, golden, published_schedule):
    recorded, solver = golden("ddim_solver"), f"solver{num_steps}"
    start, end = SolverGrid(num_steps).interval(torch.arange(num_steps))

    assert torch.equal(start, recorded[f"{solver}/ddim_timesteps"])
    assert torch.equal(start, SolverGrid(num_steps).timesteps)
    assert_near(
        published_schedule.alphas_cumprod[start], recorded[f"{solver}/ddim_alpha_cumprods"], 0
    )
    assert_near(
        published_schedule.alphas_cumprod[end],
        recorded[f"{solver}/ddim_alpha_cumprods_prev"],
        1e-12,
    )
