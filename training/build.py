"""Build the parts that a configuration names: teacher, student, data and rewards."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor, nn

from training.config import Config, RewardTable
from training.data.order import ClipSource, EpochOrder
from training.data.source import (
    PreparedClip,
    PreparedClips,
    encode,
    open_data,
    read_prompts,
    stack_records,
)
from training.data.video_folder import Clip, VideoFolder
from training.loop import FitConfig, Slot
from training.settings import (
    DistillationConfig,
    EncodedBatch,
    MotionGuidance,
    PromptBatch,
    RecordedBatch,
)
from training.tiny import TINY, write_tiny
from turbo.card import ModelCard
from turbo.diffusion.consistency import few_step_timesteps
from turbo.diffusion.ddim import signal_scales
from turbo.diffusion.distillation import (
    SolverGrid,
    draw_guidance,
    pseudo_huber,
    squared,
    student_of,
)
from turbo.diffusion.motion import MOTION_LAYERS, MotionEnergy
from turbo.diffusion.schedule import FlowSchedule
from turbo.models.local import read_card
from turbo.models.registry import find_card
from turbo.networks.families import Network, VideoVAE
from turbo.networks.lora import DOWN, LORA_FILE, add_lora
from turbo.networks.text import KnownPrompts
from turbo.networks.unet import VideoUNet
from turbo.pipeline import VideoPipeline
from turbo.rewards.feedback import (
    WeightedReward,
    Window,
    draw_frames,
    recompute_blocks,
    stride_frames,
)
from turbo.rewards.published import EMBEDDED, REWARDS, load_reward
from turbo.rewards.vote_reward import CARD, read_vote_card
from turbo.types import Energy, Frames, PerVideo, Reward, Schedule, TextEncoder

ENERGIES: dict[str, Callable[[VideoUNet, Schedule, Tensor, tuple[str, ...]], Energy]] = {
    "motion": MotionEnergy
}
SELECT = {"random": draw_frames, "stride": stride_frames}


DrawData = Callable[[Slot], EncodedBatch | PromptBatch | RecordedBatch]


@dataclass(frozen=True)
class Parts:
    """Everything that a run needs."""

    card: ModelCard  # the teacher's
    teacher: Network
    student: Network
    fake: Network | None  # of distribution matching
    vae: VideoVAE
    text_encoder: TextEncoder
    captions: list[str]  # that the student is trained on
    draw_data: DrawData
    rewards: tuple[WeightedReward, ...]
    settings: DistillationConfig


def teacher_card(config: Config) -> ModelCard:
    """Return the card of the teacher: a registered model, a folder, or a tiny random one.

    Raises:
        ValueError: there is no such model, or it is a student.
    """
    name = config.teacher.model
    if name in TINY:
        folder = Path(config.run.out) / "models" / name
        return read_card(folder) if (folder / "card.json").exists() else write_tiny(name, folder)
    card = named_card(name)
    if card.role != "teacher":
        raise ValueError(f"{name} is a student. Name a teacher in teacher.model.")
    return card


def named_card(name: str) -> ModelCard:
    """Return the card of a model by its name, or by its folder.

    Raises:
        ValueError: there is no such model, or its card cannot be read.
    """
    return read_card(Path(name)) if (Path(name) / "card.json").is_file() else find_card(name)


def load_teacher(card: ModelCard, config: Config, device: torch.device) -> VideoPipeline:
    """Load the teacher with its VAE and text encoder."""
    return VideoPipeline.load(
        card,
        "cpu" if device.type == "cpu" else str(device),  # accelerate numbers CPUs too
        dtype="bfloat16" if config.run.precision == "bf16" else "float32",
        memory="full",
    )


def build_parts(config: Config, accelerator: Accelerator) -> Parts:
    """Load and build everything, on the device of this process.

    Raises:
        ValueError: a file is missing or of another kind, or the settings do not fit each other.
    """
    half, device = config.run.precision == "bf16", accelerator.device
    with accelerator.main_process_first():  # it writes tiny models
        card = teacher_card(config)
    videos = None if config.data.prompts else open_data(config, card)
    prompts = (
        [c.text for c in videos.captions] if videos else read_prompts(Path(config.data.prompts))
    )
    pipeline = load_teacher(card, config, device)
    if isinstance(videos, PreparedClips):
        videos.check_weights(pipeline.weights_sha256)
        # The captions are embedded, and Wan's text encoder is four times as large as its network.
        watched = read_prompts(Path(config.watch.prompts)) if config.watch else []
        pipeline.text_encoder = KnownPrompts(pipeline.text_encoder, ["", *watched])
    teacher = pipeline.unet
    student = build_student(teacher, config)
    if config.student.start:
        load_start(student, card, config)
    needed = needed_rewards(config, accelerator.num_processes, accelerator.process_index)
    return Parts(
        card,
        teacher,
        student,
        build_fake(teacher, config),
        pipeline.vae,
        pipeline.text_encoder,
        prompts,
        draw_videos(videos, pipeline, config, accelerator)
        if videos
        else draw_own_samples(prompts, pipeline, config, device),
        tuple(
            build_reward(
                table, device, half=half, recompute=config.run.recompute, load=row in needed
            )
            for row, table in enumerate(config.rewards)
        ),
        build_settings(config, pipeline.schedule, teacher, weakened=card.clean_rescale),
    )


def draw_videos(
    videos: VideoFolder | PreparedClips,
    pipeline: VideoPipeline,
    config: Config,
    accelerator: Accelerator,
) -> DrawData:
    """Return a function that draws micro-batches of videos, encoded, or of teacher outputs."""
    source: ClipSource[Clip | PreparedClip] = ClipSource(
        videos,
        config.run.micro_batch,
        workers=config.data.workers,
        max_broken=config.data.max_broken,
    )
    device, takes_fps = accelerator.device, pipeline.unet.takes_fps

    def draw(slot: Slot) -> EncodedBatch | RecordedBatch:
        clips = source(slot, accelerator.num_processes)
        if config.data.record:
            return stack_records(clips, config.data, device, takes_fps=takes_fps)
        return encode(
            clips,
            slot.generator,
            config.data,
            pipeline.vae,
            pipeline.text_encoder,
            device,
            takes_fps=takes_fps,
        )

    return draw


def draw_own_samples(
    prompts: list[str], pipeline: VideoPipeline, config: Config, device: torch.device
) -> DrawData:
    """Return a function that draws micro-batches of prompts, for the student's own samples."""
    order, count = EpochOrder(config.run.seed, len(prompts)), config.run.micro_batch
    timesteps = few_step_timesteps(config.data.sample_steps, config.teacher.grid_steps)
    encoder = pipeline.text_encoder

    def draw(slot: Slot) -> PromptBatch:
        first = (slot.step * slot.count + slot.index) * count
        chosen = [prompts[order(place)[1]] for place in range(first, first + count)]
        rates = torch.full((count,), round(config.data.fps), device=device)
        return PromptBatch(
            latent_shape=pipeline.latent_shape,
            timesteps=timesteps,
            reward_prompts=[*chosen],
            prompt_embeds=encoder.encode(chosen).float(),
            uncond_embeds=encoder.encode([""]).float().expand(count, -1, -1),
            fps=rates if pipeline.unet.takes_fps else None,
        )

    return draw


