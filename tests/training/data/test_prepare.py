"""Prepared clips: those of the videos, complete after any stop, and refused where they differ."""

import errno
import hashlib
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch.testing import assert_close

from tests.kills.programs import start_program, wait_for
from training import distil
from training.build import build_parts, teacher_card
from training.config import Config, load_config
from training.data import prepare as module
from training.data.__main__ import main
from training.data.prepare import prepare
from training.data.shards import ShardFolder, read_index, read_settings
from training.data.source import PreparedClips, open_clips
from training.forecast import describe_data
from training.loop import Slot

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "training" / "configs"
TINY = CONFIGS / "tiny_vc2.toml"


def config_of(data: Path, out: Path, *changes: str, file: Path = TINY) -> Config:
    return load_config(file, [f"data.folder={data}", f"run.out={out}", *changes])


def prepare_tiny(videos: Path, out: Path, *changes: str, passes: int = 1, **options):
    accelerator = options.pop("accelerator", None) or Accelerator(cpu=True)
    config = config_of(videos, out, *changes)
    return prepare(config, out, accelerator, passes=passes, clips_per_shard=2, **options)


@pytest.fixture(scope="module")
def prepared(videos, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    assert prepare_tiny(videos, folder, passes=2) == {}
    return folder


def open_prepared(folder: Path, out: Path, *changes: str) -> PreparedClips:
    config = config_of(folder, out, *changes)
    clips = open_clips(config, teacher_card(config))
    assert isinstance(clips, PreparedClips)
    return clips


def files(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (folder / "shards").iterdir()
    }


def copy_of(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def copy_with_broken(videos: Path, tmp_path: Path, *rows: int) -> Path:
    folder = Path(shutil.copytree(videos, tmp_path / "videos"))
    for row in rows:
        (folder / f"{row}.mp4").write_text("broken")
    return folder


def test_a_folder_of_another_table_of_captions_is_refused(videos, prepared, tmp_path):
    folder = Path(shutil.copytree(videos, tmp_path / "videos"))
    (folder / "low").mkdir()
    (folder / "0.mp4").rename(folder / "low" / "0.mp4")
    table = folder / "captions.csv"
    table.write_text(table.read_text().replace("0.mp4", "low/0.mp4"))

    with pytest.raises(ValueError, match="captions"):
        prepare_tiny(folder, prepared, passes=2)


def test_a_run_draws_from_prepared_clips_what_it_would_from_the_videos(videos, prepared, tmp_path):
    of_videos, of_clips = (
        build_parts(config_of(data, tmp_path, "rewards=[]"), Accelerator(cpu=True))
        for data in (videos, prepared)
    )

    for step in range(3):  # two epochs of 6 videos
        drawn = []
        for parts in (of_videos, of_clips):
            generator = torch.Generator().manual_seed(step)
            slots = [Slot(step, index, 4, False, generator) for index in range(4)]
            drawn.append([parts.draw_data(slot) for slot in slots])
        for there, here in zip(*drawn, strict=True):
            assert here.reward_prompts == there.reward_prompts
            for name in ("latents", "prompt_embeds", "uncond_embeds", "fps"):
                assert_close(getattr(here, name), getattr(there, name), rtol=1e-5, atol=1e-5)
    assert of_videos.captions == of_clips.captions


@pytest.mark.slow
def test_a_run_on_prepared_clips_takes_the_steps_of_one_on_the_videos(videos, prepared, tmp_path):
    losses = []
    for data in (videos, prepared):
        out = tmp_path / data.name
        distil.run(config_of(data, out, "run.steps=2"))
        losses.append(np.genfromtxt(out / "log.csv", delimiter=",", names=True)["loss"])

    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_a_wan_run_on_prepared_clips_draws_the_same_and_keeps_no_text_encoder(videos, tmp_path):
    folder, accelerator = tmp_path / "prepared", Accelerator(cpu=True)
    wan, prompts = CONFIGS / "tiny_wan.toml", tmp_path / "prompts.txt"
    prompts.write_text("a cat runs\na dog sleeps\n")
    watched = (f"watch.prompts={prompts}", "watch.every=2", "watch.judges=[]")
    assert prepare(config_of(videos, folder, file=wan), folder, accelerator) == {}

    of_videos, of_clips = (
        build_parts(config_of(data, tmp_path, "rewards=[]", *watched, file=wan), accelerator)
        for data in (videos, folder)
    )

    drawn = []
    for parts in (of_videos, of_clips):
        generator = torch.Generator().manual_seed(0)
        drawn.append(parts.draw_data(Slot(0, 0, 1, True, generator)))
    for name in ("latents", "prompt_embeds", "uncond_embeds"):
        assert_close(getattr(drawn[1], name), getattr(drawn[0], name), rtol=1e-5, atol=1e-5)
    whole, known = of_videos.text_encoder, of_clips.text_encoder
    assert not isinstance(known, type(whole))
    both = ["a dog sleeps", "a cat runs"]
    assert_close(known.encode(both), whole.encode(both), rtol=1e-5, atol=1e-5)
    assert known.unread("a cat runs") == whole.unread("a cat runs")
    with pytest.raises(ValueError, match="a bird"):
        known.encode(["a bird"])


class Stop(Exception):
    """A job that dies."""


def test_a_job_that_dies_continues_with_what_is_missing(videos, prepared, tmp_path, monkeypatch):
    encoded: list[int] = []
    whole = module.encode_moments

    def encode_some(vae, frames):
        if len(encoded) == 3:
            raise Stop
        encoded.append(len(frames))
        return whole(vae, frames)

    monkeypatch.setattr(module, "encode_moments", encode_some)
    with pytest.raises(Stop):
        prepare_tiny(videos, tmp_path, passes=2)
    (tmp_path / "shards/000002.json").unlink()  # killed between a shard and its index
    encoded.clear()
    monkeypatch.setattr(
        module, "encode_moments", lambda *inputs: encoded.append(len(inputs[1])) or whole(*inputs)
    )

    prepare_tiny(videos, tmp_path, passes=2)

    assert encoded == [2] * 4  # of 6
    assert files(tmp_path) == files(prepared)


@pytest.mark.slow
def test_a_full_disk_keeps_what_is_complete(videos, prepared, tmp_path, monkeypatch):
    left = iter(range(5))  # the trial teacher's card, settings, a shard, its index, a shard
    there: list[str] = []

    def sync(file: int) -> None:
        if next(left, None) is None:
            there.extend(files(tmp_path))
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", sync)
    with pytest.raises(OSError, match="No space left.*run the same command again"):
        prepare_tiny(videos, tmp_path, passes=2)
    monkeypatch.undo()
    assert "000001.json" not in there and "000001.json.partial" in there
    assert sorted(files(tmp_path)) == ["000000.json", "000000.safetensors", "000001.safetensors"]

    prepare_tiny(videos, tmp_path, passes=2)

    assert files(tmp_path) == files(prepared)


def test_processes_share_the_shards(videos, prepared, tmp_path):
    one = Accelerator(cpu=True)

    class Rank:
        num_processes, device, main_process_first = 2, one.device, one.main_process_first
        is_local_main_process = True

        def __init__(self, rank: int) -> None:
            self.process_index = rank

        def wait_for_everyone(self) -> None:
            pass

    prepare_tiny(videos, tmp_path, passes=2, accelerator=Rank(1))
    own = files(tmp_path)
    prepare_tiny(videos, tmp_path, passes=2, accelerator=Rank(0))

    assert sorted(own) == [
        f"00000{n}.{kind}" for n in (1, 3, 5) for kind in ("json", "safetensors")
    ]
    assert files(tmp_path) == files(prepared)


def test_unusable_videos_are_left_out_and_named(videos, tmp_path):
    folder, out = copy_with_broken(videos, tmp_path, 3), tmp_path / "out"

    broken = prepare_tiny(folder, out, "data.max_broken=0.2")

    assert [*broken] == [str(folder / "3.mp4")]
    found = ShardFolder(out, read_settings(out))
    assert found.rows == [0, 1, 2, 4, 5]
    kept = [clip.path for index in found.indexes for clip in index.clips]
    assert kept == [str(folder / f"{row}.mp4") for row in found.rows]
    assert [read_index(out, shard).broken != {} for shard in range(3)] == [False, True, False]


def test_more_unusable_videos_than_allowed_stop_the_job_until_the_limit_is_raised(videos, tmp_path):
    folder, out = copy_with_broken(videos, tmp_path, 2, 3, 5), tmp_path / "out"

    for _ in range(2):
        with pytest.raises(ValueError, match="2 of 6 videos are unusable"):
            prepare_tiny(folder, out)

    assert "000000.json" in files(out)
    assert len(prepare_tiny(folder, out, "data.max_broken=0.5")) == 3


def test_a_job_counts_videos_and_not_rows(videos, tmp_path):
    folder = copy_with_broken(videos, tmp_path, 3)
    with (folder / "captions.csv").open("a") as file:
        file.write("\n0.mp4,a square moving up,a square" * 6)

    with pytest.raises(ValueError, match="1 of 6 videos are unusable"):
        prepare_tiny(folder, tmp_path / "out", "data.max_broken=0.15")


def test_a_folder_of_the_former_format_serves_runs_and_is_not_continued(videos, prepared, tmp_path):
    folder = shutil.copytree(prepared, tmp_path / "former")
    settings = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(settings | {"format": 1}))

    assert len(open_prepared(folder, tmp_path)) == 6
    with pytest.raises(ValueError, match="has format = 1"):
        prepare_tiny(videos, folder, passes=2)


@pytest.mark.parametrize(
    "change, message",
    [
        ("data.fps=4", "fps"),
        ("data.resize=squash", "resize"),
        ("teacher.model=tiny-ms", "teacher"),
    ],
)
def test_clips_of_other_settings_are_refused(prepared, tmp_path, change, message):
    with pytest.raises(ValueError, match=f"has {message} = "):
        open_prepared(prepared, tmp_path, change)


def test_clips_of_other_weights_are_refused(prepared, tmp_path):
    folder = copy_of(prepared, tmp_path)
    settings = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(settings | {"weights_sha256": "0"}))

    with pytest.raises(ValueError, match="has weights_sha256 = "):
        build_parts(config_of(folder, tmp_path), Accelerator(cpu=True))


