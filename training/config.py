"""The configuration of a distillation: a TOML file, and changes from the command line.

Unknown keys, wrong types and values out of range are refused before anything is loaded.
"""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class TeacherTable(_Table):
    """The model to distil."""

    model: str  # name in `python -m turbo.models list`, or a folder with a card.json
    grid_steps: int = Field(ge=1)  # of its solver: 50 in T2V-Turbo, 200 in v2
    guidance: tuple[float, float] = Field(strict=False)  # range of w, drawn uniformly

    @field_validator("guidance")
    @classmethod
    def _rises(cls, value: tuple[float, float]) -> tuple[float, float]:
        low, high = value
        if not low <= high:  # so that NaN is refused, too
            raise ValueError("the lowest w comes first")
        return value


class MotionTable(_Table):
    """Motion guidance of T2V-Turbo-v2."""

    strength: float = Field(ge=0)  # m; 0 trains a network that does not take it
    percentage: float = Field(gt=0, le=1)  # the noisiest share of timesteps
    energy: str = "motion"  # in `training.build.ENERGIES`
    layers: list[str] | None = None  # temporal attentions; default: the published nine


class StudentTable(_Table):
    """What is trained."""

    lora_rank: int = Field(ge=0)  # 0 trains all weights
    start: str = ""  # a student of this teacher to start from: a model, or a folder with card.json
    temporal_rate: float = Field(1.0, ge=0)  # factor of the learning rate of temporal transformers
    lora_dropout: float = Field(0.0, ge=0, lt=1)  # of adapters' outputs; 0.1 in the published code
    lora_skip: list[str] = []  # layers without adapter
    temporal_dropout: float | None = Field(None, ge=0, lt=1)  # default: the teacher's
    method: Literal["discrete", "continuous", "matching"] = "discrete"  # continuous: flow teachers
    tangent_warmup: int = Field(0, ge=0)  # steps, of the continuous method; 10,000 in sCM
    target_ema: float = Field(ge=0, le=1)  # 0: the student itself, as in the published code
    target_dropout: bool = True
    distance: Literal["pseudo_huber", "l2"] = "pseudo_huber"  # of student and target
    kappa: float = Field(1e-3, gt=0)  # of the pseudo-Huber distance
    timestep_scaling: float = Field(10.0, gt=0)  # of c_skip and c_out; 10 in the published code


class MatchingTable(_Table):
    """The fake of distribution matching, which learns to denoise the student's videos."""

    lora_rank: int = Field(ge=0)  # of adapters on the teacher's weights; 0 trains a copy of all
    rate: float = Field(1.0, gt=0)  # factor of its learning rate
    warmup: int = Field(ge=0)  # steps in which it learns alone, from the student as it starts


class RewardTable(_Table):
    """One term of the reward mixture."""

    name: str  # in `turbo.rewards.published`, or of a folder of `python -m training.reward`
    folder: str | None = None  # of its files; default: rewards/NAME
    question: str | None = None  # of the votes that it was trained on; default: the primary one
    weight: float  # beta
    frames: int | None = Field(None, ge=1)  # decoded per video; default: those that it needs
    select: Literal["random", "stride"] = "stride"  # distinct or evenly spaced frames; per video
    crop: Literal["none", "random"] = "none"  # random: a square, drawn per video
    window: int | None = Field(None, ge=1)  # consecutive frames to select from; default: all
    window_at: Literal["random", "start"] = "random"  # place of the window; random: per video

    @model_validator(mode="after")
    def _fits_window(self) -> "RewardTable":
        if self.window is not None and self.window < (self.frames or 1):
            raise ValueError(f"window {self.window} has fewer frames than the {self.frames} scored")
        return self


class JudgeTable(_Table):
    """A reward that scores held-out prompts, and that the student is not trained on."""

    name: str  # as for a reward, and none of the mixture
    folder: str | None = None  # of its published files
    frames: int = Field(ge=1)  # evenly spaced


class WatchTable(_Table):
    """Clips and scores of held-out prompts, at intervals."""

    every: int = Field(ge=1)  # steps: a multiple of run.checkpoint_every
    prompts: str  # a file of at least 2 prompts
    seed: int = Field(0, ge=0)  # of the first prompt; the next one has the next seed
    judges: list[JudgeTable] = []
    stop: bool = False  # at the best step, once rewards rise and a judge falls
    patience: int = Field(2, ge=1)  # how many evaluations in a row must show that