def build_student(teacher: Network, config: Config) -> Network:
    """Return the student: adapters on the teacher's own weights, or a copy that is trained whole.

    What is trained is in float32, here and in `build_fake`.
    """
    rank = config.student.lora_rank
    student = student_of(teacher, share=rank > 0, motion=config.takes_motion)
    if config.student.temporal_dropout is not None:
        set_dropout(student, config.student.temporal_dropout)
    if rank:
        generator = torch.Generator().manual_seed(config.run.seed)
        student = add_lora(
            student.requires_grad_(False),
            rank,
            generator=generator,
            dropout=config.student.lora_dropout,
            skip=config.student.lora_skip,
        )
    else:
        student.requires_grad_(True)
    return _trained_in_float32(student)


def build_fake(teacher: Network, config: Config) -> Network | None:
    """Return the second network of distribution matching, which starts as the teacher."""
    if config.matching is None:
        return None
    rank = config.matching.lora_rank
    fake = student_of(teacher, share=rank > 0).requires_grad_(rank == 0)
    if rank:
        add_lora(fake, rank, generator=torch.Generator().manual_seed(config.run.seed))
    return _trained_in_float32(fake)


def _trained_in_float32(network: Network) -> Network:
    for weight in network.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    return network


def student_with(weights: Mapping[str, Tensor], teacher: Network, config: Config) -> Network:
    """Return a student with these trained weights, such as those of a checkpoint."""
    student = build_student(teacher, config)
    student.load_state_dict(weights, strict=False)
    return student


def load_start(student: Network, teacher: ModelCard, config: Config) -> None:
    """Load the weights that training starts from: a student's adapters, or all its weights.

    Raises:
        ValueError: it is no student of this teacher, or has other weights than those that this run
            trains: it takes no guidance scale, or its adapters or motion layers differ.
    """
    name = config.student.start
    card = named_card(name)
    if card.role != "student" or card.family != teacher.family:
        raise ValueError(f"{name} is not a student of {teacher.name}. Name one in student.start.")
    own = {key: p for key, p in student.named_parameters() if p.requires_grad}
    if config.student.lora_rank and card.lora:
        weights = load_file(card.folder / card.lora / LORA_FILE)
    else:
        weights = dict(VideoPipeline.load(card, "cpu", dtype="float32").unet.named_parameters())
    if {key: w.shape for key, w in weights.items()} != {key: p.shape for key, p in own.items()}:
        raise ValueError(
            f"The weights of student.start, {name}, are not those that this run trains. "
            f"{_describe_misfit(weights, own, config)}"
        )
    student.load_state_dict(weights, strict=False)


