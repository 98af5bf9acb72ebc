"""Recognise a published file, check that it belongs to a model, and plan the folders to write."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from turbo.card import ModelCard
from turbo.convert.adapters import (
    PROJECTION,
    PROJECTION_ORIGINS,
    change_of,
    pair_up,
    read_merged,
    read_projection,
)
from turbo.convert.checkpoint import Checkpoint, open_checkpoint
from turbo.convert.difference import refuse_differences
from turbo.convert.part import Part, Shapes
from turbo.convert.stream import Slot
from turbo.convert.text import (
    BLOCKS,
    map_open_clip_text,
    map_transformers_text,
    open_clip_part,
    published_text_encoder,
    transformers_part,
)
from turbo.convert.unet import (
    map_modelscope_unet,
    map_videocrafter_unet,
    modelscope_part,
    on_meta,
    videocrafter_part,
)
from turbo.convert.vae import (
    diffusers_part,
    latent_diffusion_part,
    map_diffusers_vae,
    map_latent_diffusion_vae,
    published_vae,
)
from turbo.convert.wan import (
    CAUSVID,
    map_causvid_network,
    map_rcm_network,
    map_wan_network,
    map_wan_text,
    map_wan_vae,
    published_wan_network,
    published_wan_text,
    published_wan_vae,
    wan_network_part,
    wan_text_part,
    wan_vae_part,
)
from turbo.networks.lora import DOWN, LORA_FILE, UP, check_lora
from turbo.networks.unet import VideoUNet
from turbo.networks.wan import WanNetwork

Kind = Literal[
    "checkpoint",
    "videocrafter-unet",
    "modelscope-unet",
    "vae",
    "text",
    "adapters",
    "named",
    "wan-network",
    "rcm-network",
    "causvid-network",
    "wan-vae",
    "wan-text",
]

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.model."
OWN_STUDENTS = ("vcm-vc2", "vcm-ms")  # never published: users distil them
GUIDANCE_SIZE = 256  # channels of the embedding of w, as in T2V-Turbo's published code
MATRIX, CONVOLUTION = 2, 5  # dimensions of the first layer of rCM's network, and of Wan's
DIFFUSERS_FILE, TRANSFORMERS_FILE = "diffusion_pytorch_model.safetensors", "model.safetensors"

WAN_NETWORKS: dict[str, Kind] = {  # by the folder of the card
    "teacher": "wan-network",
    "rcm": "rcm-network",
    "causvid": "causvid-network",
}
_DESCRIPTIONS: dict[Kind, str] = {
    "checkpoint": "a VideoCrafter2 checkpoint (UNet, VAE and text encoder)",
    "videocrafter-unet": "a VideoCrafter2 UNet",
    "modelscope-unet": "a ModelScope UNet",
    "vae": "a VAE in diffusers' layout",
    "text": "a text encoder in transformers' layout",
    "adapters": "a list of adapters",
    "named": "named adapters",
    "wan-network": "the network of Wan",
    "rcm-network": "the network of rCM, a student of Wan",
    "causvid-network": "the network of CausVid, a student of Wan",
    "wan-vae": "the VAE of Wan",
    "wan-text": "the text encoder of Wan",
}
_ACCEPTED: dict[str, tuple[Kind, ...]] = {  # by model family
    "videocrafter2": ("checkpoint", "videocrafter-unet", "adapters", "named"),
    "modelscope": ("modelscope-unet", "vae", "text", "adapters", "named"),
    "wan2.1-1.3b": (*WAN_NETWORKS.values(), "wan-vae", "wan-text"),
}


class NoTeacher(ValueError):
    """The teacher of some adapters is neither among the files nor converted already."""


@dataclass(frozen=True)
class Job:
    """One folder to write: a file of tensors, and the configuration of their network."""

    folder: str
    file: str
    slots: Mapping[str, Slot]
    read: Callable[[str], Tensor]
    network: nn.Module | None  # None for adapters
    origin: dict[str, str] = field(default_factory=dict)  # recorded in conversion.json

    @property
    def size(self) -> int:
        """Return the number of bytes to write."""
        return sum(slot.size for slot in self.slots.values())


def recognise(checkpoint: Checkpoint) -> Kind:
    """Return the kind of a file, by its tensor names.

    Raises:
        ValueError: unknown.
    """
    names = checkpoint.shapes
    marks: dict[Kind, bool] = {
        "adapters": checkpoint.positional,
        "named": any(name.endswith(DOWN) for name in names),
        "checkpoint": f"{UNET}input_blocks.0.0.weight" in names,
        "videocrafter-unet": "input_blocks.0.0.weight" in names,
        "modelscope-unet": "conv_in.weight" in names and "transformer_in.norm.weight" in names,
        "wan-network": len(names.get("patch_embedding.weight", ())) == CONVOLUTION,
        "rcm-network": any(
            len(names.get(f"{prefix}patch_embedding.weight", ())) == MATRIX
            for prefix in ("", "net.")
        ),
        "causvid-network": f"{CAUSVID}patch_embedding.weight" in names,
        "wan-vae": "encoder.downsamples.0.residual.0.gamma" in names,
        "wan-text": "blocks.0.pos_embedding.embedding.weight" in names,
        "vae": "encoder.conv_in.weight" in names,
        "text": any(name.endswith("embeddings.token_embedding.weight") for name in names),
    }
    for kind, marked in marks.items():
        if marked:
            return kind
    raise ValueError(
        f"{checkpoint.path} is not a file of VideoCrafter2, ModelScope, T2V-Turbo or Wan: it holds "
        f"{len(names)} tensors, the first of which are {[*names][:3]}. "
        "`python -m turbo.models show NAME` lists the files of a model."
    )


def parts_of(checkpoint: Checkpoint, kind: Kind) -> dict[str, Part]:
    """Return the networks in a file, by "unet", "vae" and "text_encoder"; none for adapters.

    Raises:
        ValueError: a tensor that determines their sizes is missing, or has an impossible shape.
    """
    shapes = checkpoint.shapes
    maps: dict[Kind, Callable[[Shapes], dict[str, Part]]] = {
        "checkpoint": lambda shapes: {
            "unet": map_videocrafter_unet(shapes, UNET),
            "vae": map_latent_diffusion_vae(shapes, VAE),
            "text_encoder": map_open_clip_text(shapes, TEXT, blocks=BLOCKS),
        },
        "videocrafter-unet": lambda shapes: {"unet": map_videocrafter_unet(shapes)},
        "modelscope-unet": lambda shapes: {"unet": map_modelscope_unet(shapes)},
        "vae": lambda shapes: {"vae": map_diffusers_vae(shapes)},
        "text": lambda shapes: {"text_encoder": map_transformers_text(shapes, blocks=BLOCKS)},
        "wan-network": lambda shapes: {"unet": map_wan_network(shapes)},
        "rcm-network": lambda shapes: {"unet": map_rcm_network(shapes)},
        "causvid-network": lambda shapes: {"unet": map_causvid_network(shapes)},
        "wan-vae": lambda shapes: {"vae": map_wan_vae(shapes)},
        "wan-text": lambda shapes: {"text_encoder": map_wan_text(shapes)},
        "adapters": lambda shapes: {},
        "named": lambda shapes: {},
    }
    try:
        return maps[kind](shapes)
    except KeyError as error:
        raise ValueError(
            f"The tensor {error} is missing in {checkpoint.path}, {_DESCRIPTIONS[kind]}. "
            "Download it again, or choose the published file of this model."
        ) from error
    except (IndexError, ValueError, ZeroDivisionError) as error:
        raise ValueError(
            f"The shapes in {checkpoint.path} are not those of {_DESCRIPTIONS[kind]} ({error}). "
            "Choose the published file of this model."
        ) from error


def published_parts(checkpoint: Checkpoint, kind: Kind) -> list[Part]:
    """Return the papers' networks of a file's kind, for a file that lacks some of their tensors."""
    names = checkpoint.shapes
    guided = any(name.endswith(PROJECTION_ORIGINS) for name in names)
    motion = any(name.endswith("motion_cond_proj.weight") for name in names)
    student = {"time_cond_proj_dim": GUIDANCE_SIZE} if guided else {}
    unet = {"fps_conditioning": True, "motion_conditioning": motion, **student}
    prefix = "text_model." if any(name.startswith("text_model.") for name in names) else ""
    parts: dict[Kind, Callable[[], list[Part]]] = {
        "checkpoint": lambda: [
            videocrafter_part(on_meta(unet), UNET),
            latent_diffusion_part(published_vae(), VAE),
            open_clip_part(published_text_encoder(), prefix=TEXT),
        ],
        "videocrafter-unet": lambda: [videocrafter_part(on_meta(unet))],
        "modelscope-unet": lambda: [modelscope_part(on_meta(student))],
        "vae": lambda: [diffusers_part(published_vae(), names)],
        "text": lambda: [transformers_part(published_text_encoder(), prefix)],
        "wan-network": lambda: [wan_network_part(published_wan_network())],
        "rcm-network": lambda: [wan_network_part(published_wan_network())],
        "causvid-network": lambda: [wan_network_part(published_wan_network())],
        "wan-vae": lambda: [wan_vae_part(published_wan_vae())],
        "wan-text": lambda: [wan_text_part(published_wan_text())],
        "adapters": lambda: [],
        "named": lambda: [],
    }
    return parts[kind]()


def check_adapters(card: ModelCard, checkpoint: Checkpoint) -> None:
    """Compare adapters with the papers' network of a model; needs no weights of it.

    Raises:
        ValueError: the adapters belong to another network.
    """
    student: dict[str, Any] = {"time_cond_proj_dim": GUIDANCE_SIZE}
    if card.family == "modelscope":
        part = modelscope_part(on_meta(student))
    else:
        part = videocrafter_part(on_meta({**student, "fps_conditioning": True}))
    assert isinstance(part.network, VideoUNet)
    if checkpoint.positional:
        pair_up(checkpoint, part)
    else:
        check_lora(part.network, checkpoint.tensors, checkpoint.path)


def plan_jobs(
    card: ModelCard, checkpoints: list[Checkpoint], projection: str | None = None
) -> list[Job]:
    """Return the folders to write for one model from its published files.

    Args:
        projection: choice for `adapters.read_projection`; needed only for a list of adapters.

    Raises:
        ValueError: a file does not belong to the model; says which, why, and what to do.
    """
    jobs: list[Job] = []
    kinds = [recognise(checkpoint) for checkpoint in checkpoints]
    if "adapters" not in kinds:
        _refuse_projection(card, checkpoints, projection)
    for checkpoint, kind in zip(checkpoints, kinds, strict=True):
        if kind not in _ACCEPTED.get(card.family, ()):
            raise ValueError(
                f"{checkpoint.path} is not a file of {card.name}: it is {_DESCRIPTIONS[kind]}. "
                f"`python -m turbo.models show {card.name}` lists its files."
            )
        parts = parts_of(checkpoint, kind)
        if parts:
            refuse_differences(checkpoint, *parts.values())
        for name, part in parts.items():
            folder: str | None = name
            if name == "unet" and "adapters" in kinds and not _is_student(part):
                folder = "teacher"  # the base of the adapters
            elif name == "unet":
                folder = _folder_of_unet(card, part, checkpoint, kind)
            if folder:
                jobs.append(_plan_part(folder, part, checkpoint))
    for checkpoint, kind in zip(checkpoints, kinds, strict=True):  # needs the teacher's job
        if kind == "adapters":
            jobs.append(_plan_adapters(card, checkpoint, jobs, projection))
        if kind == "named":
            jobs.append(_plan_named(card, checkpoint, jobs))
    return jobs


def _refuse_projection(
    card: ModelCard, checkpoints: list[Checkpoint], projection: str | None
) -> None:
    """Raise if a projection was chosen but no file needs one."""
    has_adapters = card.lora is not None and card.lora not in card.missing  # converted before
    if projection is None or has_adapters:
        return
    raise ValueError(
        f"The projection {projection!r} was not used: only published adapters need one, and "
        f"{', '.join(str(checkpoint.path) for checkpoint in checkpoints)} holds none. "
        "Leave --projection out, or add the file of adapters."
    )


def _is_student(part: Part) -> bool:
    assert isinstance(part.network, VideoUNet | WanNetwork)
    return part.network.guidance_size is not None


def _folder_of_unet(card: ModelCard, part: Part, checkpoint: Checkpoint, kind: Kind) -> str | None:
    """Return the folder of a UNet, or None if the model uses only the other parts of its file.

    Raises:
        ValueError: the UNet belongs to another model.
    """
    path, is_student = checkpoint.path, _is_student(part)
    if kind in WAN_NETWORKS.values():
        if kind != WAN_NETWORKS[card.unet]:
            raise ValueError(
                f"{path} is {_DESCRIPTIONS[kind]}, not that of {card.name}. "
                f"`python -m turbo.models show {card.name}` lists its files."
            )
        return card.unet
    if card.unet == "teacher":
        if is_student:
            raise ValueError(
                f"{path} is a student, not the teacher of {card.name}: it holds the guidance "
                "projection. Convert it as a model whose weights are merged."
            )
        return card.unet
    if not is_student:
        if kind == "checkpoint" and any("teacher" in source.gives for source in card.sources):
            return None
        raise ValueError(
            f"{path} is a teacher, not the student {card.name}: it lacks the guidance projection "
            f"time_cond_proj.weight. `python -m turbo.models show {card.name}` lists its files."
        )
    assert isinstance(part.network, VideoUNet)
    config = part.network.config
    if config.motion_conditioning and card.motion_layers == "never":
        raise ValueError(
            f"{path} is T2V-Turbo-v2, not {card.name}: it holds motion_cond_proj.weight. "
            "Convert it as t2v-turbo-v2 or t2v-turbo-v2-no-mg."
        )
    if not config.motion_conditioning and card.motion_layers == "always":
        raise ValueError(
            f"{path} is not {card.name}: it lacks motion_cond_proj.weight. "
            "Convert it as t2v-turbo-v2-no-mg or t2v-turbo-vc2."
        )
    return card.unet


def _plan_part(folder: str, part: Part, checkpoint: Checkpoint) -> Job:
    slots = {
        name: Slot(checkpoint.dtype(origin.name), part.shapes[name])
        for name, origin in part.origins.items()
    }

    def read(name: str) -> Tensor:
        return part.ours(name, checkpoint.read(part.origins[name].name))

    file = TRANSFORMERS_FILE if folder == "text_encoder" else DIFFUSERS_FILE
    return Job(folder, file, slots, read, part.network, {"file": checkpoint.path.name})


def _plan_adapters(
    card: ModelCard, checkpoint: Checkpoint, jobs: list[Job], projection: str | None
) -> Job:
    """Plan named adapters, or the merged UNet if the card has no adapters."""
    if card.role == "teacher":
        raise ValueError(
            f"{checkpoint.path} is {_DESCRIPTIONS['adapters']}, not the weights of the teacher "
            f"{card.name}. Convert it as a student."
        )
    if card.motion_layers != "never":
        raise ValueError(
            f"{checkpoint.path} is {_DESCRIPTIONS['adapters']} of T2V-Turbo, not the network "
            f"{card.name}. Convert it as t2v-turbo-vc2."
        )
    base = _base_of_adapters(card, checkpoint, jobs)
    student = _student_on(base)
    fps = student.config.fps_conditioning
    part = videocrafter_part(student) if fps else modelscope_part(student)
    pairs = pair_up(checkpoint, part)
    weight = f"{PROJECTION}.weight"
    chosen = read_projection(projection, part.shapes[weight], checkpoint.path)
    origin = {"file": checkpoint.path.name, "projection": str(projection)}
    if card.lora is None:
        slots = {**base.slots, weight: Slot(torch.float32, part.shapes[weight])}

        def read_base(name: str) -> Tensor:
            return chosen if name == weight else base.read(name)

        read = read_merged(read_base, checkpoint, pairs, part.shapes)
        return Job(card.unet, DIFFUSERS_FILE, slots, read, student, origin)

    changed = chosen + change_of(checkpoint, pairs.pop(PROJECTION), part.shapes[weight])
    positions = {f"{layer}{DOWN}": pair.down for layer, pair in pairs.items()}
    positions |= {f"{layer}{UP}": pair.up for layer, pair in pairs.items()}
    slots = {
        name: Slot(checkpoint.dtype(position), checkpoint.shapes[position])
        for name, position in positions.items()
    }
    slots[weight] = Slot(torch.float32, part.shapes[weight])

    def read_named(name: str) -> Tensor:
        return changed if name == weight else checkpoint.read(positions[name])

    return Job(card.lora, LORA_FILE, slots, read_named, None, origin)


def _plan_named(card: ModelCard, checkpoint: Checkpoint, jobs: list[Job]) -> Job:
    """Plan adapters written by `save_lora`, for a model that was never published."""
    if not card.lora or any(card.lora in source.gives for source in card.sources):
        raise ValueError(
            f"{checkpoint.path} holds named adapters, from your own distillation, not a published "
            f"file of {card.name}. Convert it as {' or '.join(OWN_STUDENTS)}."
        )
    base = _base_of_adapters(card, checkpoint, jobs)
    student = _student_on(base)
    check_lora(student, checkpoint.tensors, checkpoint.path)
    slots = _slots_of(checkpoint)
    return Job(card.lora, LORA_FILE, slots, checkpoint.read, None, {"file": checkpoint.path.name})


def _student_on(base: Job) -> VideoUNet:
    """Return the student network of a teacher, on the meta device."""
    assert isinstance(base.network, VideoUNet)
    return on_meta({**base.network.config, "time_cond_proj_dim": GUIDANCE_SIZE})


def _base_of_adapters(card: ModelCard, checkpoint: Checkpoint, jobs: list[Job]) -> Job:
    """Return the teacher of some adapters: planned from these files, or converted already.

    Raises:
        NoTeacher: neither.
    """
    for job in jobs:
        if job.folder == "teacher":
            return job
    folder = card.folder / "teacher"
    if not (folder / DIFFUSERS_FILE).exists():
        raise NoTeacher(
            f"The adapters {checkpoint.path} need the weights of their teacher in {folder}, which "
            f"are missing. First run `python -m turbo.models fetch {card.family}`."
        )
    teacher = open_checkpoint(folder / DIFFUSERS_FILE)
    network = on_meta(VideoUNet.load_config(folder))
    return Job("teacher", DIFFUSERS_FILE, _slots_of(teacher), teacher.read, network)


def _slots_of(checkpoint: Checkpoint) -> dict[str, Slot]:
    return {name: Slot(checkpoint.dtype(name), shape) for name, shape in checkpoint.shapes.items()}
