"""The model registry: embedded models, those of the two papers, Wan's, and local ones."""

import os
from collections.abc import Mapping
from math import atan, tan
from pathlib import Path
from typing import Any

from turbo.card import HubFile, ModelCard
from turbo.disk_space import nearest_existing
from turbo.models.local import find_local

WEIGHTS = Path(__file__).parents[1] / "weights"  # of the embedded models


def published_folder(environment: Mapping[str, str]) -> Path:
    """Return the folder of converted published weights.

    The downloaded files stay in the Hugging Face cache. A user without a home folder keeps "~" in
    the path: the embedded models need no such folder, and `check_home` refuses to write there.
    """
    if chosen := environment.get("T2V_WEIGHTS_DIR"):
        return Path(os.path.expanduser(chosen))
    cache = environment.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache) / "t2v-turbo"


def check_home(folder: Path) -> None:
    """Check that a folder of weights, and the cache of downloads, can be found.

    Raises:
        ValueError: they are below a home folder that does not exist.
    """
    if folder.parts[0].startswith("~"):
        raise ValueError(
            f"{folder} is below a home folder, and this user has none. Set T2V_WEIGHTS_DIR to a "
            "folder for the weights and HF_HOME to one for the downloads."
        )


def check_published(folder: Path) -> None:
    """Check that the folder of published weights is one, or can be created.

    Raises:
        ValueError: it, or a folder above it, is a file.
    """
    existing = nearest_existing(folder)
    if not existing.is_dir():
        raise ValueError(
            f"T2V_WEIGHTS_DIR is {folder}, but {existing} is a file. Set it to a folder, or unset "
            "it."
        )


PUBLISHED = published_folder(os.environ)

_SHARED = ("vae", "text_encoder")

VIDEOCRAFTER2_CKPT = HubFile(
    repository="VideoCrafter/VideoCrafter2",
    path="model.ckpt",
    size=7_400_000_000,
    gives=("teacher", *_SHARED),
    sha256="1edf769ece3308e977228943eeeed39286806aba9da17350449a3fbf4324ccfb",
)
MODELSCOPE_FILES = (
    HubFile(
        repository="ali-vilab/text-to-video-ms-1.7b",
        path="unet/diffusion_pytorch_model.safetensors",
        size=5_650_000_000,
        gives=("teacher",),
    ),
    HubFile(
        repository="ali-vilab/text-to-video-ms-1.7b",
        path="vae/diffusion_pytorch_model.safetensors",
        size=335_000_000,
        gives=("vae",),
    ),
    HubFile(
        repository="ali-vilab/text-to-video-ms-1.7b",
        path="text_encoder/model.safetensors",
        size=1_360_000_000,
        gives=("text_encoder",),
    ),
)

_WAN_REPOSITORY = "Wan-AI/Wan2.1-T2V-1.3B"
WAN_FILES = (
    HubFile(
        repository=_WAN_REPOSITORY,
        path="diffusion_pytorch_model.safetensors",
        size=5_676_070_424,
        gives=("teacher",),
        sha256="96b6b242ca1c2f24e9d02cd6596066fab6d310e2d7538f33ae267cb18d957e8f",
    ),
    HubFile(
        repository=_WAN_REPOSITORY,
        path="Wan2.1_VAE.pth",
        size=507_609_880,
        gives=("vae",),
        sha256="38071ab59bd94681c686fa51d75a1968f64e470262043be31f7a094e442fd981",
    ),
    HubFile(
        repository=_WAN_REPOSITORY,
        path="models_t5_umt5-xxl-enc-bf16.pth",
        size=11_361_920_418,
        gives=("text_encoder",),
        sha256="7cace0da2b446bbbbc57d031ab6cf163a3d59b366da94e5afe36745b746fd81d",
    ),
    HubFile(
        repository=_WAN_REPOSITORY,
        path="google/umt5-xxl/tokenizer.json",
        size=16_837_417,
        gives=("tokenizer",),
        sha256="6e197b4d3dbd71da14b4eb255f4fa91c9c1f2068b20a2de2472967ca3d22602b",
    ),
)

_SHAPES: dict[str, Any] = {
    "family": "shapes",
    "folder": WEIGHTS / "shapes",
    "licence": "Apache-2.0",
    "height": 32,
    "width": 32,
    "num_frames": 16,
    "fps": 8,
    "enlarge": 8,
    "prediction_type": "v_prediction",
    "beta_end": 0.02,
    "spacing": "trailing",
    "cpu_threads": 1,
}