def _describe_misfit(
    weights: Mapping[str, Tensor], own: Mapping[str, Tensor], config: Config
) -> str:
    """Say how the weights of a start differ from those that would be trained, and what to do."""
    apart = sorted(weights.keys() ^ own.keys())
    for key in apart:
        if key.endswith(".cond_proj.weight"):
            return (
                f"It lacks {key}, so it takes no guidance scale, and such a student cannot be "
                "continued. Choose another one."
            )
    for key in apart:
        if key.endswith((".motion_cond_proj.weight", ".combine_proj.weight")):
            return (
                f"It has {key}, of v2's motion strength. Set motion.strength and "
                "motion.percentage, and student.lora_rank to 0."
                if key in weights
                else f"It lacks {key}, of v2's motion strength. Set motion.strength to 0."
            )
    theirs, ours = (
        {name.removesuffix(DOWN): len(w) for name, w in side.items() if name.endswith(DOWN)}
        for side in (weights, own)
    )
    rank, skip = max(theirs.values(), default=0), set(config.student.lora_skip)
    if rank != max(ours.values(), default=0):
        return (
            f"Set student.lora_rank to {rank}, the rank of its adapters, or to 0, which trains all "
            "weights."
            if rank
            else "It has no adapters. Set student.lora_rank to 0, which trains all weights."
        )
    if theirs and skip != (others := (ours.keys() | skip) - theirs.keys()):
        side = "It has" if apart[0] in weights else "It lacks"
        return f"{side} {apart[0]}. Set student.lora_skip to {sorted(others)}."
    return "It is a student of another network. Choose a student of this teacher."


def set_dropout(student: Network, share: float) -> None:
    """Set the dropout of the temporal convolutions.

    Raises:
        ValueError: the network has none.
    """
    layers = [
        module
        for name, module in student.named_modules()
        if isinstance(module, nn.Dropout) and ".temp_convs." in name
    ]
    if not layers:
        raise ValueError(
            "This teacher has no temporal convolutions, so student.temporal_dropout cannot be "
            "applied. Leave it out."
        )
    for layer in layers:
        layer.p = share


def brightness(frames: Frames, prompts: list[str]) -> PerVideo:
    """Return the mean of all pixels: a reward that needs no weights, for trials of a set-up."""
    return frames.mean(dim=(1, 2, 3, 4))


def contrast(frames: Frames, prompts: list[str]) -> PerVideo:
    """Return the standard deviation of all pixels: a judge of `brightness`, for the same trials."""
    return frames.flatten(1).std(dim=1)


TRIALS: dict[str, Reward] = {"brightness": brightness, "contrast": contrast}


def build_model(
    name: str,
    folder: str | None,
    frames: int,
    device: torch.device,
    *,
    half: bool,
    question: str | None = None,
) -> Reward:
    """Load a published or a vote-trained reward, or take one of the trials.

    Raises:
        ValueError: it cannot be read, or scores another number of frames.
    """
    if name in TRIALS:
        return TRIALS[name]
    loaded = load_reward(name, reward_folder(name, folder), question)
    if (wanted := getattr(loaded, "num_frames", frames)) != frames:
        raise ValueError(
            f"{name} scores {wanted} frames of a video. Set its frames to {wanted}, not {frames}."
        )
    return loaded.to(device, torch.bfloat16 if half else torch.float32)


def reward_folder(name: str, folder: str | None) -> Path:
    """Return the folder of a reward's files."""
    return Path(folder or f"rewards/{name}")


def count_reward_frames(table: RewardTable) -> int:
    """Return how many frames of a video a reward scores, without loading it.

    Raises:
        ValueError: the configuration does not say it, nor does the card of a vote-trained reward.
    """
    if table.frames is not None:
        return table.frames
    folder = reward_folder(table.name, table.folder)
    if not (folder / CARD).is_file():
        raise ValueError(
            f"rewards: {table.name} has no frames. Set how many frames of a video it scores."
        )
    return read_vote_card(folder).num_frames


def simulated_rewards(config: Config) -> list[str]:
    """Return the names of the rewards that were trained on simulated votes.

    Raises:
        ValueError: the card of a vote-trained reward is damaged.
    """
    known = {*TRIALS, *EMBEDDED, *REWARDS}
    others = [table for table in config.rewards if table.name not in known]
    folders = [reward_folder(table.name, table.folder) for table in others]
    return [
        table.name
        for table, folder in zip(others, folders, strict=True)
        if (folder / CARD).is_file() and read_vote_card(folder).simulated
    ]


