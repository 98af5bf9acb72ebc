"""The shapes students: consistency distillation of the teacher, without and with rewards."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from training.checkpoints import averaged_student, load_newest
from training.loop import FitConfig, Slot
from training.settings import DistillationConfig, EncodedBatch, PromptBatch
from training.shapes.world.encoded_clips import CAPTIONS, EncodedClips
from training.shapes.world.scenes import TEMPLATES, TRAIN_SCENES
from turbo.diffusion.consistency import few_step_timesteps
from turbo.diffusion.distillation import SolverGrid, student_of
from turbo.models.registry import find_card
from turbo.networks.families import Network
from turbo.networks.lora import add_lora
from turbo.rewards.feedback import WeightedReward, stride_frames
from turbo.rewards.image_text import ImageTextReward
from turbo.rewards.viclip import VideoTextReward
from turbo.types import PerVideo, Schedule

CARD = find_card("shapes-vcm")
MATCHED = find_card("shapes-turbo-dmd")
START_FIT = FitConfig(  # without rewards, once for all students of a run
    steps=400, learning_rate=6e-4, warmup=30, decay=0.0, ema=0.98, slots=2, checkpoint_every=50,
    seed=6,
)  # fmt: skip
FIT = FitConfig(  # then each student with its own rewards
    steps=360, learning_rate=2e-4, warmup=10, decay=0.8, ema=0.98, slots=2, checkpoint_every=60,
    seed=7,
)  # fmt: skip
MATCHING_FIT = FitConfig(  # then Turbo, on its own samples
    steps=500, learning_rate=2e-4, warmup=10, decay=0.5, ema=0.98, slots=2, checkpoint_every=60,
    seed=9,
)  # fmt: skip
FAKE_RATE = 2.0  # factor of the learning rate of the fake
FAKE_WARMUP = 60  # steps in which it learns alone
BATCH = 8  # clips per micro-batch
TARGET_EMA = 0.9
GRID = SolverGrid(CARD.origin_steps)  # 20 steps: longer teacher steps than with the paper's 50
GUIDANCE_RANGE = (CARD.min_guidance, CARD.max_guidance)  # w in the LCM convention
IMAGE_FRAMES = 4  # decoded for the image reward; the published code takes 5 of 16


@dataclass(frozen=True)
class Variant:
    """The weights of a student's two rewards; 0 leaves a reward out."""

    label: str
    image_weight: float = 0.0  # beta_img
    video_weight: float = 0.0  # beta_vid

    @property
    def has_rewards(self) -> bool:
        """Return whether it needs the reward models, which do not exist yet at the common start."""
        return bool(self.image_weight or self.video_weight)

    def rewards(self, image: ImageTextReward, video: VideoTextReward) -> tuple[WeightedReward, ...]:
        """Return the terms of the reward mixture."""
        mixture = (
            WeightedReward(
                name="image", model=image, weight=self.image_weight, frames=IMAGE_FRAMES
            ),
            WeightedReward(
                name="video",
                model=video,
                weight=self.video_weight,
                frames=video.num_frames,
                select=stride_frames,
            ),
        )
        return tuple(reward for reward in mixture if reward.weight)


STUDENTS = {
    "vcm": Variant("no rewards"),
    "vcm-image": Variant("image reward", image_weight=0.4),
    "vcm-video": Variant("video reward", video_weight=0.5),
    "turbo": Variant("both, as shipped", image_weight=0.4, video_weight=0.5),
}
REWARD_SWEEP = {  # larger weights, to see where rewards stop helping
    "strong": Variant("image 3, video 8 times", image_weight=1.2, video_weight=4.0),
    "hacked": Variant("both 40 times", image_weight=16.0, video_weight=20.0),
}
ALL = STUDENTS | REWARD_SWEEP
TRAIN_CAPTIONS = torch.tensor(
    [CAPTIONS.index(scene.caption(t)) for scene in TRAIN_SCENES for t in TEMPLATES]
)