_EMBEDDED_GUIDANCE = "Embedded guidance w: an input of the network, one call per step; s = w + 1."
_CLASSIFIER_FREE = "Classifier-free guidance s: two network calls per step; 1 is no guidance."

_SHAPES_TEACHER: dict[str, Any] = {
    "role": "teacher",
    "sampler": "ddim",
    "unet": "teacher",
    "default_steps": 50,
    "max_steps": 100,
    "default_guidance": 2.0,
    "min_guidance": 1.0,
    "max_guidance": 8.0,
    "guidance_kind": _CLASSIFIER_FREE,
    **_SHAPES,
}
_SHAPES_STUDENT: dict[str, Any] = {
    "role": "student",
    "sampler": "consistency",
    "unet": "teacher",
    "default_steps": 4,
    "max_steps": 8,
    "default_guidance": 1.5,
    "min_guidance": 0.5,  # the range of its distillation, where its teacher is good
    "max_guidance": 3.0,
    "origin_steps": 20,  # coarser than the paper's 50: fewer solver steps from clean to noise
    "guidance_kind": _EMBEDDED_GUIDANCE,
    **_SHAPES,
}

# Distilled at one w, that of the guidance at which its teacher is best.
_ONE_GUIDANCE = {"default_guidance": 1.0, "min_guidance": 1.0, "max_guidance": 1.0}
_FLOW: dict[str, Any] = {"unet": "flow-teacher", "flow_shift": 3.0}  # flow matching, as Wan

_VIDEOCRAFTER2: dict[str, Any] = {
    "family": "videocrafter2",
    "folder": PUBLISHED / "videocrafter2",
    "height": 320,
    "width": 512,
    "num_frames": 16,
    "half": True,
    "memory_gb": 6.5,
}
_MODELSCOPE: dict[str, Any] = {
    "family": "modelscope",
    "folder": PUBLISHED / "modelscope",
    "height": 256,
    "width": 256,
    "num_frames": 16,
    "fps": 8,
    "half": True,
    "memory_gb": 5.1,
}
_TEACHER: dict[str, Any] = {
    "role": "teacher",
    "sampler": "ddim",
    "unet": "teacher",
    "default_steps": 50,
    "max_steps": 200,
    "min_guidance": 1.0,
    "max_guidance": 20.0,
    "guidance_kind": _CLASSIFIER_FREE,
}
_VIDEOCRAFTER2_TEACHER: dict[str, Any] = {
    "licence": "Apache-2.0",
    "sources": (VIDEOCRAFTER2_CKPT,),
    "eta": 1.0,
    "clean_rescale": True,  # as in its own sampler; the papers' baseline
    "default_guidance": 12.0,
    **_VIDEOCRAFTER2,
    **_TEACHER,
}
_STUDENT: dict[str, Any] = {
    "role": "student",
    "sampler": "consistency",
    "default_steps": 4,
    "max_steps": 50,  # the whole distillation grid
    "default_guidance": 7.5,
    "min_guidance": 5.0,  # the range of their distillation
    "max_guidance": 15.0,
    "guidance_kind": _EMBEDDED_GUIDANCE,
}
# T2V-Turbo-v2, arXiv:2410.05677: a finer grid, 16 steps, 8 frames per second.
_V2: dict[str, Any] = {
    **_STUDENT,
    "origin_steps": 200,
    "default_steps": 16,
    "max_steps": 200,
    "fps": 8,
}

_SHAPES_CARDS = [
    ModelCard(
        name="shapes-teacher",
        title="Shapes teacher",
        eta=1.0,  # as VideoCrafter2's own script; ModelScope's has 0
        **_SHAPES_TEACHER,
    ),
    ModelCard(name="shapes-teacher-ode", title="Shapes teacher, no fresh noise", **_SHAPES_TEACHER),
    ModelCard(name="shapes-vcm", title="Shapes VCM", lora="vcm", **_SHAPES_STUDENT),
    ModelCard(name="shapes-turbo", title="Shapes Turbo", lora="turbo", **_SHAPES_STUDENT),
    ModelCard(
        name="shapes-turbo-dmd",
        title="Shapes Turbo, distribution matching",
        lora="turbo-dmd",
        **_SHAPES_STUDENT | _ONE_GUIDANCE,
    ),
    ModelCard(name="shapes-flow-teacher", title="Shapes flow teacher", **_SHAPES_TEACHER | _FLOW),
    ModelCard(
        name="shapes-flow-vcm", title="Shapes flow VCM", lora="flow-vcm", **_SHAPES_STUDENT | _FLOW
    ),
    ModelCard(
        name="shapes-flow-turbo",
        title="Shapes flow Turbo",
        lora="flow-turbo",
        **_SHAPES_STUDENT | _FLOW,
    ),
]

