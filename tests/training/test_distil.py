"""Distillation of any teacher: what is trained, towards which target, and how it resumes."""

import os
import signal
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from tests.support.tiny_models import make_unet
from training import distil as module
from training.checkpoints import averaged_student, load_newest
from training.distil import distil, draw_on_policy, stop_on_sigterm
from training.loop import FitConfig, Slot
from training.settings import (
    DistillationConfig,
    EncodedBatch,
    MotionGuidance,
    PromptBatch,
    RecordedBatch,
)
from turbo.diffusion.consistency import embed_guidance_scale, few_step_timesteps
from turbo.diffusion.distillation import SolverGrid, draw_guidance, student_of
from turbo.diffusion.teacher_cache import TeacherRecord
from turbo.networks.lora import add_lora
from turbo.networks.unet import VideoUNet
from turbo.rewards.feedback import WeightedReward, stride_frames
from turbo.types import Conditioning

FIT = FitConfig(steps=4, learning_rate=1e-2, warmup=1, decay=0.0, ema=0.5, checkpoint_every=1)
SHAPE = (2, 4, 3, 4, 4)
FPS = torch.tensor([8, 12])


class Scaling(VideoUNet):
    """A network of two weights: it predicts a multiple of its input, and remembers its calls."""

    guidance_size, takes_fps = 256, True
    calls: list[tuple["Scaling", bool, Conditioning]] = []  # network, in train mode, conditioning
    recomputing: list["Scaling"] = []

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.gain, self.text = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.tensor(0.1))

    def forward(self, noisy, timesteps, prompt_embeds, conditioning):
        self.calls.append((self, self.training, conditioning))
        text = prompt_embeds.mean(dim=(1, 2)).view(-1, 1, 1, 1, 1)
        return self.gain * noisy + self.text * text

    def enable_gradient_checkpointing(self) -> None:
        self.recomputing.append(self)


@pytest.fixture
def start(tiny_vae, schedule, tmp_path: Path):
    """Return a function that starts a distillation of a network of two weights."""
    Scaling.calls.clear()
    Scaling.recomputing.clear()

    def start(
        name: str,
        rewards: tuple[WeightedReward, ...] = (),
        *,
        reward_prompts: tuple[str | None, ...] = ("a cat", "a dog"),
        data: str = "videos",
        teacher: VideoUNet | None = None,
        student: VideoUNet | None = None,
        fake: VideoUNet | None = None,
        **changes,
    ):
        def draw(slot: Slot) -> EncodedBatch | PromptBatch | RecordedBatch:
            latents = torch.randn(SHAPE, generator=slot.generator)
            embeds = torch.randn(2, 5, 16, generator=slot.generator)
            prompts, fps = [*reward_prompts], FPS if isinstance(student, Scaling) else None
            empty = torch.zeros(2, 5, 16)
            if data == "prompts":
                steps = few_step_timesteps(4, 20)
                return PromptBatch(SHAPE[1:], steps, prompts, embeds, empty, fps)
            if data == "record":
                start, end = SolverGrid(20).draw(2, slot.generator)
                outputs = {"noisy": latents, "cond": latents, "uncond": latents, "score": latents}
                record = TeacherRecord(
                    **outputs, start=start, end=end, prompt_embeds=embeds, fps=fps
                )
                return RecordedBatch(record, prompts, torch.tensor([True, False]))
            return EncodedBatch(latents, prompts, embeds, empty, fps)

        config = DistillationConfig(
            **{
                "fit": FIT,
                "schedule": schedule,
                "grid": SolverGrid(20),
                "draw_guidance": draw_guidance,
                "target_ema": 0.9,
            }
            | changes
        )
        student = student or Scaling()
        teacher = teacher or Scaling()
        start.teacher, start.student = teacher, student
        folder = tmp_path / name
        return student, distil(
            teacher, student, draw, folder, config, rewards=rewards, vae=tiny_vae, fake=fake
        )

    return start


def start_matching(start, name: str, rewards: tuple[WeightedReward, ...] = (), **changes):
    """Start distribution matching, on the student's own samples."""
    settings = {"method": "matching", "target_ema": 0.0, "fake": Scaling(), "data": "prompts"}
    return start(name, rewards, **settings | changes)