def distillation_config(
    fit: FitConfig, schedule: Schedule, *, matching: bool = False
) -> DistillationConfig:
    """Return the settings of the shapes distillation, for any of its phases."""
    return DistillationConfig(
        fit=fit,
        schedule=schedule,
        grid=GRID,
        draw_guidance=best_guidance if matching else draw_guidance,
        method="matching" if matching else "discrete",
        target_ema=0.0 if matching else TARGET_EMA,
        fake_rate=FAKE_RATE,
        fake_warmup=FAKE_WARMUP if matching else 0,
    )


def batch_source(
    clips: EncodedClips, captions: Tensor, batch_size: int
) -> Callable[[Slot], EncodedBatch]:
    """Return a function that draws batches of the training clips.

    Args:
        captions: text embeddings (1 + captions, L, D); entry 0 is the empty prompt.
    """

    def draw_encoded(slot: Slot) -> EncodedBatch:
        rows = torch.randint(len(clips), (batch_size,), generator=slot.generator)
        return EncodedBatch(
            latents=clips.latents[rows].float(),
            reward_prompts=[CAPTIONS[index] for index in clips.caption[rows].tolist()],
            prompt_embeds=captions[clips.caption[rows] + 1],
            uncond_embeds=captions[:1].expand(batch_size, -1, -1),
        )

    return draw_encoded


def prompt_source(
    latent_shape: tuple[int, int, int, int], captions: Tensor, batch_size: int
) -> Callable[[Slot], PromptBatch]:
    """Return a function that draws captions of training scenes, for on-policy training.

    Args:
        latent_shape: of one clip.
        captions: as for `batch_source`.
    """
    timesteps = few_step_timesteps(CARD.default_steps, GRID.num_steps)

    def draw_prompts(slot: Slot) -> PromptBatch:
        draw = torch.randint(len(TRAIN_CAPTIONS), (batch_size,), generator=slot.generator)
        rows = TRAIN_CAPTIONS[draw]
        return PromptBatch(
            latent_shape=latent_shape,
            timesteps=timesteps,
            reward_prompts=[CAPTIONS[row] for row in rows.tolist()],
            prompt_embeds=captions[rows + 1],
            uncond_embeds=captions[:1].expand(batch_size, -1, -1),
        )

    return draw_prompts


def draw_guidance(batch_size: int, generator: torch.Generator) -> PerVideo:
    """Draw the guidance scale w log-uniformly from `GUIDANCE_RANGE`.

    With u uniform in [0, 1], w = low (high / low)^u. The shapes teacher is best near w = 1.
    """
    low, high = GUIDANCE_RANGE
    return low * (high / low) ** torch.rand(batch_size, generator=generator)


def best_guidance(batch_size: int, generator: torch.Generator) -> PerVideo:
    """Return the w at which the teacher is best, for all: over a range, matching gained nothing."""
    return torch.full((batch_size,), MATCHED.default_guidance)


def of_run(fit: FitConfig, run: int) -> FitConfig:
    """Return the settings with the seed of a run, from 1."""
    return replace(fit, seed=fit.seed + 100 * (run - 1))


def build_student(teacher: Network, rank: int, run: int = 1) -> Network:
    """Add the guidance projection and the adapters to the teacher's own weights.

    Only these are trained.
    """
    student = student_of(teacher, share=True).requires_grad_(False)
    seed = of_run(FIT, run).seed
    return add_lora(student, rank, generator=torch.Generator().manual_seed(seed))


def load_averaged_student(teacher: Network, rank: int, folder: Path) -> Network:
    """Load the averaged student of the newest checkpoint, as training would return it there.

    Raises:
        FileNotFoundError: there is no checkpoint.
    """
    content = load_newest(folder)
    if content is None:
        raise FileNotFoundError(f"There is no checkpoint in {folder}. Train the student first.")
    student = build_student(teacher, rank)
    student.load_state_dict(averaged_student(content), strict=False)
    return student