_PAPER_CARDS = [
    ModelCard(
        name="videocrafter2",
        title="VideoCrafter2",
        fps=10,
        conditioning_fps=28,  # conditioned on 28 and saved at 10, as in its launch script
        **_VIDEOCRAFTER2_TEACHER,
    ),
    ModelCard(
        name="videocrafter2-16fps",  # the rate of its students, for clips shown beside theirs
        title="VideoCrafter2, 16 fps",
        fps=16,
        **_VIDEOCRAFTER2_TEACHER,
    ),
    ModelCard(
        name="modelscope",
        title="ModelScope",
        licence="CC-BY-NC-4.0",
        sources=MODELSCOPE_FILES,
        default_guidance=9.0,
        **_MODELSCOPE,
        **_TEACHER,
    ),
    ModelCard(
        name="t2v-turbo-vc2",
        title="T2V-Turbo (VC2)",
        licence="CC-BY-4.0",
        unet="t2v-turbo",
        # The merged network: the list of adapters lacks the guidance projection.
        sources=(
            HubFile(
                repository="jiachenli-ucsb/T2V-Turbo-VC2-Merged",
                path="t2v_turbo_vc2.pt",
                size=7_400_000_000,
                gives=("t2v-turbo", *_SHARED),
            ),
        ),
        fps=16,
        **_VIDEOCRAFTER2,
        **_STUDENT,
    ),
    ModelCard(
        name="t2v-turbo-ms",
        title="T2V-Turbo (MS)",
        licence="CC-BY-4.0 AND CC-BY-NC-4.0",  # of the adapters, and of the network they adapt
        unet="teacher",
        lora="t2v-turbo",
        sources=(
            *MODELSCOPE_FILES,
            HubFile(
                repository="jiachenli-ucsb/T2V-Turbo-MS",
                path="unet_lora.pt",
                size=234_306_256,
                gives=("t2v-turbo",),
                sha256="7d70794e0f05847fb34f361521443195661c88f66f610bf4ea3d41e33a49927b",
            ),
        ),
        **_MODELSCOPE,
        **_STUDENT,
    ),
    ModelCard(
        name="t2v-turbo-v2",
        title="T2V-Turbo-v2",
        licence="Apache-2.0",
        unet="t2v-turbo-v2",
        sources=(
            VIDEOCRAFTER2_CKPT,
            HubFile(
                repository="jiachenli-ucsb/T2V-Turbo-v2",
                path="unet_mg.pt",
                size=5_660_000_000,
                gives=("t2v-turbo-v2",),
                sha256="92c8767b40a5b2737dd3c69f5f13dae222ead5bd4befbbf894ca870231db13bc",
            ),
        ),
        motion_layers="always",
        motion_strength=0.05,
        **_VIDEOCRAFTER2,
        **_V2,
    ),
    ModelCard(
        name="t2v-turbo-v2-no-mg",
        title="T2V-Turbo-v2, no motion guidance",
        licence="Apache-2.0",
        unet="t2v-turbo-v2-no-mg",
        sources=(
            VIDEOCRAFTER2_CKPT,
            HubFile(
                repository="jiachenli-ucsb/T2V-Turbo-v2-no-MG",
                path="unet_no_mg.pt",
                size=5_660_000_000,
                gives=("t2v-turbo-v2-no-mg",),
            ),
        ),
        motion_layers="maybe",  # present, judging by the file's size, but never used
        **_VIDEOCRAFTER2,
        **_V2,
    ),
    ModelCard(
        name="vcm-vc2",
        title="VCM (VC2)",
        licence="Apache-2.0",
        unet="teacher",
        lora="vcm",
        sources=(VIDEOCRAFTER2_CKPT,),
        fps=16,
        **_VIDEOCRAFTER2,
        **_STUDENT,
    ),
    ModelCard(
        name="vcm-ms",
        title="VCM (MS)",
        licence="CC-BY-NC-4.0",
        unet="teacher",
        lora="vcm",
        sources=MODELSCOPE_FILES,
        **_MODELSCOPE,
        **_STUDENT,
    ),
]

