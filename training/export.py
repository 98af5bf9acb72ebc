"""Export of a student: named safetensors, a card that `turbo` loads, and a model card to read."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

from training.build import Parts, count_reward_frames, named_card, simulated_rewards
from training.config import Config
from turbo.card import ModelCard
from turbo.models.local import CARD, write_card
from turbo.networks.lora import LORA_FILE, save_lora

GUIDANCE = 7.5  # w at which the papers evaluate
STEPS = {50: 4, 200: 16}  # at which the papers evaluate, by size of the solver's grid


def export_student(parts: Parts, config: Config, folder: Path, step: int) -> None:
    """Write the adapters or the whole network, with its cards; replaces an earlier export.

    `card.json` is the last file that is written and the first that is removed.

    Args:
        step: of the run, whose weights the student has.
    """
    (folder / CARD).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    card = student_card(parts.card, config, folder)
    if card.lora:
        save_lora(parts.student, Path(card.lora) / LORA_FILE)
    else:
        parts.student.save_pretrained(Path(card.unet))
    described = describe_student(card, parts.card, config, step)
    (folder / "README.md").write_text(described, encoding="utf-8")
    write_card(card, folder)


def student_card(teacher: ModelCard, config: Config, folder: Path) -> ModelCard:
    """Return the card of the student in `folder`."""
    low, high = config.teacher.guidance
    grid, here = config.teacher.grid_steps, folder.resolve()
    adapted = config.student.lora_rank > 0
    return replace(
        teacher,
        name=config.name,
        title=config.title,
        licence=config.licence,
        role="student",
        sampler="consistency",
        unet=teacher.unet if adapted else str(here / "unet"),
        lora=str(here / "adapters") if adapted else None,
        sources=(),
        fps=round(config.data.fps),
        conditioning_fps=None,
        eta=0.0,
        clean_rescale=False,  # the student learned from clean latents
        origin_steps=grid,
        timestep_scaling=config.student.timestep_scaling,
        motion_layers="always" if config.takes_motion else "never",
        motion_strength=config.motion.strength if config.motion and config.takes_motion else None,
        motion_share=config.motion.percentage if config.motion else 0.5,
        default_steps=config.data.sample_steps
        if config.data.prompts
        else min(STEPS.get(grid, 4), grid),
        max_steps=grid,
        default_guidance=min(max(GUIDANCE, low), high),
        min_guidance=low,
        max_guidance=high,
        simulated_votes=bool(describe_simulated(config)),
        guidance_kind="Embedded guidance w: an input of the network, one call per step.",
    )


def describe_simulated(config: Config) -> list[str]:
    """Return a sentence for each reward, and for a start, that was trained on simulated votes.

    Raises:
        ValueError: the card of a reward or of the start is damaged, or there is no such start.
    """
    trained = [f"The reward {name}" for name in simulated_rewards(config)]
    start = config.student.start
    if start and named_card(start).simulated_votes:
        trained.append(f"The student from which this one starts, {Path(start).name},")
    return [
        f"{which} was trained on SIMULATED votes. The student says nothing about people."
        for which in trained
    ]


def describe_student(card: ModelCard, teacher: ModelCard, config: Config, step: int) -> str:
    """Return the model card, in Markdown; for `step` see `export_student`."""
    data = config.data
    source = f"{data.captions}, {data.resize}"
    if data.hub:
        source = f"{Path(data.hub).name if Path(data.hub).exists() else data.hub}, {data.resize}"
    if data.prompts:
        source = f"its own samples of {Path(data.prompts).name}, in {data.sample_steps} steps"
    rewards = [
        f"| {r.name} | {r.weight:g} | {count_reward_frames(r)} ({r.select}) |"
        for r in config.rewards
    ] or ["| none | | |"]
    settings = json.dumps(
        config.model_dump(exclude={"data": {"folder", "hub", "prompts"}, "run": {"out"}}), indent=2
    )
    return "\n".join(
        [
            f"# {card.title}",
            "",
            f"A few-step student of {teacher.title}, distilled in {step} steps of "
            f"{config.run.batch} videos. Licence: {card.licence}.",
            "",
            "```text",
            f"T2V_MODELS_DIR={{the folder that holds this one}} python -m turbo.generate "
            f'"a prompt" --model {card.name}',
            "```",
            "",
            "| reward | weight | frames |",
            "|---|---|---|",
            *rewards,
            "",
            *(line for told in describe_simulated(config) for line in (f"**{told}**", "")),
            f"Data: {source}, {config.data.fps:g} frames per second, "
            f"{card.num_frames} frames of {card.width} x {card.height}.",
            "",
            "Evaluation: none yet. Compare it with its teacher by `python -m human_eval`.",
            "",
            "## Configuration",
            "",
            "```json",
            settings,
            "```",
            "",
        ]
    )
