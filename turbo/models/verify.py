"""Check weights: a published file before it is converted, or a model's folders after."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from turbo.card import CONVERSION, ModelCard, describe_remedy
from turbo.convert.checkpoint import Checkpoint, open_checkpoint
from turbo.convert.difference import find_differences
from turbo.convert.part import Origin, Part
from turbo.convert.plan import (
    GUIDANCE_SIZE,
    Kind,
    NoTeacher,
    check_adapters,
    parts_of,
    plan_jobs,
    published_parts,
    recognise,
)
from turbo.convert.unet import on_meta
from turbo.manifest import sha256_of
from turbo.models.errors import DAMAGE
from turbo.networks.lora import NO_STUDENT, find_lacking, find_strangers
from turbo.networks.text import load_tokenizer
from turbo.networks.unet import VideoUNet

PUBLISHED_PARAMETERS = {
    1_413_284_420: "VideoCrafter2",
    1_413_366_340: "T2V-Turbo (VC2)",
    1_413_653_060: "T2V-Turbo-v2",
    1_411_233_860: "ModelScope",
    1_411_315_780: "T2V-Turbo (MS)",
    83_653_863: "the VAE of both teachers",
    340_387_840: "the text tower of both teachers",
}


@dataclass(frozen=True)
class Finding:
    """What was found in one file or folder."""

    place: Path
    parameters: int  # 0 where there is no network
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        published = PUBLISHED_PARAMETERS.get(self.parameters)
        size = f"{self.parameters:,} parameters" + (f", as {published}" if published else "")
        state = "good" if not self.problems else f"{len(self.problems)} problems"
        lines = [f"{self.place}: {state}" + (f"; {size}" if self.parameters else "")]
        return "\n".join(lines + [f"  {problem}" for problem in self.problems])


def verify_file(card: ModelCard, path: Path) -> Finding:
    """Compare a published file with what its model needs; every difference is a problem.

    Where the card knows the SHA-256 of the file, one flipped bit is a difference.
    """
    try:
        checkpoint = open_checkpoint(path)
        kind = recognise(checkpoint)
        try:
            parts = parts_of(checkpoint, kind)
        except ValueError as error:  # what tells the sizes is missing
            missing = _missing_of_published(checkpoint, kind)
            return Finding(path, 0, missing or [str(error)])
        problems = []
        if parts:  # a list of adapters has no names to compare
            problems = [str(d) for d in find_differences(parts.values(), checkpoint.shapes)]
        if not problems:
            try:
                # Which projection the adapters get is to be chosen when they are converted.
                plan_jobs(card, [checkpoint], "zeros" if kind == "adapters" else None)
            except NoTeacher:  # yet; it is of the published size
                check_adapters(card, checkpoint)
            problems = _damages(checkpoint)
        problems += [line for part in parts.values() for line in find_strange_size(card, part)]
        problems += _strange_bytes(card, path)
    except (ValueError, FileNotFoundError) as error:
        return Finding(path, 0, [str(error)])
    return Finding(path, sum(part.parameters for part in parts.values()), problems)


def _missing_of_published(checkpoint: Checkpoint, kind: Kind) -> list[str]:
    differences = find_differences(published_parts(checkpoint, kind), checkpoint.shapes)
    return [str(difference) for difference in differences if difference.kind == "missing"]


def _strange_bytes(card: ModelCard, path: Path) -> list[str]:
    """Compare a file with the hash on the card, if it is there under this name."""
    known = [file for file in card.sources if file.sha256 and path.match(file.path)]
    found = sha256_of(path) if known else ""
    return [
        f"expected SHA-256 {file.sha256}, as of {file.address}, got {found}: damaged, or another "
        "file. Download it again"
        for file in known
        if file.sha256 != found
    ]


def find_strange_size(card: ModelCard, part: Part) -> list[str]:
    """Return what is wrong with the size of a network, of which the papers have but a few."""
    if not card.sources or part.parameters in PUBLISHED_PARAMETERS:
        return []
    name = type(part.network).__name__
    return [
        f"expected a {name} of one of the sizes {sorted(PUBLISHED_PARAMETERS)}, "
        f"got {part.parameters:,} parameters: not a network of the papers"
    ]


def verify_model(card: ModelCard) -> Iterator[Finding]:
    """Compare every folder of a model with its configuration, and with the hash it was noted."""
    for folder in (*card.parts, "tokenizer"):
        place = card.folder / folder
        if folder in card.missing:
            yield Finding(place, 0, [f"missing. {describe_remedy(card)}"])
            continue
        try:
            finding = _verify_folder(card, folder)
        except DAMAGE as error:  # of a garbled configuration
            finding = Finding(place, 0, [f"{type(error).__name__}: {error}"])
        except ValueError as refusal:
            finding = Finding(place, 0, [str(refusal)])
        if finding.problems and card.sources:
            remedy = f"To mend it delete {place}, and fetch {card.name} or convert it again."
            finding.problems.append(remedy)
        yield finding


def _verify_folder(card: ModelCard, folder: str) -> Finding:
    place = card.folder / folder
    if folder == "tokenizer":
        load_tokenizer(
            place, CLIPTextConfig.from_pretrained(card.folder / "text_encoder").vocab_size
        )
        return Finding(place, 0)
    files = sorted(place.glob("*.safetensors"))
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        return Finding(place, 0, [f"expected one file of weights, got {names}"])
    checkpoint = open_checkpoint(files[0])
    if folder == card.lora:
        return _verify_adapters(card, checkpoint, files[0])
    return _verify_network(card, checkpoint, files[0])


def _verify_network(card: ModelCard, checkpoint: Checkpoint, file: Path) -> Finding:
    network = _network_of(file.parent)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    part = Part(network, {name: Origin(name, shape) for name, shape in shapes.items()})
    problems = [str(d) for d in find_differences([part], checkpoint.shapes)]
    problems += find_strange_size(card, part)
    return Finding(file.parent, part.parameters, problems + _damages(checkpoint) + _changes(file))


def _verify_adapters(card: ModelCard, checkpoint: Checkpoint, file: Path) -> Finding:
    configuration = VideoUNet.load_config(card.folder / card.unet)
    student = on_meta({**configuration, "time_cond_proj_dim": GUIDANCE_SIZE})
    problems = [
        f"unexpected {name}: no layer of {card.unet} has this adapter"
        for name in find_strangers(student, checkpoint.tensors)
    ]
    problems += [
        f"missing {name}. {NO_STUDENT}" for name in find_lacking(student, checkpoint.tensors)
    ]
    parameters = sum(tensor.numel() for tensor in checkpoint.tensors.values())
    return Finding(file.parent, parameters, problems + _damages(checkpoint) + _changes(file))


def _network_of(folder: Path) -> nn.Module:
    """Return the network a folder's configuration describes, without memory."""
    configuration: dict[str, Any] = json.loads((folder / "config.json").read_text())
    if configuration.get("_class_name") == "VideoUNet":
        return on_meta(VideoUNet.load_config(folder))
    with torch.device("meta"):
        if configuration.get("_class_name") == "AutoencoderKL":
            return AutoencoderKL.from_config(AutoencoderKL.load_config(folder))
        return CLIPTextModel(CLIPTextConfig.from_pretrained(folder))


def _damages(checkpoint: Checkpoint) -> list[str]:
    """Read every tensor, and return what is wrong with its bytes."""
    problems = []
    for name in checkpoint.shapes:
        try:
            checkpoint.read(name)
        except ValueError as error:
            problems.append(str(error))
    return problems


def _changes(file: Path) -> list[str]:
    """Compare a converted file with the hash that was noted when it was written."""
    record = file.with_name(CONVERSION)
    if not record.exists():
        return []
    noted = json.loads(record.read_text())["sha256"]
    found = sha256_of(file)
    if found == noted:
        return []
    return [f"changed since it was converted: expected SHA-256 {noted}, got {found}; convert again"]
