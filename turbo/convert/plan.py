"""What a published file is, whether it suits a model, and which folders come of it."""

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
    published_tower,
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
from turbo.networks.lora import DOWN, LORA_FILE, UP, refuse_others
from turbo.networks.unet import VideoUNet

Kind = Literal[
    "checkpoint", "videocrafter-unet", "modelscope-unet", "vae", "text", "adapters", "named"
]

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.model."
OWN_STUDENTS = ("vcm-vc2", "vcm-ms")  # cards of what everybody distils for themselves
GUIDANCE_SIZE = 256  # of the embedding of w; T2V-Turbo's published code
DIFFUSERS_FILE, TRANSFORMERS_FILE = "diffusion_pytorch_model.safetensors", "model.safetensors"

_DESCRIPTIONS: dict[Kind, str] = {
    "checkpoint": "a VideoCrafter2 checkpoint (UNet, VAE and text tower)",
    "videocrafter-unet": "a UNet of VideoCrafter2's kind",
    "modelscope-unet": "a UNet of ModelScope's kind",
    "vae": "a VAE in diffusers' layout",
    "text": "a text tower in transformers' layout",
    "adapters": "a list of adapters",
    "named": "adapters by name",
}
_FITTING: dict[str, tuple[Kind, ...]] = {  # by family
    "videocrafter2": ("checkpoint", "videocrafter-unet", "adapters", "named"),
    "modelscope": ("modelscope-unet", "vae", "text", "adapters", "named"),
}


class NoTeacher(ValueError):
    """The network that adapters belong to is neither among the files nor converted before."""


@dataclass(frozen=True)
class Job:
    """One folder to write: a file of tensors, and the configuration of their network."""

    folder: str
    file: str
    slots: Mapping[str, Slot]
    read: Callable[[str], Tensor]
    network: nn.Module | None  # none for adapters, which go onto another's
    origin: dict[str, str] = field(default_factory=dict)  # noted beside the result

    @property
    def size(self) -> int:
        """Return the bytes to be written."""
        return sum(slot.size for slot in self.slots.values())


def recognise(checkpoint: Checkpoint) -> Kind:
    """Return what a file is, by the names in it.

    Raises:
        ValueError: nothing that is known here.
    """
    names = checkpoint.shapes
    marks: dict[Kind, bool] = {
        "adapters": checkpoint.positional,
        "named": any(name.endswith(DOWN) for name in names),
        "checkpoint": f"{UNET}input_blocks.0.0.weight" in names,
        "videocrafter-unet": "input_blocks.0.0.weight" in names,
        "modelscope-unet": "conv_in.weight" in names and "transformer_in.norm.weight" in names,
        "vae": "encoder.conv_in.weight" in names,
        "text": any(name.endswith("embeddings.token_embedding.weight") for name in names),
    }
    for kind, marked in marks.items():
        if marked:
            return kind
    raise ValueError(
        f"Expected weights of VideoCrafter2, ModelScope or T2V-Turbo in {checkpoint.path}, "
        f"got {len(names)} tensors that begin with {[*names][:3]}. "
        "`python -m turbo.models show NAME` tells which files make up a model."
    )


