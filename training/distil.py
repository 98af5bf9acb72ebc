"""Consistency distillation with reward feedback, for any teacher that `turbo` can load.

    python -m training.distil training/configs/vc2.toml data.folder=videos
    accelerate launch -m training.distil training/configs/vc2.toml data.folder=videos

The same command again continues a run that was stopped. `--dry-run` says what a run would do and
need. The losses are in `turbo.diffusion.distillation`, the rewards in `turbo.rewards`.

Source: T2V-Turbo, arXiv:2405.18750, Algorithm 1; T2V-Turbo-v2, arXiv:2410.05677, Algorithm 2.
"""

import argparse
import json
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import Accelerator, DistributedType, PartialState
from accelerate.tracking import get_available_trackers
from jaxtyping import Bool, Float
from safetensors import SafetensorError
from torch import Tensor, nn
from tqdm import tqdm

from training.build import build_parts, student_with
from training.checkpoints import FAKE, STUDENT, find_newest, only_process_in
from training.config import Config, load_config
from training.export import describe_simulated, export_student
from training.forecast import describe_run
from training.log import Log
from training.loop import Slot, StepStats, deal, fit
from training.settings import (
    DistillationConfig,
    EncodedBatch,
    PromptBatch,
    RecordedBatch,
    has_own_target,
)
from training.sharding import gather, is_sharded, shard
from training.watch import Watch
from turbo.batch import exit_with_launcher
from turbo.diffusion.continuous import continuous_loss
from turbo.diffusion.distillation import (
    DistillationBatch,
    DistillationLoss,
    SolverInput,
    consistency_loss,
    draw_batch,
    frozen_shared_copy,
    roll_out,
    solver_step_loss,
    update_ema,
)
from turbo.diffusion.matching import matching_loss
from turbo.diffusion.teacher_cache import TeacherRecord, record_teacher, step_from_record
from turbo.networks.families import Network, VideoVAE
from turbo.pipeline import fixed_threads
from turbo.rewards.feedback import WeightedReward, mix_rewards
from turbo.types import Latents, PerVideo
from turbo.whole_file import write_whole

SOURCES = ("folder", "hub", "record", "prompts")  # of the data
FREE_SETTINGS: dict[str, Any] = {  # may change while a run is continued
    "name": True,
    "title": True,
    "licence": True,
    "watch": True,
    "data": {"workers", "max_broken"},
    "run": {"out", "recompute", "shard", "max_spike", "checkpoint_every", "keep", "trackers"},
}


