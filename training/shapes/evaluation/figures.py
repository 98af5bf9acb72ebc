"""Figures of the evaluation: plots of means and of training runs, a contact sheet, the GIF."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from einops import rearrange
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from training.shapes.evaluation.systems import CHUNK, Prompt, Source
from training.shapes.models.export import EXAMPLES
from turbo.pipeline import load_pipeline

STYLE: Any = {
    "font.family": "DejaVu Sans",  # part of matplotlib, so the same on every machine
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "shapes",
}
INK, GREY = "#22303c", "#9aa5ad"
HUES = {"teacher": "#7a869a", "VCM": "#2f7ed8", "Turbo": "#d9480f", "real": "#3a9a5b"}
RUN_COLUMNS = 4  # panels in a row
SHEET_FRAMES = (0, 5, 10, 15)
SHEET_ENLARGE = 2
LABEL = 14  # height of a line of text in pixels
GIF_COLUMNS, GIF_ENLARGE = 4, 4
GIF_MILLISECONDS = 125  # per frame: 8 frames per second


def plot_systems(report: dict[str, Any], stem: Path) -> None:
    """Plot mean and 95 % interval of every system, from a report, as stem.svg and stem.png."""
    systems, first = report["systems"], next(iter(report["systems"]))
    votes = {
        label: report["pairs"][f"{label} vs {first}"]["preference"]
        for label in systems
        if label != first
    }
    panels: list[tuple[str, dict[str, Any], float | None]] = [
        ("all four attributes right, %", {k: v["all"] for k, v in systems.items()}, None),
        (f"judge prefers it to {first}, %", votes, 50),
        ("no watermark, not washed out, %", {k: v["no flaw"] for k, v in systems.items()}, None),
        (
            "motion, % of real clips",
            {k: v["motion, % of real"] for k, v in systems.items() if "motion, % of real" in v},
            100,
        ),
    ]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 0.6 + 0.3 * len(systems)), layout="constrained")
        axes = figure.subplots(1, len(panels), sharey=True)
        for axis, (title, estimates, line) in zip(axes, panels, strict=True):
            _draw_panel(axis, list(systems), estimates, line)
            axis.set_title(title, fontsize=9, color=INK)
        _save(figure, stem)


def _draw_panel(
    axis: Axes, labels: list[str], estimates: dict[str, Any], line: float | None
) -> None:
    for row, label in enumerate(labels):
        if label in estimates:
            mean, low, high = (estimates[label][key] for key in ("mean", "low", "high"))
            axis.plot([low, high], [row, row], color=_hue(label), linewidth=2)
            axis.plot([mean], [row], "o", color=_hue(label), markersize=5)
    if line is not None:
        axis.axvline(line, color=GREY, linewidth=1, linestyle="--", zorder=0)
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.5, -0.5)
    axis.tick_params(colors=INK)
    axis.grid(axis="x", color="#e6e9ec", linewidth=0.8)
    axis.set_axisbelow(True)


def _hue(label: str) -> str:
    return next((hue for name, hue in HUES.items() if label.startswith(name)), INK)


def _save(figure: Figure, stem: Path) -> None:
    """Write SVG and PNG. Their bytes depend only on the numbers and the version of matplotlib."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(stem.with_suffix(".svg"), metadata={"Date": None, "Creator": None})
    figure.savefig(stem.with_suffix(".png"), dpi=130, metadata={"Software": None})


def draw_contact_sheet(
    systems: Sequence[Source],
    prompts: Sequence[Prompt],
    rows: Sequence[int],
    weights: Path,
    cache: Path,
    path: Path,
) -> None:
    """Draw a few frames of some prompts (rows) by every system (columns).

    Pixels are enlarged without smoothing. 256 colours without dithering keep the file small.

    Args:
        rows: indices into `prompts`, chosen before seeing the clips.
    """
    columns = [_sheet_column(system, prompts, rows, weights, cache) for system in systems]
    height, width = columns[0].shape[1:3]
    gap = 6
    sheet = Image.new(
        "RGB", (len(columns) * (width + gap) - gap, LABEL + len(rows) * (LABEL + height)), "white"
    )
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for column, (system, strips) in enumerate(zip(systems, columns, strict=True)):
        left = column * (width + gap)
        pen.text((left, 1), system.label, fill=_hue(system.label), font=font)
        for line, strip in enumerate(strips):
            top = LABEL + line * (LABEL + height)
            sheet.paste(Image.fromarray(strip), (left, top + LABEL))
    for line, row in enumerate(rows):
        top = LABEL + line * (LABEL + height)
        pen.text((0, top + 1), prompts[row].caption, fill=INK, font=font)
    path.parent.mkdir(parents=True, exist_ok=True)
    few = sheet.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


def _sheet_column(
    system: Source, prompts: Sequence[Prompt], rows: Sequence[int], weights: Path, cache: Path
) -> np.ndarray:
    """Return a strip of frames per row, (rows, height, width, 3), from whole cached chunks."""
    strips = []
    for row in rows:
        first = row - row % CHUNK
        clips = system.make(prompts[first : first + CHUNK], weights, cache).clips
        frames = clips[row - first][list(SHEET_FRAMES)]
        strip = rearrange(frames, "F H W C -> H F W C")
        large = strip.repeat(SHEET_ENLARGE, axis=0).repeat(SHEET_ENLARGE, axis=2)
        strips.append(rearrange(large, "H F W C -> H (F W) C"))
    return np.stack(strips)


def plot_runs(steps: pd.DataFrame, stem: Path) -> None:
    """Plot each column of `measure_runs` against the training step, one line per run."""
    panels = [name for name in steps.columns if name not in ("run", "step", "low", "high")]
    rows = -(-(len(panels) + 1) // RUN_COLUMNS)  # plus one for the legend
    with matplotlib.rc_context(STYLE):
        size = (2.7 * RUN_COLUMNS, 2.3 * rows)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(rows, RUN_COLUMNS, squeeze=False).ravel()
        for axis, name in zip(axes, panels, strict=False):
            for run, line in steps.groupby("run", sort=False):
                axis.plot(line["step"], line[name], "o-", markersize=3, label=run)
            axis.set_title(name, fontsize=9, color=INK)
            axis.set_xlabel("training step")
            axis.grid(color="#e6e9ec", linewidth=0.8)
        for axis in axes[len(panels) :]:
            axis.set_axis_off()
        lines, labels = axes[0].get_legend_handles_labels()
        axes[-1].legend(lines, labels, frameon=False, fontsize=9, loc="center")
        _save(figure, stem)


def draw_sample_gif(path: Path) -> None:
    """Generate every example prompt by the default model and tile the clips in a looping GIF."""
    pipeline = load_pipeline()
    clips = np.stack([pipeline(prompt).frames for prompt in EXAMPLES])
    tiled = rearrange(
        clips, "(rows columns) F H W C -> F (rows H) (columns W) C", columns=GIF_COLUMNS
    )
    images = [
        Image.fromarray(frame).resize(
            (frame.shape[1] * GIF_ENLARGE, frame.shape[0] * GIF_ENLARGE), Image.Resampling.NEAREST
        )
        for frame in tiled
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    images[0].save(path, save_all=True, append_images=images[1:], duration=GIF_MILLISECONDS, loop=0)
