"""Distillation of any teacher: what is trained, towards which target, and how it resumes."""

from itertools import islice
from pathlib import Path

import pytest
import torch

from tests.support.tiny_models import make_unet
from training.checkpoints import load_newest
from training.distil import distil, draw_on_policy
from training.loop import FitConfig, Slot
from training.settings import DistillationConfig, EncodedBatch, PromptBatch
from turbo.diffusion.consistency import few_step_timesteps
from turbo.diffusion.distillation import SolverGrid, draw_guidance, student_of
from turbo.networks.lora import add_lora
from turbo.rewards import WeightedReward

FIT = FitConfig(steps=4, learning_rate=1e-2, warmup=1, decay=0.0, ema=0.5, checkpoint_every=1)


@pytest.fixture
def start(tiny_vae, schedule, tmp_path: Path):
    """Return a function that starts a distillation of a tiny teacher without dropout."""
    teacher = make_unet(temporal_dropout=0.0)

    def start(
        name: str,
        rewards: tuple[WeightedReward, ...] = (),
        target_ema: float = 0.9,
        reward_prompts: tuple[str | None, ...] = ("a cat", "a dog"),
    ):
        def draw_encoded(slot: Slot) -> EncodedBatch:
            return EncodedBatch(
                latents=torch.randn(2, 4, 3, 4, 4, generator=slot.generator),
                reward_prompts=[*reward_prompts],
                prompt_embeds=torch.randn(2, 5, 16, generator=slot.generator),
                uncond_embeds=torch.zeros(2, 5, 16),
            )

        student = student_of(teacher, share=True).requires_grad_(False)
        student = add_lora(student, 2, generator=torch.Generator().manual_seed(0))
        config = DistillationConfig(
            fit=FIT,
            schedule=schedule,
            grid=SolverGrid(20),
            draw_guidance=draw_guidance,
            target_ema=target_ema,
        )
        return student, distil(
            teacher, student, draw_encoded, tmp_path / name, config, rewards=rewards, vae=tiny_vae
        )

    start.teacher = teacher
    return start


def test_the_teacher_drops_nothing_out(start):
    start.teacher.train()

    _, steps = start("run")
    next(steps)

    assert not any(module.training for module in start.teacher.modules())


def brightness(weight: float) -> tuple[WeightedReward, ...]:
    """A reward of bright frames."""
    return (
        WeightedReward(
            name="brightness",
            model=lambda frames, prompts: frames.mean(dim=(1, 2, 3, 4)),
            weight=weight,
            frames=2,
        ),
    )


@pytest.mark.slow
def test_a_killed_distillation_resumes_with_the_same_steps(start):
    whole, steps = start("whole", brightness(1.0))
    losses = [step.loss for step in steps]
    _, steps = start("killed", brightness(1.0))
    before = [step.loss for step in islice(steps, 2)]

    resumed, steps = start("killed", brightness(1.0))
    after = [step.loss for step in steps]

    assert before + after == losses
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


def test_only_adapters_and_guidance_projection_are_trained(start, tmp_path: Path):
    student, steps = start("run")
    before = {name: weight.clone() for name, weight in student.state_dict().items()}

    list(steps)

    changed = {n for n, w in student.state_dict().items() if not torch.equal(w, before[n])}
    assert changed
    assert all("lora" in name or "cond_proj" in name for name in changed)


@pytest.mark.slow
def test_rewards_change_what_the_student_learns(start):
    plain, steps = start("plain")
    plain_losses = [step.loss for step in steps]
    rewarded, steps = start("rewarded", brightness(10.0))
    losses = [step.loss for step in steps]

    assert losses[0] < plain_losses[0]  # the same batch, less the weighted reward
    assert any(  # so the reward has a gradient with respect to the student
        not torch.allclose(ours, theirs, atol=1e-4)
        for ours, theirs in zip(plain.parameters(), rewarded.parameters(), strict=True)
    )


@pytest.mark.slow
def test_a_target_that_is_the_student_is_no_copy_and_takes_the_same_steps(start, tmp_path: Path):
    _, steps = start("itself", target_ema=0.0)
    itself = [step.loss for step in steps]
    _, steps = start("copied", target_ema=1e-30)  # a copy, which follows at every step
    copied = [step.loss for step in steps]

    assert itself == pytest.approx(copied, rel=1e-5)
    assert load_newest(tmp_path / "itself")["companions"] == {}


@pytest.mark.slow
@pytest.mark.parametrize("target_ema, follows", [(1.0, False), (1e-30, True)])
def test_the_target_follows_the_student_at_its_own_rate(start, tmp_path, target_ema, follows):
    _, steps = start("run", target_ema=target_ema)
    next(steps)
    student = load_newest(tmp_path / "run")["trained"]
    next(steps)

    target = load_newest(tmp_path / "run")["companions"]

    assert target.keys() == student.keys()
    assert all(torch.equal(weight, target[name]) for name, weight in student.items()) == follows


def test_a_checkpoint_holds_what_is_trained_and_the_base_serves_teacher_and_student(
    start, tmp_path: Path
):
    student, steps = start("run")
    next(steps)

    content = load_newest(tmp_path / "run")

    trained = {name for name, p in student.named_parameters() if p.requires_grad}
    for kind in ("trained", "average", "companions"):
        assert content[kind].keys() == trained
    assert len(content["optimizer"]["state"]) == len(trained)


@pytest.mark.slow
def test_videos_without_a_prompt_for_rewards_are_not_scored(start):
    seen = []

    def score(frames: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        seen.append((len(frames), prompts))
        return torch.full((len(frames),), 100.0)

    reward = (WeightedReward(name="", model=score, weight=1.0, frames=2),)
    _, steps = start("plain", reward, reward_prompts=(None, None))
    plain = next(steps).loss
    _, steps = start("half", reward, reward_prompts=(None, "a dog"))
    half = next(steps).loss

    assert seen == [(1, ["a dog"])]
    assert half == pytest.approx(plain - 50, abs=1e-3)  # half of the videos have the score


def test_on_policy_micro_batches_take_the_timesteps_of_the_sampler_in_turn(schedule):
    student = student_of(make_unet())
    config = DistillationConfig(
        fit=FIT,
        schedule=schedule,
        grid=SolverGrid(20),
        draw_guidance=draw_guidance,
        target_ema=0.9,
    )
    drawn = PromptBatch(
        latent_shape=(4, 3, 4, 4),
        timesteps=few_step_timesteps(4, 20),
        reward_prompts=["a cat", "a dog"],
        prompt_embeds=torch.randn(2, 5, 16),
        uncond_embeds=torch.zeros(2, 5, 16),
    )

    starts = []
    for step, index in [(0, 0), (0, 1), (1, 0), (1, 1), (2, 1)]:
        slot = Slot(step, index, 2, index == 0, torch.Generator().manual_seed(0))
        noisy, inputs = draw_on_policy(student, drawn, slot, config)
        assert noisy.shape == (2, 4, 3, 4, 4)
        assert (inputs.start - inputs.end == 50).all()
        starts.append(inputs.start.tolist())

    assert starts == [[999, 999], [749, 749], [749, 749], [499, 499], [249, 249]]