def test_a_folder_of_other_videos_is_refused_and_kept(videos, prepared, tmp_path):
    folder, other = copy_of(prepared, tmp_path), copy_with_broken(videos, tmp_path)
    (other / "captions.csv").write_text("path,text\n0.mp4,one video\n")

    with pytest.raises(ValueError, match="has videos = 6, expected 1"):
        prepare_tiny(other, folder, passes=2)

    assert files(folder) == files(prepared)


def test_a_folder_that_is_not_complete_is_refused(prepared, tmp_path):
    folder = copy_of(prepared, tmp_path)
    (folder / "shards/000001.json").unlink()

    with pytest.raises(ValueError, match="1 of 6 shards are missing"):
        open_prepared(folder, tmp_path)


def test_a_video_that_lacks_a_pass_is_left_out(prepared, tmp_path):
    folder = copy_of(prepared, tmp_path)
    path = folder / "shards/000004.json"  # rows 2 and 3 of the second pass
    index = json.loads(path.read_text())
    path.write_text(json.dumps(index | {"clips": index["clips"][:1]}))

    clips = open_prepared(folder, tmp_path)

    assert clips.shards.rows == [0, 1, 2, 4, 5]
    texts = {clips[position].text for position in range(10)}
    assert texts == {f"the video number {row}" for row in clips.shards.rows}