def parts_of(checkpoint: Checkpoint, kind: Kind) -> dict[str, Part]:
    """Return the networks of a file by "unet", "vae", "text_encoder"; adapters have none.

    Raises:
        ValueError: a tensor that tells their sizes is missing, or of an impossible shape.
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
        "adapters": lambda shapes: {},
        "named": lambda shapes: {},
    }
    try:
        return maps[kind](shapes)
    except KeyError as error:
        raise ValueError(
            f"Expected the tensor {error} in {checkpoint.path}, {_DESCRIPTIONS[kind]}, got none. "
            "Download it again, or choose the file this model was published as."
        ) from error
    except (IndexError, ValueError, ZeroDivisionError) as error:
        raise ValueError(
            f"Expected shapes of {_DESCRIPTIONS[kind]} in {checkpoint.path}, got others "
            f"({error}). Choose the file this model was published as."
        ) from error


def published_parts(checkpoint: Checkpoint, kind: Kind) -> list[Part]:
    """Return the networks of the papers under the names of a file, whatever it lacks of them."""
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
            open_clip_part(published_tower(), prefix=TEXT),
        ],
        "videocrafter-unet": lambda: [videocrafter_part(on_meta(unet))],
        "modelscope-unet": lambda: [modelscope_part(on_meta(student))],
        "vae": lambda: [diffusers_part(published_vae(), names)],
        "text": lambda: [transformers_part(published_tower(), prefix)],
        "adapters": lambda: [],
        "named": lambda: [],
    }
    return parts[kind]()


def check_adapters(card: ModelCard, checkpoint: Checkpoint) -> None:
    """Hold adapters against the network of the papers, whose weights are not needed for that.

    Raises:
        ValueError: they are of another network.
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
        refuse_others(part.network, checkpoint.tensors, checkpoint.path)


def plan_jobs(
    card: ModelCard, checkpoints: list[Checkpoint], projection: str | None = None
) -> list[Job]:
    """Return the folders that come of published files, for one model.

    Args:
        projection: the choice of `adapters.read_projection`; only a list of adapters needs one.

    Raises:
        ValueError: a file does not suit the model; says which, why, and what to do.
    """
    jobs: list[Job] = []
    kinds = [recognise(checkpoint) for checkpoint in checkpoints]
    if "adapters" not in kinds:
        _refuse_projection(card, checkpoints, projection)
    for checkpoint, kind in zip(checkpoints, kinds, strict=True):
        if kind not in _FITTING.get(card.family, ()):
            raise ValueError(
                f"Expected a file of {card.name}, got {checkpoint.path}: {_DESCRIPTIONS[kind]}. "
                f"`python -m turbo.models show {card.name}` lists its files."
            )
        parts = parts_of(checkpoint, kind)
        if parts:
            refuse_differences(checkpoint, *parts.values())
        for name, part in parts.items():
            folder: str | None = name
            if name == "unet" and "adapters" in kinds and not _is_student(part):
                folder = "teacher"  # to which the list is added
            elif name == "unet":
                folder = _folder_of_unet(card, part, checkpoint, kind)
            if folder:
                jobs.append(_plan_part(folder, part, checkpoint))
    for checkpoint, kind in zip(checkpoints, kinds, strict=True):  # now that their teacher is known
        if kind == "adapters":
            jobs.append(_plan_adapters(card, checkpoint, jobs, projection))
        if kind == "named":
            jobs.append(_plan_named(card, checkpoint, jobs))
    return jobs


def _refuse_projection(
    card: ModelCard, checkpoints: list[Checkpoint], projection: str | None
) -> None:
    """Refuse a choice that none of the files takes up, which would be lost without a word."""
    has_adapters = card.lora is not None and card.lora not in card.missing  # a fetch goes on
    if projection is None or has_adapters:
        return
    raise ValueError(
        f"Expected a list of adapters for the projection {projection!r}, got "
        f"{', '.join(str(checkpoint.path) for checkpoint in checkpoints)}: only published "
        "adapters need one. Leave --projection out, or give the adapters too."
    )


def _is_student(part: Part) -> bool:
    assert isinstance(part.network, VideoUNet)
    return part.network.config.time_cond_proj_dim is not None


