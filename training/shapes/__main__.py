"""Rebuild the shapes models: python -m training.shapes STAGE, or `all` for every stage in order.

Each stage resumes where it was stopped and skips what is done. Two processes train twice as fast:

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m training.shapes all
"""

import argparse
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from accelerate import PartialState
from diffusers import AutoencoderKL, ModelMixin
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPTokenizer, PreTrainedModel

from training.distil import distil
from training.loop import FitConfig, Slot, StepStats
from training.settings import EncodedBatch, PromptBatch
from training.shapes.evaluation import figures, judge
from training.shapes.evaluation.evaluate import evaluate
from training.shapes.evaluation.report import check_runs, format_report
from training.shapes.evaluation.reward_hacking import measure_runs
from training.shapes.evaluation.systems import (
    FLOW_SYSTEMS,
    RUNS,
    SYSTEMS,
    run_folder,
    with_further_runs,
)
from training.shapes.models import rewards, student, teacher, text, vae
from training.shapes.models.export import export_module, export_world
from training.shapes.models.reward_card import write_reward_card
from training.shapes.models.student_estimates import StudentEstimates, draw_student_estimates
from training.shapes.world.encoded_clips import CAPTIONS, EncodedClips, encode_clips
from training.shapes.world.flaws import draw_bank
from turbo.diffusion.distillation import student_of
from turbo.models.registry import WEIGHTS
from turbo.networks.families import Network, load_network
from turbo.networks.lora import LORA_FILE, load_lora, save_lora
from turbo.networks.text import CLIPTextEncoder
from turbo.networks.vae import latent_shape
from turbo.rewards.image_text import ImageTextReward
from turbo.rewards.viclip import VideoTextReward, save_viclip
from turbo.types import Reward

MEDIA = Path(__file__).parents[2] / "demo" / "media"
CLIP_COUNT = 4000  # encoded per process
ESTIMATE_COUNT = 1000  # drawn per process, at two noise levels each
EVALUATED = {teacher.UNET.prefix: SYSTEMS, teacher.FLOW.prefix: FLOW_SYSTEMS}


@dataclass(frozen=True)
class Folders:
    """Where the stages keep their files, and which teacher they train."""

    runs: Path  # checkpoints, training data, logs; deleted without loss when all is trained
    weights: Path  # the finished models
    recipe: teacher.Recipe = teacher.UNET


# The stages, in order. The first line of each docstring is its line in --help.


def train_vae(folders: Folders) -> None:
    """the VAE: pixels to latents and back"""
    torch.manual_seed(0)
    network = vae.build_vae()
    run("vae", vae.train_vae(network, folders.runs / "vae"), vae.CONFIG.steps, folders)
    export(network, folders.weights / "vae")


def train_text(folders: Folders) -> None:
    """the tokenizer and the text encoder"""
    torch.manual_seed(0)
    tokenizer = text.build_tokenizer()
    network = text.build_text_model(tokenizer)
    steps = text.train_text(network, tokenizer, folders.runs / "text")
    run("text", steps, text.CONFIG.steps, folders)
    export(network, folders.weights / "text_encoder")
    if process().is_main_process:
        tokenizer.save_pretrained(folders.weights / "tokenizer")
        export_world(folders.weights / "world.json")


def train_teacher(folders: Folders) -> None:
    """the diffusion teacher: single frames, half-rate clips, whole clips"""
    torch.manual_seed(0)
    network = folders.recipe.build()
    for phase in folders.recipe.curriculum:
        run_phase(phase, network, folders)
    export(network, teacher_folder(folders))


def polish_teacher(folders: Folders) -> None:
    """more whole clips for the teacher, from its exported weights"""
    network = load_teacher(folders)
    run_phase(folders.recipe.polish, network, folders)
    export(network, teacher_folder(folders))