def test_damage_is_found(prepared, tmp_path, capsys):
    folder = copy_of(prepared, tmp_path)
    shard = folder / "shards/000004.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)

    with pytest.raises(SystemExit):
        main(["inspect", str(folder)])
    assert "000004.safetensors does not have its checksum" in capsys.readouterr().err

    shard.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"000004.safetensors has \d+ bytes"):
        open_prepared(folder, tmp_path)


def test_an_inspection_says_what_there_is_and_draws_it(prepared, tmp_path, capsys):
    folder = copy_of(prepared, tmp_path)

    main(["inspect", str(folder)])

    shown = capsys.readouterr().out
    for fact in ("6 of 6 videos", "passes: 2", "median 0.75", "16 (6)", "8 (6)", "text: 3"):
        assert fact in shown
    assert np.asarray(Image.open(folder / "contact_sheet.png")).std() > 10


def test_a_dry_run_knows_prepared_clips(prepared, tmp_path):
    config = config_of(prepared, tmp_path)

    assert describe_data(config, teacher_card(config)).startswith("6 videos, prepared")


@pytest.mark.slow
def test_changes_may_come_after_options(videos, tmp_path, capsys):
    command = ["prepare", str(videos), str(tmp_path), "--config", str(TINY), "--passes", "2"]
    main([*command, "data.resize=squash", "data.stride=whole"])

    settings = read_settings(tmp_path)
    assert (settings.resize, settings.stride, settings.passes) == ("squash", "whole", 2)
    for wrong in ("--pases=3", "unknown"):
        with pytest.raises(SystemExit):
            main([*command, wrong])
        assert f"unrecognized arguments: {wrong}" in capsys.readouterr().err


@pytest.mark.slow
def test_a_job_killed_at_any_moment_loses_nothing_and_does_nothing_twice(
    videos, prepared, tmp_path
):
    command = ["training.data", "prepare", str(videos), str(tmp_path)]
    command += ["--config", str(TINY), "--passes=2", "--clips-per-shard=2"]
    written: dict[str, int] = {}
    for goal in (2, 5):
        job = start_program(*command)
        written_to = tmp_path / "shards"
        while job.is_alive() and len([*written_to.glob("*.json")]) < goal:
            time.sleep(0.002)
        job.kill()
        job.join()
        complete = {path.name: path.stat().st_mtime_ns for path in written_to.glob("*.json")}
        assert written.items() <= complete.items()
        written = complete

    assert written
    assert wait_for(start_program(*command)) == 0
    assert {name: digest for name, digest in files(tmp_path).items() if "partial" not in name} == (
        files(prepared)
    )