def _folder_of_unet(card: ModelCard, part: Part, checkpoint: Checkpoint, kind: Kind) -> str | None:
    """Return where a UNet goes; nowhere, if only what stands beside it is wanted of its file."""
    assert isinstance(part.network, VideoUNet)
    config, path = part.network.config, checkpoint.path
    is_student = _is_student(part)
    if card.unet == "teacher":
        if is_student:
            raise ValueError(
                f"Expected the teacher of {card.name} in {path}, got a student: it holds the "
                "guidance projection. Convert it as a model whose weights are merged."
            )
        return card.unet
    if not is_student:
        if kind == "checkpoint" and any("teacher" in source.gives for source in card.sources):
            return None
        raise ValueError(
            f"Expected the student {card.name} in {path}, got a teacher: it lacks the guidance "
            "projection time_cond_proj.weight. `python -m turbo.models show "
            f"{card.name}` lists its files."
        )
    if config.motion_conditioning and card.motion_layers == "never":
        raise ValueError(
            f"Expected {card.name} in {path}, got T2V-Turbo-v2: it holds motion_cond_proj.weight. "
            "Convert it as t2v-turbo-v2 or t2v-turbo-v2-no-mg."
        )
    if not config.motion_conditioning and card.motion_layers == "always":
        raise ValueError(
            f"Expected {card.name} in {path}, got a student without motion_cond_proj.weight. "
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
    """Return the adapters by name, or, for a model published as merged, the merged UNet."""
    if card.role == "teacher":
        raise ValueError(
            f"Expected the weights of the teacher {card.name}, got {checkpoint.path}: "
            f"{_DESCRIPTIONS['adapters']}. Convert it as a student."
        )
    if card.motion_layers != "never":
        raise ValueError(
            f"Expected the whole network {card.name}, got {checkpoint.path}: "
            f"{_DESCRIPTIONS['adapters']}, of T2V-Turbo. Convert it as t2v-turbo-vc2."
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
    places = {f"{layer}{DOWN}": pair.down for layer, pair in pairs.items()}
    places |= {f"{layer}{UP}": pair.up for layer, pair in pairs.items()}
    slots = {
        name: Slot(checkpoint.dtype(place), checkpoint.shapes[place])
        for name, place in places.items()
    }
    slots[weight] = Slot(torch.float32, part.shapes[weight])

    def read_named(name: str) -> Tensor:
        return changed if name == weight else checkpoint.read(places[name])

    return Job(card.lora, LORA_FILE, slots, read_named, None, origin)


def _plan_named(card: ModelCard, checkpoint: Checkpoint, jobs: list[Job]) -> Job:
    """Return the adapters that `save_lora` wrote, for a model that nobody published."""
    if not card.lora or any(card.lora in source.gives for source in card.sources):
        raise ValueError(
            f"Expected a published file of {card.name}, got {checkpoint.path}: adapters by name, "
            f"of your own distillation. Convert them as one of {OWN_STUDENTS}."
        )
    base = _base_of_adapters(card, checkpoint, jobs)
    student = _student_on(base)
    refuse_others(student, checkpoint.tensors, checkpoint.path)
    slots = _slots_of(checkpoint)
    return Job(card.lora, LORA_FILE, slots, checkpoint.read, None, {"file": checkpoint.path.name})


def _student_on(base: Job) -> VideoUNet:
    """Return the student that adapters make of this teacher, without its numbers."""
    assert isinstance(base.network, VideoUNet)
    return on_meta({**base.network.config, "time_cond_proj_dim": GUIDANCE_SIZE})


def _base_of_adapters(card: ModelCard, checkpoint: Checkpoint, jobs: list[Job]) -> Job:
    """Return the teacher a list of adapters belongs to: among these files, or converted before."""
    for job in jobs:
        if job.folder == "teacher":
            return job
    folder = card.folder / "teacher"
    if not (folder / DIFFUSERS_FILE).exists():
        raise NoTeacher(
            f"Expected the teacher's weights in {folder} for the adapters {checkpoint.path}, "
            f"got none. First run `python -m turbo.models fetch {card.family}`."
        )
    teacher = open_checkpoint(folder / DIFFUSERS_FILE)
    network = on_meta(VideoUNet.load_config(folder))
    return Job("teacher", DIFFUSERS_FILE, _slots_of(teacher), teacher.read, network)


def _slots_of(checkpoint: Checkpoint) -> dict[str, Slot]:
    return {name: Slot(checkpoint.dtype(name), shape) for name, shape in checkpoint.shapes.items()}