class DataTable(_Table):
    """Training videos: a folder with a table of captions, or with tar files, or prepared clips.

    Or prompts alone.
    """

    folder: str = ""  # set it on the command line: data.folder=PATH
    hub: str = ""  # OWNER/NAME of a data set, or a folder of one, in place of the folder
    split: str = "train"  # of that data set
    record: str = ""  # of teacher outputs, in place of the folder
    prompts: str = ""  # a file, in place of the folder: on-policy, on the student's own samples
    sample_steps: int = Field(4, ge=1)  # of those
    captions: str = "captions.csv"  # or .jsonl: columns path, text and, optionally, short_text
    fps: float = Field(gt=0)
    stride: Literal["exact", "whole"]  # whole: every n-th frame, at the rate that results
    conditioning_fps: Literal["true", "nominal"]  # the rate that the network is conditioned on
    resize: Literal["crop", "squash"]
    rewards_on: Literal["all", "short"] = "all"  # short: videos that have a short_text, on it
    workers: int = Field(2, ge=0)  # decoding processes, per training process
    max_broken: float = Field(0.01, ge=0, le=1)  # share of the videos that may be unusable


class RunTable(_Table):
    """Optimisation, and where the run is kept."""

    out: str  # folder of checkpoints, logs and the exported model
    steps: int = Field(ge=1)
    batch: int = Field(ge=1)  # videos per step, over all processes
    micro_batch: int = Field(1, ge=1)  # videos per forward pass
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"  # 8-bit moments, by bitsandbytes
    learning_rate: float = Field(gt=0)
    warmup: int = Field(0, ge=0)
    decay: float = Field(0.0, ge=0, le=1)  # last share of the steps, to a rate of zero
    betas: tuple[float, float] = Field((0.9, 0.999), strict=False)
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    weight_ema: float = Field(0.0, ge=0, lt=1)  # of the exported weights; 0: the last ones
    precision: Literal["no", "bf16"] = "no"  # of computation, and of weights that are not trained
    recompute: bool = False  # activations in the backward pass
    split_rewards: bool = False  # one reward per micro-batch, in turn; a process loads only its own
    shard: bool = False  # divide what is trained over the processes (FSDP2); all weights only
    max_spike: float | None = Field(None, gt=1)
    seed: int = Field(0, ge=0)
    checkpoint_every: int = Field(ge=1)
    keep: int = Field(2, ge=1)
    trackers: list[str] = []  # of accelerate: "tensorboard", "wandb", ...

    @model_validator(mode="after")
    def _whole_slots(self) -> "RunTable":
        if self.batch % self.micro_batch:
            raise ValueError(f"batch {self.batch} is not a multiple of micro_batch")
        return self


class Config(_Table):
    """A whole distillation."""

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        if self.takes_motion and self.student.lora_rank:
            raise ValueError("motion guidance needs lora_rank = 0: adapters cannot take m yet")
        if self.student.method == "continuous":
            self._check_continuous()
        elif self.student.tangent_warmup:
            raise ValueError("student.tangent_warmup is of the continuous method: remove it")
        if self.student.method == "matching":
            self._check_matching()
        elif self.matching:
            raise ValueError("[matching] is of the matching method: set student.method to it")
        if self.data.folder and self.data.hub:
            raise ValueError("data.hub takes the place of data.folder: set one")
        if self.data.prompts:
            self._check_prompts()
        if self.run.shard and self.student.lora_rank:
            raise ValueError(
                "run.shard needs student.lora_rank = 0. With adapters there is little to divide: "
                "remove run.shard"
            )
        if self.run.shard and self.run.optimizer == "adamw8bit":
            raise ValueError(
                "run.shard needs run.optimizer = adamw, whose moments it divides: change one of "
                "them"
            )
        if self.run.shard and self.data.prompts:
            raise ValueError(
                "run.shard needs videos. With data.prompts the processes would call the student "
                "unequally often: remove run.shard"
            )
        slots = self.run.batch // self.run.micro_batch
        if self.run.split_rewards and slots < len(self.rewards):
            raise ValueError(
                f"run.split_rewards needs a micro-batch for each of the {len(self.rewards)} "
                f"rewards, and a step has {slots}: choose a larger run.batch"
            )
        if self.watch:
            self._check_watch(self.watch)
        return self

    def _check_no_target(self, *unused: str) -> None:
        """Refuse settings of a target, and the others that this method does not have."""
        method = self.student.method
        if self.student.target_ema or not self.student.target_dropout:
            raise ValueError(
                f"student.method {method} has no target beside the student: set "
                "student.target_ema to 0 and leave out student.target_dropout"
            )
        for name in ("distance", "kappa", *unused):  # a file that this one extends may set defaults
            if getattr(self.student, name) != StudentTable.model_fields[name].default:
                raise ValueError(f"student.method {method} has no {name}: remove it")

    def _check_matching(self) -> None:
        self._check_no_target()
        if not self.data.prompts:
            raise ValueError(
                "student.method matching scores the student's own samples: set data.prompts"
            )
        if not self.matching:
            raise ValueError(
                "student.method matching needs a second network: set matching.lora_rank and "
                "matching.warmup"
            )
        if self.matching.warmup >= self.run.steps:
            raise ValueError(
                "matching.warmup leaves no step for the student: run.steps must be larger"
            )

    def _check_continuous(self) -> None:
        self._check_no_target("timestep_scaling")
        if self.run.shard:
            raise ValueError(
                "student.method continuous needs forward derivatives, which divided weights do not "
                "have: remove run.shard"
            )
        if self.takes_motion or self.data.record:
            raise ValueError(
                "student.method continuous takes no step of the teacher: remove [motion] and "
                "data.record"
            )

    def _check_prompts(self) -> None:
        if self.data.folder or self.data.hub or self.data.record:
            raise ValueError("data.prompts takes the place of data.folder, hub and record: set one")
        if self.takes_motion:
            raise ValueError("motion guidance needs videos: remove data.prompts or [motion]")
        if self.data.rewards_on == "short":
            raise ValueError("data.prompts have no short_text: set data.rewards_on to all")
        if self.data.sample_steps > self.teacher.grid_steps:
            raise ValueError("data.sample_steps is more than teacher.grid_steps")

    def _check_watch(self, watch: WatchTable) -> None:
        judges = [judge.name for judge in watch.judges]
        if watch.every % self.run.checkpoint_every:
            raise ValueError("watch.every is not a multiple of run.checkpoint_every")
        if both := {reward.name for reward in self.rewards} & set(judges):
            raise ValueError(f"the judge {min(both)} is a reward of the run: choose another judge")
        if len(set(judges)) < len(judges):
            raise ValueError("two judges have the same name")
        if watch.stop and not (judges and self.rewards):
            raise ValueError("watch.stop needs a judge and a reward")

    @property
    def takes_motion(self) -> bool:
        """Return whether the student takes the motion strength."""
        return self.motion is not None and self.motion.strength > 0

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")  # of the exported model
    title: str
    licence: str
    teacher: TeacherTable
    student: StudentTable
    data: DataTable
    run: RunTable
    motion: MotionTable | None = None
    matching: MatchingTable | None = None
    rewards: list[RewardTable] = []
    watch: WatchTable | None = None