_WAN: dict[str, Any] = {
    "family": "wan2.1-1.3b",
    "licence": "Apache-2.0",
    "folder": PUBLISHED / "wan2.1-1.3b",
    "height": 480,
    "width": 832,
    "fps": 16,
    "half": True,
}
_WAN_STUDENT: dict[str, Any] = {
    "role": "student",
    "sampler": "consistency",
    "memory_gb": 21.3,
    "default_guidance": 1.0,
    "min_guidance": 1.0,
    "max_guidance": 1.0,
    "guidance_kind": "None: the guidance of its teacher is part of it.",
}
_WAN_CARDS = [
    ModelCard(
        name="wan2.1-1.3b",
        title="Wan2.1 1.3B",
        sources=WAN_FILES,
        num_frames=81,
        memory_gb=21.3,
        flow_shift=8.0,  # its README, for this size
        spacing="trailing",
        default_guidance=6.0,  # its README, for this size
        **_WAN,
        **_TEACHER,
    ),
    ModelCard(
        name="rcm-wan2.1-1.3b",
        title="rCM (Wan2.1 1.3B)",
        unet="rcm",
        sources=(
            HubFile(
                repository="worstcoder/rcm-Wan",
                path="rCM_Wan2.1_T2V_1.3B_480p.pt",
                size=2_840_000_000,
                gives=("rcm",),
            ),
            *WAN_FILES[1:],
        ),
        num_frames=77,  # as in its script, like the noise levels
        sigmas=tuple(tan(t) / (1 + tan(t)) for t in (atan(80), 1.3, 1.0, 0.6)),
        default_steps=4,
        max_steps=4,
        **_WAN | _WAN_STUDENT,
    ),
    ModelCard(
        name="causvid-wan2.1-1.3b",
        title="CausVid bidirectional (Wan2.1 1.3B)",
        unet="causvid",
        sources=(
            HubFile(
                repository="tianweiy/CausVid",
                path="bidirectional_checkpoint2/model.pt",
                size=11_400_000_000,  # with the critic of its training
                gives=("causvid",),
            ),
            *WAN_FILES[1:],
        ),
        num_frames=81,  # as in its script, like the noise levels
        sigmas=(1.0, 0.757, 0.522),
        default_steps=3,
        max_steps=3,
        **_WAN | _WAN_STUDENT | {"licence": "CC-BY-NC-4.0"},
    ),
]

# T2V_MODELS_DIR is a folder of models that were trained here: `training.distil` writes one.
_LOCAL = os.environ.get("T2V_MODELS_DIR")
_OWN_CARDS = [*_SHAPES_CARDS, *_PAPER_CARDS, *_WAN_CARDS]
_LOCAL_CARDS: list[ModelCard] = []
_LOCAL_REFUSAL = ""
try:
    if _LOCAL:
        _LOCAL_CARDS = find_local(Path(os.path.expanduser(_LOCAL)), _OWN_CARDS)
except (ValueError, OSError) as refusal:  # `check_local` raises it: imports must not fail
    _LOCAL_REFUSAL = str(refusal)

CARDS: list[ModelCard] = [*_OWN_CARDS, *_LOCAL_CARDS]

MODELS: dict[str, ModelCard] = {card.name: card for card in CARDS}
DEFAULT_MODEL = "shapes-turbo"


def check_local() -> None:
    """Check that the models of T2V_MODELS_DIR could be read. A command does so before all else.

    Raises:
        ValueError: the folder or one of its models cannot be used; the registry has none of them.
    """
    if _LOCAL_REFUSAL:
        raise ValueError(_LOCAL_REFUSAL)


def find_card(name: str) -> ModelCard:
    """Return the card of a model.

    Raises:
        ValueError: there is no such model; the message lists all, or says why they are not all.
    """
    if name not in MODELS:
        check_local()
        raise ValueError(
            f"There is no model {name!r}. Choose one of {', '.join(MODELS)} "
            "(turbo/models/registry.py)."
        )
    return MODELS[name]
