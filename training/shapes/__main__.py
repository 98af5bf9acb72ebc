"""Rebuild the shapes models: python -m training.shapes STAGE, or `all` for every stage in order.

Each stage resumes where it was stopped and skips what is done. Two processes train twice as fast:

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m training.shapes all
"""

import argparse
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import torch
from accelerate import PartialState
from diffusers import AutoencoderKL, ModelMixin
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPTokenizer, PreTrainedModel

from training.loop import FitConfig, StepReport
from training.shapes.evaluation import judge
from training.shapes.evaluation.evaluate import evaluate
from training.shapes.evaluation.figure import draw_watch
from training.shapes.evaluation.measurement import Reward
from training.shapes.evaluation.picture import draw_picture
from training.shapes.evaluation.report import format_report
from training.shapes.evaluation.watch import watch_runs
from training.shapes.models import rewards, student, teacher, text, vae
from training.shapes.models.export import export_module, export_tokenizer, export_world
from training.shapes.models.jumps import Jumps, draw_jumps
from training.shapes.models.reward_card import write_reward_card
from training.shapes.world.clips import CAPTIONS, EncodedClips, encode_clips
from training.shapes.world.flaws import draw_bank
from turbo.models.registry import WEIGHTS
from turbo.networks.lora import LORA_FILE, save_lora
from turbo.networks.text import CLIPTextEncoder
from turbo.networks.unet import VideoUNet
from turbo.rewards import ImageTextReward, VideoTextReward, WeightedReward
from turbo.rewards.viclip import save_viclip

MEDIA = Path(__file__).parents[2] / "demo" / "media"
CLIPS = 4000  # encoded per process
JUMPS = 1000  # pairs drawn per process
STAGES = (
    "vae",
    "text",
    "teacher",
    "polish",
    "rewards",
    "students",
    "judge",
    "watch",
    "evaluate",
    "picture",
    "all",
)