def load_config(path: Path, changes: Sequence[str] = ()) -> Config:
    """Read a configuration, with changes such as `run.steps=10`.

    A file may name another one in `extends`, beside it: its tables are changed key by key, and a
    list (`rewards`) is replaced.

    Args:
        changes: `table.key=value`, with a value in TOML; what is not TOML is taken as a string.

    Raises:
        ValueError: the file or a change is wrong; the message names the key.
    """
    tables = _read(path)
    for change in changes:
        _apply(tables, change)
    try:
        return Config.model_validate(tables)
    except ValidationError as failure:
        wrong = failure.errors()[0]
        key = ".".join(map(str, wrong["loc"]))
        known = (
            f" Its keys are {', '.join(_keys(wrong['loc']))}." if "extra" in wrong["type"] else ""
        )
        raise ValueError(
            f"{path}: {key or 'the configuration'}: {wrong['msg']}, got {wrong['input']!r}.{known}"
        ) from failure


def _read(path: Path, extending: tuple[Path, ...] = ()) -> dict[str, Any]:
    if (resolved := path.resolve()) in extending:
        raise ValueError(f"{path} extends itself. Name another file in extends.")
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as failure:
        raise ValueError(f"{path} cannot be read: {failure.strerror}.") from failure
    except UnicodeDecodeError as failure:
        raise ValueError(f"{path} is not UTF-8. Save it as UTF-8.") from failure
    except tomllib.TOMLDecodeError as failure:
        raise ValueError(f"{path} is not TOML: {failure}.") from failure
    base = tables.pop("extends", None)
    if not isinstance(base, str | None):
        raise ValueError(f"{path}: extends must be the name of a file in quotes, not {base!r}.")
    if base is None:
        return tables
    return _merged(_read(path.parent / base, (*extending, resolved)), tables)


def _merged(base: dict[str, Any], changed: dict[str, Any]) -> dict[str, Any]:
    both = {key: (base[key], changed[key]) for key in base.keys() & changed.keys()}
    tables = {
        key: _merged(old, new)
        for key, (old, new) in both.items()
        if isinstance(old, dict) and isinstance(new, dict)
    }
    return base | changed | tables


def _apply(tables: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    *parents, last = key.split(".")
    if not equals or not last:
        raise ValueError(f"A change has the form table.key=value. {change!r} has not.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    table = tables
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise ValueError(f"{change!r} changes {parent}, which is not a table.")
    table[last] = value


def _keys(place: tuple[int | str, ...]) -> list[str]:
    """Return the keys of the table that holds an unknown one."""
    tables: dict[str, type[BaseModel]] = {
        "teacher": TeacherTable,
        "student": StudentTable,
        "data": DataTable,
        "run": RunTable,
        "motion": MotionTable,
        "matching": MatchingTable,
        "rewards": RewardTable,
        "watch": WatchTable,
        "judges": JudgeTable,
    }
    above = [str(part) for part in place[:-1] if isinstance(part, str)]
    return list(tables.get(above[-1] if above else "", Config).model_fields)