def run_phase(phase: teacher.Phase, network: Network, folders: Folders) -> None:
    """Train a teacher in place, from its last checkpoint if there is one."""
    name = f"{folders.recipe.prefix}{phase.name}"
    clips, captions = training_clips(folders), caption_embeddings(folders)
    schedule = folders.recipe.schedule
    steps = teacher.train_phase(network, schedule, phase, clips, captions, folders.runs / name)
    run(name, steps, phase.fit.steps, folders)


def train_rewards(folders: Folders) -> None:
    """the image-text and the video-text reward model, with their card"""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(folders.weights / "tokenizer")
    image, video = rewards.build_image_model(tokenizer), rewards.build_video_model(tokenizer)
    steps = rewards.train_image_reward(
        image, tokenizer, student_estimates(folders), folders.runs / "image_reward"
    )
    run("image_reward", steps, rewards.IMAGE_CONFIG.steps, folders)
    steps = rewards.train_video_reward(video, tokenizer, folders.runs / "video_reward")
    run("video_reward", steps, rewards.VIDEO_CONFIG.steps, folders)
    export(image, folders.weights / "rewards" / "image")
    if process().is_main_process:
        save_viclip(video, folders.weights / "rewards" / "video")
        write_reward_card(*load_rewards(folders), folders.weights / "rewards")
    process().wait_for_everyone()


def train_students(folders: Folders) -> None:
    """the consistency-distilled students: without rewards, with each, with both"""
    for name in folders.recipe.students:
        train_student(name, student.STUDENTS[name], folders, folders.weights)


def train_more_runs(folders: Folders) -> None:
    """the same students from other seeds: the evaluation's interval over trainings"""
    for run in range(2, RUNS + 1):
        for name in folders.recipe.students:
            parent = folders.weights / run_folder(run)
            train_student(name, student.STUDENTS[name], folders, parent, run)
        match_student(folders, folders.weights / run_folder(run), run)


def match_turbo(folders: Folders) -> None:
    """Turbo, trained further by distribution matching on its own samples"""
    match_student(folders, folders.weights)


def train_judge(folders: Folders) -> None:
    """the judge of the evaluation, which is not a reward"""
    torch.manual_seed(30)
    decoder, rank = load_vae(folders).eval(), process().process_index
    pairs = folders.runs / f"judge{rank}.safetensors"
    bank = draw_bank(decoder, judge.JUDGE_SCENES, 300 + rank, pairs)
    network = judge.Judge()
    steps = judge.train_judge(network, bank, folders.runs / "judge")
    run("judge", steps, judge.CONFIG.steps, folders)
    if process().is_main_process:
        source = judge.held_out_source(decoder)
        judge.save_judge(network, judge.measure_judge(network.cpu(), source))
    process().wait_for_everyone()


def measure_reward_hacking(folders: Folders) -> None:
    """students with larger reward weights, measured as they train"""
    for name, variant in student.REWARD_SWEEP.items():
        train_student(name, variant, folders, folders.runs)
    if process().is_main_process:
        snapshots = {
            student.ALL[name].label: folders.runs / "snapshots" / name
            for name in ("vcm", "turbo", *student.REWARD_SWEEP)
        }
        table = measure_runs(
            snapshots, folders.weights, folders.runs / "clips", rewards=reward_table(folders)
        )
        table.to_csv(folders.weights / "watch.csv", index=False)
        figures.plot_runs(table, MEDIA / "watch")


def evaluate_systems(folders: Folders) -> None:
    """every system on the same held-out prompts and seeds"""
    if process().is_main_process:
        systems = with_further_runs(EVALUATED[folders.recipe.prefix], folders.weights)
        try:
            check_runs(systems)
        except ValueError as refusal:
            sys.exit(f"python -m training.shapes evaluate: {refusal}")
        report = evaluate(
            folders.weights,
            folders.runs / "clips",
            MEDIA,
            systems,
            prefix=folders.recipe.prefix,
            rewards=reward_table(folders),
        )
        print(format_report(report))