def distil(
    teacher: Network,
    student: Network,
    draw_data: Callable[[Slot], EncodedBatch | PromptBatch | RecordedBatch],
    folder: Path,
    config: DistillationConfig,
    *,
    rewards: Sequence[WeightedReward],
    vae: VideoVAE,
    fake: Network | None = None,
    accelerator: Accelerator | None = None,
    on_step: Callable[[StepStats], None] = lambda stats: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[StepStats]:
    """Train the parameters of `student` that require gradients; yield statistics after every step.

    The target is an exponential moving average of the student, as in the paper. The published code
    takes the student itself; with the shapes models that collapsed (training/LOG.md).

    Args:
        student: made from the teacher by `student_of`, usually with `share` and `add_lora`.
        draw_data: draws a micro-batch of training videos, encoded, or of teacher outputs, or of
            prompts for on-policy training.
        folder: of the checkpoints.
        rewards: of the student's estimates of clean latents, decoded by `vae`. Without
            rewards this is plain consistency distillation.
        fake: the second network of method matching, trained beside the student; starts as the
            teacher, by `student_of`.
        accelerator, on_step, should_stop: as for `fit`.
    """
    if (fake is None) == (config.method == "matching"):
        raise ValueError(
            f"Expected a fake with method matching and with no other, got {type(fake).__name__} "
            f"with method {config.method}. Give `distil` a copy of the teacher, or none."
        )
    teacher.eval().requires_grad_(False)
    target = student  # its weights at the start of the step: those that it has in all of the step
    if has_own_target(config.target_ema, config.target_dropout):
        target = frozen_shared_copy(student).train(config.target_dropout)
    accelerator = accelerator or Accelerator(cpu=not torch.cuda.is_available())
    if config.shard:
        shard(student, accelerator)
        if target is not student:
            shard(target, accelerator)
    if config.recompute:
        student.enable_gradient_checkpointing()
        teacher.enable_gradient_checkpointing()  # for the gradient of the motion energy
        if fake is not None:
            fake.enable_gradient_checkpointing()

    scales = None if config.scales is None else config.scales.to(accelerator.device)

    def draw_loss(slot: Slot) -> Float[Tensor, ""]:
        if slot.is_first and target is not student:
            update_ema(target, student, config.target_ema)
        drawn, begun = draw_data(slot), slot.step >= config.fake_warmup
        if fake is not None and not isinstance(drawn, PromptBatch):
            raise ValueError(
                f"Expected prompts with method matching, got {type(drawn).__name__}. It scores the "
                "student's own samples."
            )
        if isinstance(drawn, RecordedBatch):
            record = drawn.record
            scale = config.draw_guidance(len(record.noisy), slot.generator).to(record.noisy.device)
            consistency = compare_recorded(student, target, record, scale, config, drawn.guided)
        elif isinstance(drawn, PromptBatch):
            noisy, inputs = draw_on_policy(student, drawn, slot, config)
            if fake is None:
                consistency = compare_at(student, target, teacher, noisy, inputs, config, slot.step)
            else:
                consistency = matching_loss(
                    student,
                    fake.eval(),  # without dropout: its estimate goes into the student's gradient
                    teacher,
                    noisy,
                    inputs,
                    config.schedule,
                    slot.generator,
                    weight=float(begun),
                    scales=scales,
                    timestep_scaling=config.timestep_scaling,
                )
        else:
            batch = draw_batch(  # z_0, its noise, t_{n+k} and t_n, w
                drawn.latents,
                drawn.prompt_embeds,
                drawn.uncond_embeds,
                config.draw_guidance(len(drawn.latents), slot.generator),
                grid=config.grid,
                generator=slot.generator,
                fps=drawn.fps,
            )
            consistency = compare(student, target, teacher, batch, config, slot.step, drawn.guided)
        scored = [row for row, prompt in enumerate(drawn.reward_prompts) if prompt is not None]
        reward = mix_rewards(
            consistency.clean[scored],
            [prompt for prompt in drawn.reward_prompts if prompt is not None],
            vae,
            _rewards_of(slot, rewards, config) if scored and begun else (),
            slot.generator,
            recompute=config.recompute,
        )
        return consistency.value + len(scored) / len(drawn.reward_prompts) * reward.loss

    def rate_factor(name: str) -> float:
        return (
            config.fake_rate
            if name.startswith(FAKE)
            else config.rate_factor(name.removeprefix(STUDENT))
        )

    trained = {name for name, weight in student.named_parameters() if weight.requires_grad}
    companions = {name: weight for name, weight in target.named_parameters() if name in trained}
    yield from fit(
        student if fake is None else nn.ModuleDict({STUDENT[:-1]: student, FAKE[:-1]: fake}),
        draw_loss,
        config.fit,
        folder,
        accelerator=accelerator,
        rate_factor=rate_factor,
        companions={} if target is student else companions,
        on_step=on_step,
        should_stop=should_stop,
    )


def _rewards_of(
    slot: Slot, rewards: Sequence[WeightedReward], config: DistillationConfig
) -> Sequence[WeightedReward]:
    """Return the rewards that score a micro-batch, weighted so that a step's objective is kept."""
    if not (config.split_rewards and rewards):
        return rewards
    term, factor = deal(len(rewards), slot)
    return [replace(rewards[term], weight=factor * rewards[term].weight)]


def draw_on_policy(
    student: Network, drawn: PromptBatch, slot: Slot, config: DistillationConfig
) -> tuple[Latents, SolverInput]:
    """Sample with the student up to one of its timesteps, which the micro-batches take in turn.

    Returns:
        the noisy videos there, and what the teacher's step from there depends on.
    """
    count, device = len(drawn.prompt_embeds), drawn.prompt_embeds.device
    scale = config.draw_guidance(count, slot.generator).to(device)
    place = (slot.step + slot.index) % len(drawn.timesteps)
    timesteps = drawn.timesteps[: place + 1].to(device)
    noises = torch.randn(place + 1, count, *drawn.latent_shape, generator=slot.generator)
    start = timesteps[-1].expand(count)
    inputs = SolverInput(
        start=start,
        end=(start - config.grid.stride).clamp(min=0),
        guidance_scale=scale,
        prompt_embeds=drawn.prompt_embeds,
        uncond_embeds=drawn.uncond_embeds,
        fps=drawn.fps,
    )
    noisy = roll_out(
        student,
        config.schedule,
        [*noises.to(device)],
        inputs,
        timesteps,
        timestep_scaling=config.timestep_scaling,
    )
    return noisy, inputs


def compare(
    student: Network,
    target: Network,
    teacher: Network,
    batch: DistillationBatch,
    config: DistillationConfig,
    step: int,
    guided: Bool[Tensor, " B"] | None = None,
) -> DistillationLoss:
    """Add noise to the videos, then compare student and target along the teacher's path.

    Args:
        step: of the training, from 0.
        guided: the videos whose motion may be guided; None: all.
    """
    if config.motion is None:
        noisy = batch.add_noise(config.schedule)
        return compare_at(student, target, teacher, noisy, batch, config, step)
    scored = config.motion.strength_at(batch.start, len(config.schedule), guided) > 0
    record = record_teacher(teacher, config.schedule, batch, config.motion.energy, scored)
    return compare_recorded(student, target, record, batch.guidance_scale, config, guided)


def compare_at(
    student: Network,
    target: Network,
    teacher: Network,
    noisy: Latents,
    batch: SolverInput,
    config: DistillationConfig,
    step: int,
) -> DistillationLoss:
    """Compare student and target along the teacher's path from noisy videos, by either method."""
    if config.method == "discrete":
        return consistency_loss(
            student,
            target,
            teacher,
            noisy,
            batch,
            config.schedule,
            distance=config.distance,
            timestep_scaling=config.timestep_scaling,
        )
    share = min(1.0, step / config.tangent_warmup) if config.tangent_warmup else 1.0
    return continuous_loss(student, target, teacher, noisy, batch, config.schedule, share=share)


def compare_recorded(
    student: Network,
    target: Network,
    record: TeacherRecord,
    guidance_scale: PerVideo,
    config: DistillationConfig,
    guided: Bool[Tensor, " B"] | None = None,
) -> DistillationLoss:
    """Take the step of the recorded teacher, and compare student and target at its two ends."""
    strength = None
    if config.motion is not None:
        strength = config.motion.strength_at(record.start, len(config.schedule), guided)
    step = step_from_record(record, guidance_scale, config.schedule, strength)
    return solver_step_loss(
        student,
        target,
        step,
        config.schedule,
        distance=config.distance,
        timestep_scaling=config.timestep_scaling,
    )


def run(config: Config) -> Path:
    """Train what a configuration describes, from its last checkpoint, and export the student.

    Returns:
        the folder of the exported model.

    Raises:
        ValueError: another process trains in this folder, or accelerate's own settings ask for
            another way to divide the weights.
    """
    out = Path(config.run.out)
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision=config.run.precision,
        log_with=config.run.trackers or None,
        project_dir=out,
    )
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise ValueError(
            "The settings of `accelerate launch` ask for FSDP or DeepSpeed. Leave it out there, "
            "and set run.shard=true to divide what is trained over the processes."
        )
    exit_with_launcher(accelerator.num_processes)
    with only_process_in(out) if accelerator.is_main_process else nullcontext():
        return _train_and_export(config, accelerator)


