"""A watch on a run: clips of held-out prompts at intervals, and judges that give no reward.

A student can learn to please its rewards with videos that are worse. A judge is a reward that the
student is not trained on. It scores the same prompts and seeds every time. When the rewards rise
and a judge falls, the student exploits its rewards.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from accelerate import Accelerator
from einops import rearrange
from safetensors.torch import load_file

from training.build import Parts, build_model, reward_folder, student_with
from training.checkpoints import averaged_student, find_newest, load_checkpoint, save_weights
from training.config import Config, JudgeTable
from training.data.source import read_prompts
from training.export import student_card
from training.sharding import copy_whole
from turbo.models.placement import Placement
from turbo.networks.lora import merge_lora
from turbo.pipeline import Result, VideoPipeline
from turbo.rewards.feedback import WeightedReward
from turbo.types import Frames, Reward
from turbo.video import Video
from turbo.whole_file import open_whole


@dataclass(frozen=True)
class Evaluation:
    """The scores of one saved step, one number per held-out prompt."""

    step: int
    prompts: list[str]
    reward: list[float]  # sum of weight x score over the rewards of the run
    judges: dict[str, list[float]]
    settings: dict[str, Any] | None = None  # of the watch; None: of a version that stored none


@dataclass(frozen=True)
class Scorer:
    """A reward model on some evenly spaced frames of a clip."""

    model: Reward
    frames: int
    weight: float = 1.0

    def __call__(self, frames: Frames, prompt: str) -> float:
        stride = frames.shape[1] // self.frames
        chosen = frames[:, torch.arange(self.frames) * stride]
        return self.weight * self.model(chosen, [prompt]).item()


def read_held_out(path: Path, captions: Sequence[str]) -> list[str]:
    """Read the prompts of a watch.

    Raises:
        ValueError: the file cannot be read, has fewer than 2 prompts, or a caption of the data.
    """
    prompts = read_prompts(path)
    if len(prompts) < 2:
        raise ValueError(f"{path} must have at least 2 prompts. It has {len(prompts)}.")
    trained = set(captions)
    if seen := [prompt for prompt in prompts if prompt in trained]:
        raise ValueError(
            f"{path}: {seen[0]!r} is a caption of the training videos. Choose prompts that the "
            "student is not trained on."
        )
    return prompts


def find_best(evaluations: Sequence[Evaluation], judge: str) -> Evaluation:
    """Return the first evaluation with the highest mean score of a judge."""
    return max(evaluations, key=lambda entry: fmean(entry.judges[judge]))


def find_hacking(evaluations: Sequence[Evaluation], patience: int) -> Evaluation | None:
    """Return a judge's best evaluation if the last ones all show reward hacking, else None.

    An evaluation shows it if its reward is above that of a judge's best evaluation while the
    judge's score is lower by more than two standard errors of the difference over the prompts.

    Args:
        patience: how many evaluations in a row must show it.
    """
    for judge in evaluations[-1].judges if evaluations else ():
        best = find_best(evaluations, judge)
        later = [entry for entry in evaluations if entry.step > best.step][-patience:]
        if len(later) == patience and all(_exploits(entry, best, judge) for entry in later):
            return best
    return None


def _exploits(last: Evaluation, best: Evaluation, judge: str) -> bool:
    pairs = zip(last.judges[judge], best.judges[judge], strict=True)
    changes = [later - earlier for later, earlier in pairs]
    error = stdev(changes) / len(changes) ** 0.5
    return fmean(last.reward) > fmean(best.reward) and fmean(changes) < -2 * error


class Watch:
    """The evaluations of a run, in `watch.jsonl`; clips are in `samples/`, best weights in `best/`.

    An evaluation reads the weights from a checkpoint: those that the run would export at this step.
    It draws from generators of its own, so a run takes the same steps with and without a watch.
    """

    def __init__(self, parts: Parts, config: Config, accelerator: Accelerator) -> None:
        """Load the judges.

        Raises:
            ValueError: the prompts cannot be used, or the folder has evaluations by other prompts,
                seeds or judges; or a judge or a reward scores more frames than a clip has.
        """
        assert config.watch is not None
        self.parts, self.config, self.accelerator = parts, config, accelerator
        self.table, self.out = config.watch, Path(config.run.out)
        half, device = config.run.precision == "bf16", accelerator.device
        self.dtype = torch.bfloat16 if half else torch.float32
        self.prompts = read_held_out(Path(self.table.prompts), parts.captions)
        terms: list[WeightedReward | JudgeTable] = [*parts.rewards, *self.table.judges]
        for term in terms:
            if term.frames > parts.card.num_frames:
                raise ValueError(
                    f"{term.name} cannot score {term.frames} frames: a clip has "
                    f"{parts.card.num_frames}. Set fewer."
                )
        self.rewards = [Scorer(r.model, r.frames, r.weight) for r in parts.rewards]
        self.judges = {
            judge.name: Scorer(
                build_model(judge.name, judge.folder, judge.frames, device, half=half), judge.frames
            )
            for judge in self.table.judges
        }
        newest = find_newest(self.out / "checkpoints")
        done = int(newest.stem) if newest else 0
        self.evaluations = [entry for entry in self._read() if entry.step <= done]
        if self._is_due(done) and done not in {entry.step for entry in self.evaluations}:
            # The run was killed between the checkpoint and the end of its evaluation.
            self._evaluate(done)

    @property
    def settings(self) -> dict[str, Any]:
        """Return the settings that scores depend on, besides the prompts and those of the run."""
        judges = {
            judge.name: {
                "folder": str(reward_folder(judge.name, judge.folder)),
                "frames": judge.frames,
            }
            for judge in self.table.judges
        }
        return {"seed": self.table.seed, "judges": judges}

    @property
    def best(self) -> Evaluation | None:
        """Return the evaluation to stop at: the best one, once the rewards are exploited."""
        return find_hacking(self.evaluations, self.table.patience) if self.table.stop else None

    def follow(self, step: int) -> Evaluation | None:
        """Evaluate the checkpoint of a step, if that is due; return the evaluation to stop at."""
        if self._is_due(step):
            self._evaluate(step)
        return self.best

    def restore(self, best: Evaluation) -> None:
        """Give the student the weights of the best evaluation."""
        weights = load_file(self._weights(best.step))
        own = dict(self.parts.student.named_parameters())
        copy_whole(weights, {name: own[name] for name in weights})

    def _is_due(self, step: int) -> bool:
        return step > 0 and (step % self.table.every == 0 or step == self.config.run.steps)

    def _evaluate(self, step: int) -> None:
        weights = averaged_student(load_checkpoint(self.out / "checkpoints", step))
        student = student_with(weights, self.parts.teacher, self.config)
        pipeline = VideoPipeline(
            student_card(self.parts.card, self.config, self.out / "models" / self.config.name),
            merge_lora(student, self.dtype),
            self.parts.vae,
            self.parts.text_encoder,
            self.parts.settings.schedule,
            placement=Placement(self.accelerator.device, self.dtype),
        )
        names, own = ["reward", *self.judges], self.accelerator.process_index
        scores = torch.zeros(len(names), len(self.prompts), device=self.accelerator.device)
        for index in range(own, len(self.prompts), self.accelerator.num_processes):
            video = self._sample(pipeline, step, index)
            scores[:, index] = scores.new_tensor(self._score(video, self.prompts[index]))
        scores = self.accelerator.reduce(scores, "sum")
        by_name = dict(zip(names, scores.tolist(), strict=True))
        self.accelerator.log({f"watch/{name}": fmean(row) for name, row in by_name.items()}, step)
        earlier = [entry for entry in self.evaluations if entry.step < step]
        found = Evaluation(step, self.prompts, by_name.pop("reward"), by_name, self.settings)
        self.evaluations = [*earlier, found]
        if self.accelerator.is_main_process:
            kept = {find_best(self.evaluations, judge).step for judge in self.judges}
            if step in kept:  # before the line that says so, as the former ones go after it
                save_weights(self._weights(step), weights)
            with open_whole(self.out / "watch.jsonl") as file:
                for entry in self.evaluations:
                    line = json.dumps(asdict(entry), ensure_ascii=False) + "\n"
                    file.write(line.encode())
            for old in (self.out / "best").glob("*.safetensors"):
                if int(old.stem) not in kept:
                    old.unlink()
        self.accelerator.wait_for_everyone()

    def _sample(self, pipeline: VideoPipeline, step: int, index: int) -> Video:
        seed = self.table.seed + index
        *_, result = pipeline.stream([self.prompts[index]], [seed])
        assert isinstance(result, Result)
        [video] = result.videos
        video = replace(video, recipe=video.recipe | {"training_step": step})
        path = self.out / "samples" / f"{step:08d}" / f"{index:03d}.mp4"
        video.save(path, enlarge=pipeline.card.enlarge)
        return video

    @torch.no_grad()
    def _score(self, video: Video, prompt: str) -> list[float]:
        """Return the weighted sum of the rewards, then the score of every judge."""
        pixels = torch.from_numpy(video.frames).to(self.accelerator.device)
        frames = rearrange(pixels, "F H W rgb -> 1 F rgb H W").float() / 255
        reward = sum(scorer(frames, prompt) for scorer in self.rewards)
        return [reward, *(scorer(frames, prompt) for scorer in self.judges.values())]

    def _weights(self, step: int) -> Path:
        return self.out / "best" / f"{step:08d}.safetensors"

    def _read(self) -> list[Evaluation]:
        path = self.out / "watch.jsonl"
        lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
        evaluations = [Evaluation(**json.loads(line)) for line in lines if line]
        for entry in evaluations:
            same = entry.prompts == self.prompts and entry.judges.keys() == self.judges.keys()
            if not same or (entry.settings and entry.settings != self.settings):
                raise ValueError(
                    f"{path} has scores of other prompts, seeds or judges than this watch. Restore "
                    "them, or delete the file to start anew."
                )
        return evaluations