def draw_sample_gif(folders: Folders) -> None:
    """the GIF of the README, from the default model's clips"""
    if process().is_main_process:
        figures.draw_sample_gif(MEDIA / "shapes.gif")


STAGES: dict[str, Callable[[Folders], None]] = {
    "vae": train_vae,
    "text": train_text,
    "teacher": train_teacher,
    "polish": polish_teacher,
    "rewards": train_rewards,
    "students": train_students,
    "matching": match_turbo,
    "judge": train_judge,
    "watch": measure_reward_hacking,
    "evaluate": evaluate_systems,
    "picture": draw_sample_gif,
}


# Not of "all": it takes as long as all students, twice.
STUDIES: dict[str, Callable[[Folders], None]] = {"runs": train_more_runs}
OF_ANY_NETWORK = ("teacher", "polish", "students", "matching", "evaluate", "runs")


# Students


def train_student(
    name: str, variant: student.Variant, folders: Folders, parent: Path, seed_run: int = 1
) -> None:
    """Train one student, keep a snapshot per checkpoint, save the final adapters in `parent`."""
    name = f"{folders.recipe.prefix}{name}"
    network, steps = start_student(name, variant, folders, seed_run)
    title = run_title(name, seed_run)
    run(title, keep_snapshots(title, steps, folders), student.FIT.steps, folders)
    if process().is_main_process:
        save_lora(network, parent / name / LORA_FILE, torch.float16)
    process().wait_for_everyone()


def match_student(folders: Folders, parent: Path, seed_run: int = 1) -> None:
    """Train the Turbo in `parent` further by distribution matching; save its adapters there."""
    guide, turbo = load_teacher(folders), f"{folders.recipe.prefix}turbo"
    network = student_of(guide, share=True).requires_grad_(False)
    load_lora(network, parent / turbo / LORA_FILE)
    name, fit = f"{turbo}-dmd", student.of_run(student.MATCHING_FIT, seed_run)
    fake, both = student_of(guide).requires_grad_(True), student.STUDENTS["turbo"]
    title = run_title(name, seed_run)
    run(title, distil_student(guide, network, both, title, fit, folders, fake), fit.steps, folders)
    if process().is_main_process:
        save_lora(network, parent / name / LORA_FILE, torch.float16)
    process().wait_for_everyone()


def run_title(name: str, seed_run: int) -> str:
    """Return the name of a training run; the first has the name of the student."""
    return name if seed_run == 1 else f"{name}-{seed_run}"


def start_student(
    name: str, variant: student.Variant, folders: Folders, seed_run: int = 1
) -> tuple[Network, Iterator[StepStats]]:
    """Return a student and the run that trains it, from its last checkpoint if there is one."""
    guide = load_teacher(folders)
    network = train_common_start(guide, folders, seed_run)
    fit, title = student.of_run(student.FIT, seed_run), run_title(name, seed_run)
    return network, distil_student(guide, network, variant, title, fit, folders)


def train_common_start(guide: Network, folders: Folders, seed_run: int = 1) -> Network:
    """Train the first phase, which all students of a run share, or load it.

    It has no rewards: they are unreliable while the estimates do not yet show a picture.
    """
    network = student.build_student(guide, folders.recipe.rank, seed_run)
    fit = student.of_run(student.START_FIT, seed_run)
    title = run_title(f"{folders.recipe.prefix}start", seed_run)
    steps = distil_student(guide, network, student.STUDENTS["vcm"], title, fit, folders)
    run(title, steps, fit.steps, folders)
    return network