def _train_and_export(config: Config, accelerator: Accelerator) -> Path:
    out = Path(config.run.out)
    if accelerator.is_main_process:
        keep_settings(config)
        for told in describe_simulated(config):
            print(told)
    if config.run.trackers:
        start_trackers(config, accelerator)
    parts = build_parts(config, accelerator)
    watch = Watch(parts, config, accelerator) if config.watch else None
    log = Log(out / "log.csv")

    def record(stats: StepStats) -> None:
        if accelerator.is_main_process:
            log.add(stats)
        accelerator.log({"loss": stats.loss, "grad_norm": stats.grad_norm}, stats.step)

    with stop_on_sigterm() as should_stop, fixed_threads(parts.card, accelerator.device):
        steps = distil(
            parts.teacher,
            parts.student,
            parts.draw_data,
            out / "checkpoints",
            parts.settings,
            rewards=parts.rewards,
            vae=parts.vae,
            fake=parts.fake,
            accelerator=accelerator,
            on_step=record,
            should_stop=should_stop,
        )
        step = follow(steps, config, accelerator, watch)
    folder = out / "models" / config.name
    trained = {name: p for name, p in parts.student.named_parameters() if p.requires_grad}
    weights = gather(trained, keep=accelerator.is_main_process)
    if accelerator.is_main_process:
        if is_sharded(parts.student):
            parts = replace(parts, student=student_with(weights, parts.teacher, config))
        export_student(parts, config, folder, step)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return folder


