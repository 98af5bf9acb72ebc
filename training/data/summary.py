"""What a folder of shards holds: counts, lengths, rates, checksums, and a sheet of pictures."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from statistics import median

import torch
from einops import rearrange
from PIL import Image, ImageDraw
from tqdm import tqdm

from training.data.shards import ClipFacts, ShardFolder, read_settings, verify_shard

SHEET = "contact_sheet.png"
CLIPS = 24  # on the sheet
COLUMNS = 2
LISTED = 20  # unusable videos
MARGIN = 18  # pixels below a clip, for its caption


def inspect(folder: Path) -> str:
    """Check all shards, write the sheet, and return what there is.

    Raises:
        ValueError: the data set is not complete, or damaged.
    """
    shards = ShardFolder(folder, read_settings(folder))
    for number, index in enumerate(tqdm(shards.indexes, desc="checksums", leave=False)):
        verify_shard(folder, number, index)
    lines = describe_shards(shards)
    if shards.settings.kind == "clips":
        lines.append(f"sheet: {write_sheet(shards)}")
    return "\n".join(lines)


def describe_shards(shards: ShardFolder) -> list[str]:
    """Return counts, lengths and rates, one per line."""
    settings = shards.settings
    facts = [shards.facts(0, row) for row in shards.rows]
    broken = {path: why for index in shards.indexes for path, why in index.broken.items()}
    seconds = sorted(clip.seconds for clip in facts)
    size = sum(index.bytes for index in shards.indexes)
    return [
        f"{settings.kind} for {settings.teacher}: {len(facts)} of {settings.videos} videos, "
        f"passes: {settings.passes}; {settings.frames} frames of "
        f"{settings.width} x {settings.height}",
        f"files: {settings.shards} shards, {size / 1e6:.1f} MB, checksums right",
        f"length of videos: {seconds[0]:.2f} to {seconds[-1]:.2f} s, median {median(seconds):.2f}; "
        f"{sum(seconds) / 3600:.2f} h in all",
        f"frames per second of videos: {_counts(clip.native_fps for clip in facts)}",
        f"frames per second of clips: {_counts(clip.fps for clip in facts)}",
        f"with a short text: {sum(bool(clip.short_text) for clip in facts)}",
        f"unusable videos: {len(broken)}",
        *(f"  {path}: {why}" for path, why in list(broken.items())[:LISTED]),
        *([f"  and {len(broken) - LISTED} more"] if len(broken) > LISTED else []),
    ]


def _counts(rates: Iterable[float]) -> str:
    counted = Counter(f"{rate:.5g}" for rate in rates)
    return ", ".join(f"{rate} ({count})" for rate, count in counted.most_common(8))


def write_sheet(shards: ShardFolder) -> Path:
    """Write three frames each of some clips, evenly spaced over the data, with their captions."""
    count = min(CLIPS, len(shards.rows))
    rows = [shards.rows[place * len(shards.rows) // count] for place in range(count)]
    cells = [_draw_clip(shards.pictures(0, row), shards.facts(0, row)) for row in rows]
    width, height = cells[0].size
    sheet = Image.new("RGB", (COLUMNS * width, -(-count // COLUMNS) * height), "white")
    for place, cell in enumerate(cells):
        sheet.paste(cell, (place % COLUMNS * width, place // COLUMNS * height))
    path = shards.folder / SHEET
    sheet.save(path)
    return path


def _draw_clip(pictures: torch.Tensor, facts: ClipFacts) -> Image.Image:
    strip = Image.fromarray(rearrange(pictures, "F h w rgb -> h (F w) rgb").numpy())
    cell = Image.new("RGB", (max(strip.width, 320), strip.height + MARGIN), "white")
    cell.paste(strip)
    text = " ".join(facts.text.split())[:52]
    ImageDraw.Draw(cell).text((2, strip.height + 2), f"{facts.row}: {text}", "black")
    return cell