def distil_student(
    guide: Network,
    network: Network,
    variant: student.Variant,
    name: str,
    fit: FitConfig,
    folders: Folders,
    fake: Network | None = None,
) -> Iterator[StepStats]:
    """Distil `guide` into `network`: on training clips, or with a fake on its own samples."""
    schedule = folders.recipe.schedule.to(guide.device)
    models = load_rewards(folders, process().device) if variant.has_rewards else None
    return distil(
        guide,
        network,
        prompt_source(folders) if fake else clip_source(folders),
        folders.runs / name,
        student.distillation_config(fit, schedule, matching=fake is not None),
        rewards=variant.rewards(*models) if models else (),
        vae=load_vae(folders).eval().requires_grad_(False),
        fake=fake,
    )


def keep_snapshots(name: str, steps: Iterator[StepStats], folders: Folders) -> Iterator[StepStats]:
    """Save the averaged adapters at every checkpoint, to measure reward hacking later."""
    guide, rank = load_teacher(folders), folders.recipe.rank
    for step in steps:
        if step.step % student.FIT.checkpoint_every == 0 and process().is_main_process:
            averaged = student.load_averaged_student(guide, rank, folders.runs / name)
            path = folders.runs / "snapshots" / name / str(step.step) / LORA_FILE
            save_lora(averaged, path, torch.float16)
        yield step


# Training data, drawn once and then read from the runs folder


@cache
def training_clips(folders: Folders) -> EncodedClips:
    """Draw and encode the training clips. Every process draws its own."""
    rank = process().process_index
    path = folders.runs / f"clips{rank}.safetensors"
    clips = encode_clips(load_vae(folders).eval(), CLIP_COUNT, 100 + rank, path)
    return clips.to(process().device)


def clip_source(folders: Folders) -> Callable[[Slot], EncodedBatch]:
    """Return a function that draws batches of the training clips."""
    clips, captions = training_clips(folders), caption_embeddings(folders)
    return student.batch_source(clips, captions, student.BATCH)


def prompt_source(folders: Folders) -> Callable[[Slot], PromptBatch]:
    """Return a function that draws batches of captions, for the student's own samples."""
    card = student.CARD
    shape = latent_shape(load_vae(folders), card.num_frames, card.height, card.width)
    return student.prompt_source(shape, caption_embeddings(folders), student.BATCH)


@cache
def caption_embeddings(folders: Folders) -> Tensor:
    """Encode the empty prompt and every caption, (1 + captions, L, D)."""
    encoder, captions = load_encoder(folders), ["", *CAPTIONS]
    chunks = [captions[i : i + 256] for i in range(0, len(captions), 256)]
    return torch.cat([encoder.encode(chunk) for chunk in chunks])


@cache
def student_estimates(folders: Folders) -> StudentEstimates:
    """Draw the estimates that the image reward is trained on. Every process draws its own."""
    rank = process().process_index
    network = train_common_start(load_teacher(folders), folders).eval()
    return draw_student_estimates(
        network,
        load_vae(folders).eval(),
        load_encoder(folders),
        rewards.SCENES,
        ESTIMATE_COUNT,
        200 + rank,
        folders.runs / f"estimates{rank}.safetensors",
    )


# Finished models, read from the weights folder and written to it


def load_encoder(folders: Folders) -> CLIPTextEncoder:
    encoder = CLIPTextEncoder.load(folders.weights / "tokenizer", folders.weights / "text_encoder")
    return encoder.to(process().device)


def load_vae(folders: Folders) -> AutoencoderKL:
    vae = AutoencoderKL.from_pretrained(folders.weights / "vae", torch_dtype=torch.float32)
    return vae.to(process().device)


def teacher_folder(folders: Folders) -> Path:
    return folders.weights / f"{folders.recipe.prefix}teacher"


def load_teacher(folders: Folders) -> Network:
    return load_network(teacher_folder(folders), torch.float32).to(process().device)


def load_rewards(
    folders: Folders, device: torch.device | str = "cpu"
) -> tuple[ImageTextReward, VideoTextReward]:
    parent, tokenizer = folders.weights / "rewards", folders.weights / "tokenizer"
    return (
        ImageTextReward.load(parent / "image", tokenizer).to(device),
        VideoTextReward.load(parent / "video", tokenizer).to(device),
    )


