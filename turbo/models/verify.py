"""Verify weights: a published file before its conversion, or a model's folders after it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from turbo.card import CONVERSION, ModelCard, describe_remedy
from turbo.convert.checkpoint import Checkpoint, open_checkpoint
from turbo.convert.difference import find_differences
from turbo.convert.part import Part, renamed_part
from turbo.convert.plan import (
    GUIDANCE_SIZE,
    NoTeacher,
    check_adapters,
    parts_of,
    plan_jobs,
    published_parts,
    recognise,
)
from turbo.manifest import sha256_of
from turbo.models.errors import DAMAGE
from turbo.networks.families import check_tokenizer, network_on_meta, part_on_meta
from turbo.networks.lora import NO_STUDENT, find_absent, find_foreign

PUBLISHED_PARAMETERS = {
    1_413_284_420: "VideoCrafter2",
    1_413_366_340: "T2V-Turbo (VC2)",
    1_413_653_060: "T2V-Turbo-v2",
    1_411_233_860: "ModelScope",
    1_411_315_780: "T2V-Turbo (MS)",
    83_653_863: "the VAE of both teachers",
    340_387_840: "the text encoder of both teachers",
    1_418_996_800: "Wan2.1 1.3B",
    126_892_531: "the VAE of Wan2.1",
    5_680_910_336: "the text encoder of Wan2.1",
}


@dataclass(frozen=True)
class Finding:
    """The result for one file or folder."""

    path: Path
    parameters: int  # 0 without a network
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        published = PUBLISHED_PARAMETERS.get(self.parameters)
        size = f"{self.parameters:,} parameters" + (f", as in {published}" if published else "")
        state = "good" if not self.problems else f"{len(self.problems)} problems"
        lines = [f"{self.path}: {state}" + (f"; {size}" if self.parameters else "")]
        return "\n".join(lines + [f"  {problem}" for problem in self.problems])


def verify_file(card: ModelCard, path: Path) -> Finding:
    """Compare a published file with the networks of its model, and with its SHA-256 if known."""
    try:
        checkpoint = open_checkpoint(path)
        kind = recognise(checkpoint)
        try:
            parts = parts_of(checkpoint, kind)
        except ValueError as error:  # a tensor that determines the sizes is missing
            differences = find_differences(published_parts(checkpoint, kind), checkpoint.shapes)
            missing = [str(d) for d in differences if d.kind == "missing"]
            return Finding(path, 0, missing or [str(error)])
        problems = []
        if parts:  # a list of adapters has no names to compare
            problems = [str(d) for d in find_differences(parts.values(), checkpoint.shapes)]
        if not problems:
            try:
                # The conversion asks for the guidance projection; any choice will do here.
                plan_jobs(card, [checkpoint], "zeros" if kind == "adapters" else None)
            except NoTeacher:  # not converted yet: compare with the published sizes
                check_adapters(card, checkpoint)
            problems = _damages(checkpoint)
        problems += [line for part in parts.values() for line in find_strange_size(card, part)]
        problems += _strange_bytes(card, path)
    except (ValueError, FileNotFoundError) as error:
        return Finding(path, 0, [str(error)])
    return Finding(path, sum(part.parameters for part in parts.values()), problems)


def _strange_bytes(card: ModelCard, path: Path) -> list[str]:
    """Compare a file with the SHA-256 on the card, if the card has one for this file name."""
    known = [file for file in card.sources if file.sha256 and path.match(file.path)]
    found = sha256_of(path) if known else ""
    return [
        f"damaged, or another file: its SHA-256 is {found}, that of {file.address} is "
        f"{file.sha256}. Download it again"
        for file in known
        if file.sha256 != found
    ]


def find_strange_size(card: ModelCard, part: Part) -> list[str]:
    """Return a problem if the parameter count is none of the papers' networks."""
    if not card.sources or part.parameters in PUBLISHED_PARAMETERS:
        return []
    name = type(part.network).__name__
    return [
        f"{name} of {part.parameters:,} parameters: not a network of the papers, which have "
        f"{', '.join(f'{count:,}' for count in sorted(PUBLISHED_PARAMETERS))}"
    ]


def verify_model(card: ModelCard) -> Iterator[Finding]:
    """Compare every folder of a model with its configuration and its recorded SHA-256."""
    for folder in (*card.parts, "tokenizer"):
        path = card.folder / folder
        if folder in card.missing:
            yield Finding(path, 0, [f"missing. {describe_remedy(card)}"])
            continue
        try:
            finding = _verify_folder(card, folder)
        except DAMAGE as error:  # a damaged configuration
            finding = Finding(path, 0, [f"{type(error).__name__}: {error}"])
        except ValueError as refusal:
            finding = Finding(path, 0, [str(refusal)])
        if finding.problems and card.sources:
            remedy = f"To repair it, delete {path} and fetch or convert {card.name} again."
            finding.problems.append(remedy)
        yield finding


def _verify_folder(card: ModelCard, folder: str) -> Finding:
    path = card.folder / folder
    if folder == "tokenizer":
        check_tokenizer(path, card.folder / "text_encoder")
        return Finding(path, 0)
    files = sorted(path.glob("*.safetensors"))
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        return Finding(path, 0, [f"more than one file of weights: {names}. Keep one"])
    checkpoint = open_checkpoint(files[0])
    if folder == card.lora:
        return _verify_adapters(card, checkpoint, files[0])
    return _verify_network(card, checkpoint, files[0])


def _verify_network(card: ModelCard, checkpoint: Checkpoint, file: Path) -> Finding:
    part = renamed_part(part_on_meta(file.parent))
    problems = [str(d) for d in find_differences([part], checkpoint.shapes)]
    problems += find_strange_size(card, part)
    return Finding(file.parent, part.parameters, problems + _damages(checkpoint) + _changes(file))


def _verify_adapters(card: ModelCard, checkpoint: Checkpoint, file: Path) -> Finding:
    folder = card.folder / card.unet
    added, _ = network_on_meta(folder).guidance_layers(GUIDANCE_SIZE, motion=False)
    student = network_on_meta(folder, added)
    problems = [
        f"unexpected {name}: no layer of {card.unet} has this adapter"
        for name in find_foreign(student, checkpoint.tensors)
    ]
    problems += [
        f"missing {name}. {NO_STUDENT}" for name in find_absent(student, checkpoint.tensors)
    ]
    parameters = sum(tensor.numel() for tensor in checkpoint.tensors.values())
    return Finding(file.parent, parameters, problems + _damages(checkpoint) + _changes(file))


def _damages(checkpoint: Checkpoint) -> list[str]:
    """Read every tensor; return one problem per damaged tensor."""
    problems = []
    for name in checkpoint.shapes:
        try:
            checkpoint.read(name)
        except ValueError as error:
            problems.append(str(error))
    return problems


def _changes(file: Path) -> list[str]:
    """Compare a converted file with the SHA-256 recorded at its conversion."""
    record = file.with_name(CONVERSION)
    if not record.exists():
        return []
    recorded = json.loads(record.read_text())["sha256"]
    found = sha256_of(file)
    if found == recorded:
        return []
    return [f"changed since its conversion: SHA-256 {found}, then {recorded}. Convert it again"]
