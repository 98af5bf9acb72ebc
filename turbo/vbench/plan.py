"""The plan of a run: the 946 prompts, how each is sampled, and under which name it is stored."""

import hashlib
import json
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from turbo.card import ModelCard
from turbo.manifest import Manifest, sha256_of
from turbo.request import Request, check_request
from turbo.text_files.decoding import read_text
from turbo.vbench.scores import DIMENSIONS
from turbo.whole_file import write_whole

PLAN = "plan.json"
CLIPS = "clips"  # the folder of the clips, beside it
INFO = "VBench_full_info.json"
# The commit of the upstream repository with the prompts and their dimensions.
UPSTREAM = (
    "https://raw.githubusercontent.com/Vchitect/VBench/45e79ec14e69a2187202c675d2dbce1a71843d53/"
    "vbench/" + INFO
)
SHA256 = "5dd2de80ee43cda750b2b72ea7023657c0b90d3702041c7e4608c65dbe50dccd"
SAMPLES = 5
ANOTHER_PLAN = "Clips of another plan are in this folder: choose another one, or remove all of it."
MAX_NAME = 255  # bytes; of most file systems


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The choices on which a number depends, in the order in which `verify` compares them."""

    prompt_file: str  # SHA-256
    prompts: int
    augmented: str | None  # SHA-256 of the longer prompts that the model was given, if any
    samples: int  # clips of a prompt
    flicker_samples: int  # of a prompt of temporal flickering, before static clips are chosen
    first_seed: int  # sample k of every prompt has this seed + k
    fps: float
    width: int
    height: int
    frames: int
    steps: int
    sampler: str
    guidance: float


@dataclass(frozen=True)
class PlannedClip:
    """One clip."""

    name: str  # PROMPT-SAMPLE.mp4, as the public package looks for it
    prompt: str  # what the model is given
    seed: int
    dimensions: list[str]


@dataclass(frozen=True)
class Plan:
    """What `make` makes."""

    model: str
    protocol: Protocol
    clips: list[PlannedClip]

    def write(self, folder: Path) -> Path:
        """Write `plan.json`.

        Raises:
            ValueError: the folder has another plan.
        """
        path, text = folder / PLAN, json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise ValueError(
                f"{path} is another plan. Choose another folder, or remove all of this one: its "
                "clips and scores belong to that plan."
            )
        write_whole(path, text.encode())
        return path

    @classmethod
    def read(cls, folder: Path) -> "Plan":
        """Read the plan of a folder.

        Raises:
            ValueError: it has none, or a damaged one.
        """
        path = folder / PLAN
        if not path.is_file():
            raise ValueError(f"{folder} has no {PLAN}. Make one: python -m turbo.vbench plan.")
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            clips = [PlannedClip(**clip) for clip in found["clips"]]
            return cls(found["model"], Protocol(**found["protocol"]), clips)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}). Make it again.") from error

    def requests(self, card: ModelCard) -> dict[str, Request]:
        """Return the request of each clip, by its path in the folder of the plan."""
        settings = {"steps": self.protocol.steps, "guidance": self.protocol.guidance}
        return {
            f"{CLIPS}/{clip.name}": check_request(card, clip.prompt, seed=clip.seed, **settings)
            for clip in self.clips
        }

    def check_clips(self, card: ModelCard, folder: Path) -> None:
        """Refuse the clips of another plan in the folder of this one.

        Raises:
            ValueError: the manifest lists a clip that is not planned, or was made otherwise.
        """
        requests = self.requests(card)
        for path, row in Manifest(folder).rows().items():
            if not (folder / path).exists():  # `make` makes it again
                continue
            request = requests.get(path)
            if request is None:
                raise ValueError(f"{folder / path} is not in the plan. {ANOTHER_PLAN}")
            wanted: dict[str, str | int | float] = {
                "model": self.model,
                "prompt": request.prompt,
                "seed": request.seed,
                "num_steps": request.steps,
                "guidance": request.guidance,
            }
            for column, value in wanted.items():
                if type(value)(row[column]) != value:
                    raise ValueError(
                        f"{folder / path} was made with the {column} {row[column]}, and the plan "
                        f"has {value}. {ANOTHER_PLAN}"
                    )

    def dimensions(self, entries: Iterable[Mapping[str, Any]]) -> list[str]:
        """Return the dimensions all of whose prompts are planned.

        Args:
            entries: as `read_info` returns them.
        """
        planned = {clip.name.rpartition("-")[0] for clip in self.clips}
        lacking = {
            dimension
            for entry in entries
            if entry["prompt_en"] not in planned
            for dimension in entry["dimension"]
        }
        found = {dimension for clip in self.clips for dimension in clip.dimensions}
        return [name for name in DIMENSIONS if name in found - lacking]


def make_plan(
    card: ModelCard,
    info: Path,
    *,
    augmented: Path | None = None,
    dimensions: Iterable[str] = (),
    samples: int = SAMPLES,
    flicker_samples: int = SAMPLES,
    first_seed: int = 0,
    steps: object = None,
    guidance: object = None,
) -> Plan:
    """Plan the clips of a model.

    Args:
        info: `VBench_full_info.json`.
        augmented: text with a longer prompt for each entry, in the same order. Names keep the
            original prompt.
        dimensions: only the prompts of these; all without.
        flicker_samples: VBench asks for 25, from which its static filter keeps 5; the paper's
            authors made 5.

    Raises:
        ValueError: a file does not fit, or a setting is out of range. Nothing is written.
    """
    entries, longer = read_info(info), None
    if augmented is not None:
        longer = read_text(augmented).splitlines()
        if len(longer) != len(entries):
            raise ValueError(
                f"{augmented} has {len(longer)} lines, but there are {len(entries)} prompts. Give "
                "one line for each, in the same order."
            )
    chosen = set(dimensions)
    clips: dict[str, PlannedClip] = {}
    for number, entry in enumerate(entries):
        if chosen and not chosen & set(entry["dimension"]):
            continue
        prompt = entry["prompt_en"]
        count = flicker_samples if "temporal_flickering" in entry["dimension"] else samples
        for sample in range(count):
            name = f"{prompt}-{sample}.mp4"
            given = longer[number] if longer else prompt
            earlier = clips[name].dimensions if name in clips else []  # of an equal prompt
            united = list(dict.fromkeys([*earlier, *entry["dimension"]]))
            clips[name] = PlannedClip(name, given, first_seed + sample, united)
    if not clips:
        raise ValueError(f"No prompt has a dimension of {', '.join(sorted(chosen))}.")
    first = check_request(card, "any", seed=first_seed, steps=steps, guidance=guidance)
    protocol = Protocol(
        prompt_file=sha256_of(info),
        prompts=len({clip.name.rpartition("-")[0] for clip in clips.values()}),
        augmented=sha256_of(augmented) if augmented else None,
        samples=samples,
        flicker_samples=flicker_samples,
        first_seed=first_seed,
        fps=card.fps,
        width=card.width * card.enlarge,
        height=card.height * card.enlarge,
        frames=card.num_frames,
        steps=first.steps,
        sampler=card.sampler if not card.eta else f"{card.sampler}, eta {card.eta:g}",
        guidance=first.guidance,
    )
    plan = Plan(card.name, protocol, list(clips.values()))
    plan.requests(card)  # every prompt and seed can be used
    return plan


def read_info(path: Path) -> list[dict[str, Any]]:
    """Read `VBench_full_info.json`, or a part of it in the same form.

    Raises:
        ValueError: an entry has no prompt, no dimension, or makes no name of a file.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        for entry in entries:
            prompt, dimensions = entry["prompt_en"], entry["dimension"]
            if not (prompt and dimensions and all(isinstance(name, str) for name in dimensions)):
                raise ValueError(f"the entry {entry} is incomplete")
            if "/" in prompt or "\0" in prompt or len(f"{prompt}-99.mp4".encode()) > MAX_NAME:
                raise ValueError(f"{prompt!r} makes no name of a file")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a list of VBench's prompts: {error}. Take {INFO} from {UPSTREAM}."
        ) from error
    return entries


def fetch_info(folder: Path) -> Path:
    """Download the prompts into a folder, unless they are there.

    Raises:
        ValueError: the download fails, or the file does not have its pinned hash.
    """
    path = folder / INFO
    if not path.exists():
        try:
            with urllib.request.urlopen(UPSTREAM, timeout=30) as answer:
                content = answer.read(10**7)
        except (urllib.error.URLError, TimeoutError) as error:
            raise ValueError(
                f"{UPSTREAM} cannot be downloaded: {error}. Get the file elsewhere and pass it as "
                "--info."
            ) from error
        if hashlib.sha256(content).hexdigest() != SHA256:
            raise ValueError(f"{UPSTREAM} is not the file that is known. Pass yours as --info.")
        write_whole(path, content)
    return path
