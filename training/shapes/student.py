"""The shapes student: the teacher's consistency distillation, as VideoCrafter2's would run."""

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn

from training.loop import FitConfig, StepReport, fit
from training.shapes.clips import EncodedClips
from training.shapes.teacher import SCHEDULE
from turbo.distillation import SolverGrid, consistency_loss, draw_batch, student_of, update_ema
from turbo.lora import add_lora, merge_lora
from turbo.unet import VideoUNet

CONFIG = FitConfig(
    steps=400, learning_rate=3e-4, warmup=30, decay=0.5, ema=0.98, checkpoint_every=50, seed=6
)
BATCH = 8  # clips per process
RANK = 32  # of the adapters; half the width of the network
TARGET_EMA = 0.95  # decay of the target's weights
GRID = SolverGrid(50)
GUIDANCE_RANGE = (1.0, 8.0)  # w in the LCM convention; the teacher is at its best inside it


def train_student(
    teacher: VideoUNet,
    student: VideoUNet,
    clips: EncodedClips,
    captions: Tensor,
    checkpoint: Path,
) -> Iterator[StepReport]:
    """Distil `teacher` into `student` (from `build_student`), in place.

    The target is an exponential moving average of the student, as in the paper. With the student
    itself as target, as in the published code, it collapsed to one constant clip (600 steps at a
    learning rate of 1e-3).

    Args:
        captions: text embeddings (1 + captions, L, D); entry 0 is the empty prompt.
    """
    teacher.eval().requires_grad_(False)
    target = deepcopy(student).requires_grad_(False)
    networks = nn.ModuleDict({"student": student, "target": target})  # one checkpoint for both

    def draw_loss(generator: torch.Generator) -> Tensor:
        update_ema(target, student, TARGET_EMA)
        rows = torch.randint(len(clips), (BATCH,), generator=generator)
        batch = draw_batch(
            clips.latents[rows].float(),
            captions[clips.caption[rows] + 1],
            captions[:1].expand(BATCH, -1, -1),
            grid=GRID,
            generator=generator,
            guidance_range=GUIDANCE_RANGE,
        )
        return consistency_loss(student, target, teacher, batch, SCHEDULE).value

    yield from fit(networks, draw_loss, CONFIG, checkpoint)
    merge_lora(student)


def build_student(teacher: VideoUNet) -> VideoUNet:
    """Copy the teacher, add the guidance projection and the adapters to be trained."""
    student = student_of(teacher).requires_grad_(False)
    return add_lora(student, RANK, generator=torch.Generator().manual_seed(CONFIG.seed))