def reward_table(folders: Folders) -> dict[str, Reward]:
    """Return the reward models by name; the video reward scores every other frame."""
    image, video = load_rewards(folders)
    return {"image": image, "video": lambda frames, prompts: video(frames[:, ::2], prompts)}


def export(network: ModelMixin | PreTrainedModel, folder: Path) -> None:
    """Save a network from the main process; the others wait."""
    if process().is_main_process:
        export_module(network, folder)
    process().wait_for_everyone()


# Running a training


def process() -> PartialState:
    """Return this process among those that torchrun started."""
    return PartialState(cpu=not torch.cuda.is_available())


def run(name: str, steps: Iterator[StepStats], total: int, folders: Folders) -> None:
    """Run a training to its end; show progress, log the loss, and log the cost at the end."""
    main, began, done = process().is_main_process, time.perf_counter(), 0
    folders.runs.mkdir(parents=True, exist_ok=True)
    with tqdm(total=total, desc=name, disable=not main) as bar:
        for stats in steps:
            done = stats.step
            bar.update(done - bar.n)
            bar.set_postfix(loss=f"{stats.loss:.4f}")
            if main and stats.step % 50 == 0:
                line = f"{stats.step},{stats.loss:.5f},{stats.grad_norm:.4f}\n"
                with (folders.runs / f"{name}.csv").open("a") as log:
                    log.write(line)
    if done:  # else the run was already complete
        log_cost(name, done, time.perf_counter() - began, folders)


def log_cost(name: str, step: int, seconds: float, folders: Folders) -> None:
    """Append time and memory of a run to costs.csv. A run that was resumed has two lines.

    Memory is the peak of every process so far, summed over the processes.
    """
    unit = 1 if sys.platform == "darwin" else 1024
    peak = torch.tensor(
        float(unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss), device=process().device
    )
    if process().num_processes > 1:
        torch.distributed.all_reduce(peak)
    if process().is_main_process:
        line = f"{name},{step},{seconds / 60:.1f},{peak / 1e9:.2f}\n"
        with (folders.runs / "costs.csv").open("a") as log:
            log.write("run,step,minutes,peak GB\n" * (log.tell() == 0) + line)
        print(f"{name}: {seconds / 60:.1f} min, at most {peak / 1e9:.2f} GB", flush=True)


def main() -> None:
    lines = [f"  {name:9} {stage.__doc__}" for name, stage in STAGES.items()]
    lines.append("  all       every stage above, in this order")
    lines += [f"  {name:9} {study.__doc__}" for name, study in STUDIES.items()]
    listed = "\n".join(lines)
    parser = argparse.ArgumentParser(
        prog="python -m training.shapes",
        description=f"{__doc__}\nStages:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", choices=(*STAGES, *STUDIES, "all"))
    parser.add_argument("--runs", type=Path, default=Path("runs/shapes"), help="checkpoints")
    parser.add_argument("--weights", type=Path, default=WEIGHTS / "shapes", help="results")
    parser.add_argument(
        "--network",
        choices=teacher.RECIPES,
        default="unet",
        help="of the teacher and its students; flow is a transformer of Wan's kind",
    )
    arguments = parser.parse_args()
    if arguments.network != "unet" and arguments.stage not in OF_ANY_NETWORK:
        parser.error(
            f"The stage {arguments.stage} is of the UNet alone. With --network choose one of: "
            f"{', '.join(OF_ANY_NETWORK)}."
        )
    torch.set_num_threads(1 if process().num_processes > 1 else torch.get_num_threads())
    folders = Folders(arguments.runs, arguments.weights, teacher.RECIPES[arguments.network])
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")  # products in TF32
    every = STAGES | STUDIES
    for stage in STAGES.values() if arguments.stage == "all" else [every[arguments.stage]]:
        stage(folders)


if __name__ == "__main__":
    main()