def of_others(frames: Frames, prompts: list[str]) -> PerVideo:
    """Stand in for a reward that other processes compute."""
    raise RuntimeError("This process does not have the reward that it was to compute.")


def needed_rewards(config: Config, processes: int, rank: int) -> set[int]:
    """Return which rewards a process computes: those dealt to its micro-batches."""
    count, slots = len(config.rewards), config.run.batch // config.run.micro_batch
    if config.watch or not config.run.split_rewards:  # a watch scores by all of them
        return set(range(count))
    return {index % count for index in range(rank, slots, processes)} if count else set()


def build_reward(
    table: RewardTable, device: torch.device, *, half: bool, recompute: bool, load: bool
) -> WeightedReward:
    """Return one term of the mixture, with its model if this process needs it."""
    model: Reward = of_others
    frames = count_reward_frames(table)
    if load:
        model = build_model(
            table.name, table.folder, frames, device, half=half, question=table.question
        )
    if recompute:
        recompute_blocks(model)
    return WeightedReward(
        name=table.name,
        model=model,
        weight=table.weight,
        frames=frames,
        select=SELECT[table.select],
        random_crop=table.crop == "random",
        window=Window(table.window, table.window_at == "start") if table.window else None,
    )


def build_motion(config: Config, schedule: Schedule, teacher: Network) -> MotionGuidance | None:
    """Return the guidance of the teacher's steps; None if the student does not take it.

    Raises:
        ValueError: there is no such energy, or not for this teacher.
    """
    motion = config.motion
    if motion is None or not config.takes_motion:
        return None
    if motion.energy not in ENERGIES:
        raise ValueError(
            f"There is no energy {motion.energy!r}. Choose from: {', '.join(ENERGIES)}."
        )
    if not isinstance(teacher, VideoUNet):
        raise ValueError(
            f"The energy {motion.energy!r} needs temporal attention, which this teacher does not "
            "have. Remove [motion]."
        )
    timesteps = SolverGrid(config.teacher.grid_steps).timesteps
    layers = tuple(motion.layers or MOTION_LAYERS)
    return MotionGuidance(
        strength=motion.strength,
        percentage=motion.percentage,
        energy=ENERGIES[motion.energy](teacher, schedule, timesteps, layers),
    )


def build_settings(
    config: Config, schedule: Schedule, teacher: Network, *, weakened: bool = False
) -> DistillationConfig:
    """Return the settings of the training step.

    Args:
        weakened: whether the teacher was trained on weakened latents, as its card says.
    """
    run, student = config.run, config.student
    low, high = config.teacher.guidance
    continuous = student.method == "continuous"
    if continuous and not isinstance(schedule, FlowSchedule):
        raise ValueError(
            f"student.method continuous needs a flow-matching teacher, and {config.teacher.model} "
            "has a noise schedule. Set it to discrete."
        )
    fit = FitConfig(
        steps=run.steps,
        learning_rate=run.learning_rate,
        eight_bit=run.optimizer == "adamw8bit",
        warmup=run.warmup,
        decay=run.decay,
        weight_decay=run.weight_decay,
        betas=run.betas,
        clip_norm=run.clip_norm,
        ema=run.weight_ema,
        slots=run.batch // run.micro_batch,
        max_spike=run.max_spike,
        checkpoint_every=run.checkpoint_every,
        keep=run.keep,
        seed=run.seed,
    )
    return DistillationConfig(
        fit=fit,
        schedule=schedule,
        grid=SolverGrid(len(schedule) if continuous else config.teacher.grid_steps),
        draw_guidance=partial(draw_guidance, low=low, high=high),
        method=student.method,
        tangent_warmup=student.tangent_warmup,
        target_ema=student.target_ema,
        target_dropout=student.target_dropout,
        distance=squared
        if student.distance == "l2"
        else partial(pseudo_huber, kappa=student.kappa),
        timestep_scaling=student.timestep_scaling,
        motion=build_motion(config, schedule, teacher),
        split_rewards=run.split_rewards,
        recompute=run.recompute,
        shard=run.shard,
        rate_factor=lambda name: student.temporal_rate if is_temporal(name) else 1.0,
        fake_rate=config.matching.rate if config.matching else 1.0,
        fake_warmup=config.matching.warmup if config.matching else 0,
        scales=signal_scales(len(schedule)) if weakened else None,
    )


def is_temporal(name: str) -> bool:
    """Return whether a parameter is of a temporal transformer: what v2 can train at its own rate.

    Temporal convolutions are not, as in the published code.
    """
    return name.startswith("transformer_in.") or ".temp_attentions." in name