def start_adapters(start, name: str):
    """Start the distillation of a tiny teacher into adapters."""
    teacher = make_unet(temporal_dropout=0.0)
    student = student_of(teacher, share=True).requires_grad_(False)
    student = add_lora(student, 2, generator=torch.Generator().manual_seed(0))
    return start(name, teacher=teacher, student=student)


def scoring(score: float, weight: float = 1.0, name: str = "") -> WeightedReward:
    """A reward that gives every video the same score."""
    return WeightedReward(
        name=name,
        model=lambda frames, prompts: torch.full((len(frames),), score),
        weight=weight,
        frames=3,
        select=stride_frames,
    )


def brightness(weight: float) -> tuple[WeightedReward, ...]:
    """A reward of bright frames."""
    return (replace(scoring(0, weight), model=lambda frames, prompts: frames.mean((1, 2, 3, 4))),)


def ones(error: torch.Tensor) -> torch.Tensor:
    """A distance that is always 1."""
    return 1 + 0 * error


def nothing(error: torch.Tensor) -> torch.Tensor:
    """A distance that is always 0."""
    return 0 * error


def roles(start) -> dict[str, list[tuple[bool, Conditioning]]]:
    """Return mode and conditioning of every call, by the part that the network plays."""
    called: dict[str, list[tuple[bool, Conditioning]]] = {}
    for network, training, conditioning in Scaling.calls:
        parts = {id(start.teacher): "teacher", id(start.student): "student"}
        called.setdefault(parts.get(id(network), "target"), []).append((training, conditioning))
    return called


def test_the_teacher_drops_nothing_out(start):
    _, steps = start("run")
    start.teacher.train()
    next(steps)

    called = roles(start)
    assert not any(training for training, _ in called["teacher"])
    assert all(training for training, _ in called["student"])


@pytest.mark.parametrize("dropout", [True, False])
@pytest.mark.parametrize("target_ema", [0.0, 0.9])
def test_the_target_drops_out_if_asked(start, target_ema, dropout):
    _, steps = start("run", target_ema=target_ema, target_dropout=dropout)
    next(steps)

    called = roles(start)
    if target_ema == 0 and dropout:
        assert len(called["student"]) == 2 and "target" not in called
    else:
        assert [training for training, _ in called["target"]] == [dropout]


def test_every_network_is_told_the_guidance_and_the_frame_rate_of_each_video(start):
    scales = torch.tensor([5.5, 14.0])
    _, steps = start("run", draw_guidance=lambda count, generator: scales)
    next(steps)

    called, wanted = roles(start), embed_guidance_scale(scales)
    for role in ("student", "target"):
        [(_, told)] = called[role]
        assert_close(told.guidance, wanted)
        assert torch.equal(told.fps, FPS)
    [(_, told)] = called["teacher"]  # with prompt and without, in one call
    assert torch.equal(told.fps, torch.cat([FPS, FPS]))


def test_a_student_is_told_the_motion_strength_and_that_a_video_is_not_guided(start):
    motion = MotionGuidance(strength=0.05, percentage=1.0, energy=lambda *inputs: None)
    _, steps = start("run", data="record", motion=motion)
    next(steps)

    called = roles(start)
    for role in ("student", "target"):
        [(_, told)] = called[role]
        assert_close(told.motion, embed_guidance_scale(torch.tensor([0.05, 0.0])))


@pytest.mark.parametrize("data", ["videos", "record", "prompts"])
def test_the_loss_is_the_chosen_distance_less_the_weighted_score(start, data):
    _, steps = start(data, (scoring(3.0, weight=2.0),), data=data, distance=ones)

    assert next(steps).loss == pytest.approx(1 - 2 * 3)