def keep_settings(config: Config) -> None:
    """Store the settings of a new run in settings.json.

    Raises:
        ValueError: the folder has checkpoints of a run of other settings.
    """
    out = Path(config.run.out)
    file, settings = out / "settings.json", config.model_dump(mode="json", exclude=FREE_SETTINGS)
    sources = {name: bool(getattr(config.data, name)) for name in SOURCES}  # folders may be moved
    settings["data"] |= sources
    if not (find_newest(out / "checkpoints") and file.exists()):
        write_whole(file, (json.dumps(settings, indent=2) + "\n").encode())
        return
    former = json.loads(file.read_text())
    for name, now, then in _differences(former, settings):
        raise ValueError(
            f"{out} holds a run of other settings: {name} was {then!r} and is {now!r}. Restore the "
            "former setting to continue that run, or name another folder in run.out."
        )


def _differences(
    former: Mapping[str, Any], settings: Mapping[str, Any], table: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Yield each setting that differs, now and then. Those that are new to the program do not."""
    for name in (name for name in settings if name in former):
        now, then = settings[name], former[name]
        if isinstance(now, dict) and isinstance(then, dict):
            yield from _differences(then, now, f"{table}{name}.")
        elif now != then:
            yield f"{table}{name}", now, then


def start_trackers(config: Config, accelerator: Accelerator) -> None:
    """Start the trackers of a run with its settings.

    Raises:
        ValueError: the package of a tracker is not installed.
    """
    available = {name.value for name in get_available_trackers()}
    if missing := sorted(set(config.run.trackers) - available):
        raise ValueError(
            f"run.trackers names {', '.join(missing)}, which is not installed. Install it, or "
            "leave it out."
        )
    settings = {  # TensorBoard takes numbers and texts only
        f"{table}.{key}": value if isinstance(value, int | float | str) else str(value)
        for table, values in config.model_dump(include={"run", "student"}).items()
        for key, value in values.items()
    }
    accelerator.init_trackers(config.name, settings)


def follow(
    steps: Iterator[StepStats], config: Config, accelerator: Accelerator, watch: Watch | None = None
) -> int:
    """Run the steps and show progress; return the step whose weights the student has.

    It is the last one. A watch can stop the run: then it is the best one.
    """
    best, hidden = watch.best if watch else None, not accelerator.is_main_process
    with tqdm(total=config.run.steps, desc=config.name, disable=hidden) as bar:
        while best is None and (stats := next(steps, None)):
            bar.update(stats.step - bar.n)
            bar.set_postfix(loss=f"{stats.loss:.4f}")
            best = watch.follow(stats.step) if watch else None
    if watch and best:
        watch.restore(best)
        accelerator.print(
            f"The run has stopped: since step {best.step} the rewards have risen and a judge has "
            "fallen. The student has the weights of that step."
        )
    return best.step if best else config.run.steps


@contextmanager
def stop_on_sigterm() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether SIGTERM came: schedulers send it before they kill."""
    asked = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda number, frame: asked.set())
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGTERM, before)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m training.distil",
        description="Distil a teacher into a few-step student, with rewards.",
    )
    parser.add_argument("config", type=Path, help="such as training/configs/vc2.toml")
    parser.add_argument(
        "changes", nargs="*", metavar="table.key=value", help="such as data.folder=videos"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print settings, data, memory and time, and stop"
    )
    options = parser.parse_args(arguments)
    try:
        transformers.utils.logging.disable_progress_bar()  # of loading weights
        config = load_config(options.config, options.changes)
        if options.dry_run:
            print("\n".join([describe_run(config), *describe_simulated(config)]))
        else:
            folder = run(config)
            if PartialState().is_main_process:
                print(
                    f"The student is in {folder}. Make a video with it:\n"
                    f"T2V_MODELS_DIR={folder.parent} python -m turbo.generate 'a prompt' "
                    f"--model {config.name}"
                )
    except (ValueError, OSError, FloatingPointError, SafetensorError) as refusal:
        parser.error(str(refusal))


if __name__ == "__main__":
    main()