class Recipe:
    """The stages, with their products kept in two folders: checkpoints here, weights there."""

    def __init__(self, runs: Path, weights: Path) -> None:
        self.runs, self.weights = runs, weights
        self.process = PartialState(cpu=not torch.cuda.is_available())

    def vae(self) -> None:
        """pixels to latents and back"""
        torch.manual_seed(0)
        network = vae.build_vae()
        self._watch("vae", vae.train_vae(network, self.runs / "vae.pt"), vae.CONFIG.steps)
        self._export(network, "vae")

    def text(self) -> None:
        """the tokenizer and the text tower"""
        torch.manual_seed(0)
        tokenizer = text.build_tokenizer()
        network = text.build_text_model(tokenizer)
        reports = text.train_text(network, tokenizer, self.runs / "text.pt")
        self._watch("text", reports, text.CONFIG.steps)
        self._export(network, "text_encoder")
        if self.process.is_main_process:
            export_tokenizer(tokenizer, self.weights / "tokenizer")
            export_world(self.weights / "world.json")

    def teacher(self) -> None:
        """the diffusion teacher: single frames, half-rate clips, whole clips"""
        torch.manual_seed(0)
        unet = teacher.build_teacher()
        for name, config, train in teacher.CURRICULUM:
            reports = train(unet, self.clips, self.captions, self.runs / f"{name}.pt")
            self._watch(name, reports, config.steps)
        self._export(unet, "teacher")

    def polish(self) -> None:
        """more whole clips for the teacher, from its exported weights"""
        unet = self._load_teacher()
        reports = teacher.train_clips(
            unet, self.clips, self.captions, self.runs / "polish.pt", teacher.POLISH_CONFIG
        )
        self._watch("polish", reports, teacher.POLISH_CONFIG.steps)
        self._export(unet, "teacher")

    def rewards(self) -> None:
        """the image-text and the video-text reward model, with their card"""
        torch.manual_seed(0)
        tokenizer = self._load_tokenizer()
        image, video = rewards.build_image_model(tokenizer), rewards.build_video_model(tokenizer)
        reports = rewards.train_image_reward(
            image, tokenizer, self.jumps, self.runs / "image_reward.pt"
        )
        self._watch("image_reward", reports, rewards.IMAGE_CONFIG.steps)
        reports = rewards.train_video_reward(video, tokenizer, self.runs / "video_reward.pt")
        self._watch("video_reward", reports, rewards.VIDEO_CONFIG.steps)
        folder = self.weights / "rewards"
        self._export(image, "rewards/image")
        if self.process.is_main_process:
            save_viclip(video, folder / "video")
            write_reward_card(*self._load_rewards(), folder)
        self.process.wait_for_everyone()

    def students(self) -> None:
        """the consistency-distilled students: without rewards, with each, with both"""
        for name, variant in student.STUDENTS.items():
            self._distil(name, variant)

    def watch(self) -> None:
        """the students of other reward weights, one far too large, judged as they train"""
        for name, variant in student.WATCHED.items():
            self._distil(name, variant)
        if self.process.is_main_process:
            folders = {
                student.ALL[name].label: self.runs / "snapshots" / name
                for name in ("vcm", "turbo", *student.WATCHED)
            }
            clips = self.runs / "clips"
            table = watch_runs(folders, self.weights, clips, rewards=self._reward_table())
            table.to_csv(self.weights / "watch.csv", index=False)
            draw_watch(table, MEDIA / "watch")

    def _distil(self, name: str, variant: student.Variant) -> None:
        """Train one student, keep its adapters every few steps, export those of the end."""
        network, reports = self.start_student(name, variant)
        self._watch(name, self._snapshots(name, reports), student.CONFIG.steps)
        folder = (self.weights if name in student.STUDENTS else self.runs) / name
        if self.process.is_main_process:
            save_lora(network, folder / LORA_FILE, torch.float16)
        self.process.wait_for_everyone()

    def start_student(
        self, name: str, variant: student.Variant
    ) -> tuple[VideoUNet, Iterator[StepReport]]:
        """Return a student and the run that trains it, from its last checkpoint if it has one.

        All students have the same beginning, without rewards: a reward has little to say of a
        jump that has not yet landed on a picture.
        """
        guide = self._load_teacher()
        network = self._begin_student(guide)
        rewards = variant.rewards(*self._load_rewards())
        return network, self._train_student(guide, network, name, student.CONFIG, rewards)

    def _begin_student(self, guide: VideoUNet) -> VideoUNet:
        """Train the beginning that all students have in common, or load it."""
        network = student.build_student(guide)
        reports = self._train_student(guide, network, "start", student.START_CONFIG, ())
        self._watch("start", reports, student.START_CONFIG.steps)
        return network

    def _train_student(
        self,
        guide: VideoUNet,
        network: VideoUNet,
        name: str,
        config: FitConfig,
        rewards: Sequence[WeightedReward],
    ) -> Iterator[StepReport]:
        return student.train_student(
            guide,
            network,
            self.clips,
            self.captions,
            self.runs / f"{name}.pt",
            config,
            rewards=rewards,
            vae=self._load_vae().eval().requires_grad_(False),
        )

    def _snapshots(self, name: str, reports: Iterator[StepReport]) -> Iterator[StepReport]:
        """Keep the averaged adapters of every checkpoint, for the watch on reward hacking."""
        guide = self._load_teacher()
        for report in reports:
            if report.step % student.CONFIG.checkpoint_every == 0 and self.process.is_main_process:
                averaged = student.load_average(guide, self.runs / f"{name}.pt")
                path = self.runs / "snapshots" / name / str(report.step) / LORA_FILE
                save_lora(averaged, path, torch.float16)
            yield report

    def judge(self) -> None:
        """the judge of the evaluation, which is no reward"""
        torch.manual_seed(30)
        vae, rank = self._load_vae().eval(), self.process.process_index
        pairs = self.runs / f"judge{rank}.safetensors"
        bank = draw_bank(vae, judge.JUDGE_SCENES, 300 + rank, pairs)
        network = judge.Judge()
        reports = judge.train_judge(network, bank, self.runs / "judge.pt")
        self._watch("judge", reports, judge.CONFIG.steps)
        if self.process.is_main_process:
            source = judge.held_out_source(vae)
            judge.save_judge(network, judge.measure_judge(network, source))
        self.process.wait_for_everyone()

    def evaluate(self) -> None:
        """every system on the same held-out prompts and seeds"""
        if self.process.is_main_process:
            report = evaluate(
                self.weights, self.runs / "clips", MEDIA, rewards=self._reward_table()
            )
            print(format_report(report))

    def picture(self) -> None:
        """the README's picture, from the student's own clips"""
        if self.process.is_main_process:
            draw_picture(MEDIA / "shapes.gif")

    def all(self) -> None:
        """everything above, in this order"""
        for stage in STAGES[:-1]:
            getattr(self, stage)()

    @cached_property
    def captions(self) -> Tensor:
        """Text embeddings of the empty prompt and of every caption (1 + captions, L, D)."""
        encoder = self._load_encoder()
        captions = ["", *CAPTIONS]
        chunks = [captions[i : i + 256] for i in range(0, len(captions), 256)]
        return torch.cat([encoder.encode(chunk) for chunk in chunks])

    @cached_property
    def clips(self) -> EncodedClips:
        """Training clips; every process draws its own."""
        rank = self.process.process_index
        path = self.runs / f"clips{rank}.safetensors"
        return encode_clips(self._load_vae().eval(), CLIPS, 100 + rank, path)

    @cached_property
    def jumps(self) -> Jumps:
        """What the rewards will be asked about; every process draws its own."""
        rank = self.process.process_index
        network = self._begin_student(self._load_teacher()).eval()
        path = self.runs / f"jumps{rank}.safetensors"
        vae = self._load_vae().eval()
        return draw_jumps(
            network, vae, self._load_encoder(), rewards.SCENES, JUMPS, 200 + rank, path
        )

    def _load_encoder(self) -> CLIPTextEncoder:
        return CLIPTextEncoder.load(self.weights / "tokenizer", self.weights / "text_encoder")

    def _load_vae(self) -> AutoencoderKL:
        return AutoencoderKL.from_pretrained(self.weights / "vae", torch_dtype=torch.float32)

    def _load_tokenizer(self) -> CLIPTokenizer:
        return CLIPTokenizer.from_pretrained(self.weights / "tokenizer")

    def _load_rewards(self) -> tuple[ImageTextReward, VideoTextReward]:
        folder, tokenizer = self.weights / "rewards", self.weights / "tokenizer"
        return (
            ImageTextReward.load(folder / "image", tokenizer),
            VideoTextReward.load(folder / "video", tokenizer),
        )

    def _reward_table(self) -> dict[str, Reward]:
        image, video = self._load_rewards()
        return {"image": image, "video": lambda frames, prompts: video(frames[:, ::2], prompts)}

    def _load_teacher(self) -> VideoUNet:
        return VideoUNet.from_pretrained(self.weights / "teacher", torch_dtype=torch.float32)

    def _export(self, network: ModelMixin | PreTrainedModel, name: str) -> None:
        if self.process.is_main_process:
            export_module(network, self.weights / name)
        self.process.wait_for_everyone()

    def _watch(self, name: str, reports: Iterator[StepReport], steps: int) -> None:
        """Run a stage with a progress bar, a log of its losses, and in the end what it cost."""
        main, began, done = self.process.is_main_process, time.perf_counter(), 0
        self.runs.mkdir(parents=True, exist_ok=True)
        with tqdm(total=steps, desc=name, disable=not main) as bar:
            for report in reports:
                done = report.step
                bar.update(done - bar.n)
                bar.set_postfix(loss=f"{report.loss:.4f}")
                if main and report.step % 50 == 0:
                    line = f"{report.step},{report.loss:.5f},{report.grad_norm:.4f}\n"
                    with (self.runs / f"{name}.csv").open("a") as log:
                        log.write(line)
        if done:  # else the run was complete before
            self._note_cost(name, done, time.perf_counter() - began)

    def _note_cost(self, name: str, step: int, seconds: float) -> None:
        """Append what a run took to costs.csv; a run that was killed and resumed has two lines.

        Memory is the most that every process has held so far, added up.
        """
        unit = 1 if sys.platform == "darwin" else 1024
        peak = torch.tensor(float(unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
        if self.process.num_processes > 1:
            torch.distributed.all_reduce(peak)
        if self.process.is_main_process:
            line = f"{name},{step},{seconds / 60:.1f},{peak / 1e9:.2f}\n"
            with (self.runs / "costs.csv").open("a") as log:
                log.write("run,step,minutes,peak GB\n" * (log.tell() == 0) + line)
            print(f"{name}: {seconds / 60:.1f} min, at most {peak / 1e9:.2f} GB", flush=True)


def main() -> None:
    listed = "\n".join(f"  {stage:9} {getattr(Recipe, stage).__doc__}" for stage in STAGES)
    parser = argparse.ArgumentParser(
        prog="python -m training.shapes",
        description=f"{__doc__}\nStages:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--runs", type=Path, default=Path("runs/shapes"), help="checkpoints")
    parser.add_argument("--weights", type=Path, default=WEIGHTS / "shapes", help="results")
    arguments = parser.parse_args()
    torch.set_num_threads(
        1 if PartialState(cpu=True).num_processes > 1 else torch.get_num_threads()
    )
    getattr(Recipe(arguments.runs, arguments.weights), arguments.stage)()


if __name__ == "__main__":
    main()