def test_split_rewards_keep_the_objective_and_score_each_micro_batch_once(start):
    scored = []

    def score(name: str, value: float):
        def model(frames: torch.Tensor, prompts: list[str]) -> torch.Tensor:
            scored.append(name)
            return torch.full((len(frames),), value)

        return model

    rewards = tuple(
        replace(scoring(0, weight, name), model=score(name, value))
        for name, weight, value in [("a", 1.0, 2.0), ("b", 3.0, 5.0)]
    )
    fit = replace(FIT, slots=3)
    _, steps = start("run", rewards, distance=nothing, split_rewards=True, fit=fit)

    assert next(steps).loss == pytest.approx(-(1 * 2 + 3 * 5))
    assert scored == ["a", "b", "a"]


@pytest.mark.parametrize("data", ["videos", "record", "prompts", "matching"])
def test_a_killed_distillation_resumes_with_the_same_steps(start, data):
    def begin(name: str):
        if data == "matching":
            return start_matching(start, name, brightness(1.0))
        return start(name, brightness(1.0), data=data)

    whole, steps = begin("whole")
    losses = [step.loss for step in steps]
    _, steps = begin("killed")
    before = [step.loss for step in islice(steps, 2)]

    resumed, steps = begin("killed")
    after = [step.loss for step in steps]

    assert before + after == losses
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


def test_only_adapters_and_guidance_projection_are_trained(start, tmp_path: Path):
    student, steps = start_adapters(start, "run")
    before = {name: weight.clone() for name, weight in student.state_dict().items()}

    next(steps)

    changed = {n for n, w in student.state_dict().items() if not torch.equal(w, before[n])}
    assert changed
    assert all("lora" in name or "cond_proj" in name for name in changed)
    content = load_newest(tmp_path / "run")
    trained = {name for name, p in student.named_parameters() if p.requires_grad}
    for kind in ("trained", "average", "companions"):
        assert content[kind].keys() == trained
    assert len(content["optimizer"]["state"]) == len(trained)


def test_rewards_alone_train_the_student(start):
    before = Scaling().gain.item()
    fit = replace(FIT, weight_decay=0.0)
    student, steps = start("run", brightness(1.0), distance=nothing, fit=fit)
    next(steps)

    assert student.gain.item() != before


def test_each_parameter_has_its_own_rate(start):
    before = Scaling()
    student, steps = start("run", rate_factor=lambda name: float(name == "gain"))
    next(steps)

    assert student.gain != before.gain and student.text == before.text


def test_student_and_teacher_can_recompute_their_activations(start):
    _, steps = start("run", recompute=True)
    next(steps)

    assert {*map(id, Scaling.recomputing)} == {id(start.student), id(start.teacher)}


def test_a_target_that_is_the_student_is_no_copy_and_takes_the_same_steps(start, tmp_path: Path):
    _, steps = start("itself", target_ema=0.0)
    itself = [step.loss for step in steps]
    _, steps = start("copied", target_ema=1e-30)  # a copy, which follows at every step
    copied = [step.loss for step in steps]

    assert itself == pytest.approx(copied, rel=1e-5)
    assert load_newest(tmp_path / "itself")["companions"] == {}


@pytest.mark.parametrize("target_ema", [1.0, 0.75, 1e-30])
def test_the_target_follows_the_student_once_a_step_at_its_own_rate(start, tmp_path, target_ema):
    student, steps = start("run", target_ema=target_ema, fit=replace(FIT, slots=2))
    first = student.gain.item()
    next(steps)
    second = load_newest(tmp_path / "run")["trained"]["gain"].item()
    next(steps)

    target = load_newest(tmp_path / "run")["companions"]

    assert target.keys() == {"gain", "text"} and second != first
    assert target["gain"].item() == pytest.approx(target_ema * first + (1 - target_ema) * second)


def test_videos_without_a_prompt_for_rewards_are_not_scored(start):
    seen = []

    def score(frames: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        seen.append((frames.detach(), prompts))
        return torch.full((len(frames),), 100.0)

    reward = (replace(scoring(0), model=score),)
    _, steps = start("plain", reward, reward_prompts=(None, None), distance=ones)
    assert next(steps).loss == pytest.approx(1)
    _, steps = start("half", reward, reward_prompts=(None, "a dog"), distance=ones)
    assert next(steps).loss == pytest.approx(1 - 50)  # half of the videos have the score
    _, steps = start("all", reward, distance=ones)
    next(steps)

    (half, prompts), (whole, _) = seen
    assert prompts == ["a dog"]
    assert_close(half, whole[1:])


def test_on_policy_micro_batches_take_the_timesteps_of_the_sampler_in_turn(schedule, monkeypatch):
    noises, roll_out = [], module.roll_out

    def remember(student, schedule, drawn, *rest, **settings):
        noises.append(torch.stack([*drawn]))
        return roll_out(student, schedule, drawn, *rest, **settings)

    monkeypatch.setattr(module, "roll_out", remember)
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
        noisy, inputs = draw_on_policy(Scaling(), drawn, slot, config)
        assert noisy.shape == (2, 4, 3, 4, 4)
        assert (inputs.start - inputs.end == 50).all()
        starts.append(inputs.start.tolist())

    assert starts == [[999, 999], [749, 749], [749, 749], [499, 499], [249, 249]]
    for fresh in noises:  # (step of the sampler, video, ...): all of them different
        assert len(fresh.flatten(0, 1).flatten(1).unique(dim=0)) == 2 * len(fresh)


def test_matching_trains_student_and_fake_at_their_own_rates_and_not_the_teacher(start, tmp_path):
    fit = replace(FIT, learning_rate=1e-3, weight_decay=0.0, clip_norm=1e9)
    before, fake = Scaling(), Scaling()
    rates = {"fake_rate": 5.0, "rate_factor": lambda name: 2.0 if name == "gain" else 1.0}
    student, steps = start_matching(start, "run", brightness(1.0), fake=fake, fit=fit, **rates)
    next(steps)

    # The first step of AdamW has the size of the rate.
    assert abs(student.gain - before.gain).item() == pytest.approx(2e-3, rel=1e-3)
    assert abs(student.text - before.text).item() == pytest.approx(1e-3, rel=1e-3)
    assert abs(fake.gain - before.gain).item() == pytest.approx(5e-3, rel=1e-3)
    assert torch.equal(start.teacher.gain, before.gain)
    content = load_newest(tmp_path / "run")
    assert averaged_student(content).keys() == {"gain", "text"}
    assert_close(averaged_student(content)["gain"], student.gain.detach())


def test_the_fake_drops_nothing_out_and_is_told_guidance_and_frame_rate(start):
    fake, scales = Scaling(), torch.tensor([5.5, 14.0])
    _, steps = start_matching(
        start, "run", fake=fake, draw_guidance=lambda count, generator: scales
    )
    next(steps)

    [(training, told)] = [call[1:] for call in Scaling.calls if call[0] is fake]
    assert not training
    assert_close(told.guidance, embed_guidance_scale(scales))
    assert torch.equal(told.fps, FPS)


def test_the_fake_learns_alone_before_the_student_does(start, tmp_path):
    fit = replace(FIT, weight_decay=0.0, ema=0.0, steps=3, keep=3)
    before, fake = Scaling(), Scaling()
    _, steps = start_matching(start, "run", brightness(1.0), fake=fake, fit=fit, fake_warmup=2)
    saved = [load_newest(tmp_path / "run")["trained"] for _ in steps]

    gains = [content["student.gain"] for content in saved]
    assert gains[0] == gains[1] == before.gain != gains[2]
    assert len({float(content["fake.gain"]) for content in saved} - {before.gain.item()}) == 3


@pytest.mark.parametrize(
    "changes", [{"fake": None}, {"method": "discrete"}, {"data": "videos"}], ids=str
)
def test_matching_refuses_what_it_cannot_use(start, changes):
    _, steps = start_matching(start, "run", **changes)

    with pytest.raises(ValueError, match="matching"):
        next(steps)


def test_sigterm_is_noticed_and_then_handled_as_before():
    before = signal.getsignal(signal.SIGTERM)

    with stop_on_sigterm() as should_stop:
        assert not should_stop()
        os.kill(os.getpid(), signal.SIGTERM)
        assert should_stop()

    assert signal.getsignal(signal.SIGTERM) is before
