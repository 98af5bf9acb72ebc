"""Many clips: the frames of single requests, whatever process, batch or earlier run made them."""

import os
import select
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tests.kills.batch import disturb, undisturbed
from tests.support.tiny_models import make_unet
from turbo import batch, disk_space, generate, pipeline
from turbo.batch import Share, make_clips
from turbo.diffusion.schedule import draw_noise
from turbo.manifest import Manifest, ManifestRow
from turbo.models import cli
from turbo.models.registry import find_card
from turbo.request import check_request
from turbo.video import load_video


@pytest.fixture
def model(tiny_pipeline):
    """A tiny student on one thread, whose clips are decoded in another."""
    tiny_pipeline.card = replace(tiny_pipeline.card, cpu_threads=1)
    return tiny_pipeline


def _clips(model, count=5):
    return {
        f"s/{n}.mp4": check_request(model.card, f"a cat {n}", seed=n, steps=2) for n in range(count)
    }


def _digests(folder):
    return {path: row["sha256"] for path, row in Manifest(folder).rows().items()}


@pytest.mark.parametrize("threads", [None, 1], ids=["decoded at once", "decoded apart"])
def test_a_batch_makes_the_frames_of_single_requests(threads, model, tmp_path):
    model.card = replace(model.card, cpu_threads=threads)
    clips = _clips(model, 3)

    assert make_clips(model, clips, tmp_path) == []

    for path, request in clips.items():
        single = model(request.prompt, seed=request.seed, steps=2)
        single.save(tmp_path / "single.mp4", enlarge=model.card.enlarge)
        assert (tmp_path / "single.mp4").read_bytes() == (tmp_path / path).read_bytes()


@pytest.mark.parametrize("batch_size", [1, 2])
def test_processes_share_the_clips_without_changing_them(model, tmp_path, batch_size):
    clips = _clips(model)
    make_clips(model, clips, tmp_path / "one", batch_size=batch_size)

    made = []
    for rank in (2, 0, 1):
        make_clips(model, clips, tmp_path / "more", batch_size=batch_size, share=Share(rank, 3))
        made.append(len(_digests(tmp_path / "more")))

    assert made[0] < made[1] < made[2] == len(clips)
    assert _digests(tmp_path / "more") == _digests(tmp_path / "one")


def test_a_clip_made_again_within_a_batch_is_the_same_and_its_neighbour_stays(model, tmp_path):
    clips = _clips(model, 4)
    make_clips(model, clips, tmp_path, batch_size=2)
    before, kept = _digests(tmp_path), (tmp_path / "s/0.mp4").stat().st_mtime_ns
    (tmp_path / "s/1.mp4").unlink()

    make_clips(model, clips, tmp_path, batch_size=2)

    assert _digests(tmp_path) == before
    assert not Manifest(tmp_path).missing(list(clips))
    assert (tmp_path / "s/0.mp4").stat().st_mtime_ns == kept


def test_systems_start_from_the_same_noise_drawn_in_float32_on_the_cpu(
    tiny_pipeline, teacher_card, monkeypatch
):
    parts = (tiny_pipeline.vae, tiny_pipeline.text_encoder, tiny_pipeline.schedule)
    teacher = pipeline.VideoPipeline(teacher_card, make_unet(), *parts)
    noise = []

    def record(like, generators):
        assert {generator.device.type for generator in generators} == {"cpu"}
        drawn = draw_noise(like, generators)
        noise.append(drawn)
        return drawn

    monkeypatch.setattr(pipeline, "draw_noise", record)
    for model in (tiny_pipeline, teacher):
        model.sample([check_request(model.card, f"a {model.card.name}", seed=7, steps=2)])

    drawn = torch.randn(1, *teacher.latent_shape, generator=torch.Generator().manual_seed(7))
    assert torch.equal(noise[0], drawn)
    assert torch.equal(noise[1], drawn)


def test_failures_are_listed_and_tried_again(model, tmp_path, monkeypatch):
    clips, sample = _clips(model), model.sample

    def fail(requests):
        samples = sample(requests)
        if requests[0].seed == 1:
            return replace(samples, latents=samples.latents * torch.nan)
        if requests[0].seed == 3:
            raise RuntimeError("no such kernel")
        return samples

    monkeypatch.setattr(model, "sample", fail)
    failures = make_clips(model, clips, tmp_path)
    assert [line.partition(":")[0] for line in failures] == ["s/1.mp4", "s/3.mp4"]
    assert "not finite" in failures[0] and "no such kernel" in failures[1]
    assert len(_digests(tmp_path)) == 3

    monkeypatch.setattr(model, "sample", sample)
    assert make_clips(model, clips, tmp_path) == []
    assert len(_digests(tmp_path)) == 5


def test_a_full_disk_stops_the_batch_at_once(model, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("turbo.video.Video.save", fail)

    with pytest.raises(OSError, match="No space left"):
        make_clips(model, _clips(model), tmp_path)


def test_missing_room_is_told_before_anything_is_made(tmp_path, monkeypatch):
    disk = SimpleNamespace(free=10**6)
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda _: disk)
    (tmp_path / "another.mp4").write_bytes(bytes(10**6))
    card = find_card("shapes-turbo")
    clips = [(card, check_request(card, "a red star", seed=seed)) for seed in range(4)]
    size = batch.bytes_of_clip(card)

    disk.free = 4 * size - 1
    with pytest.raises(OSError, match="--out"):
        batch.check_room(tmp_path, clips)
    Manifest(tmp_path).add(
        ManifestRow(
            path="x.mp4", model=card.name, prompt="a red star", seed=3, guidance=1.0, fps=8.0,
            num_steps=clips[0][1].steps, sha256="", weights_sha256="",
        )
    )  # fmt: skip
    assert batch.check_room(tmp_path, clips) == 3 * size


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--systems", "none:4"], "is not a system"),
        (["--systems", "shapes-turbo:4:1:2"], "is not a system"),
        (["--systems", "shapes-turbo:4,shapes-turbo:4"], "twice"),
        (["--systems", "shapes-turbo:0"], "The number of steps must be a whole number"),
        (["--systems", "shapes-turbo:4", "--steps", "0"], "Leave --model, --steps"),
        (["--systems", "shapes-turbo:4", "--model", "shapes-turbo"], "Leave --model, --steps"),
        (["--c2pa-key", "key.pem"], "both --c2pa-certificate and --c2pa-key"),
        (["--c2pa-key", "key.pem", "--dry-run"], "both --c2pa-certificate and --c2pa-key"),
        (["--seeds", "0"], "not a positive whole number"),
        (["--seeds", "2", "--seed", str(2**32 - 1)], "The seed must be a whole number"),
    ],
)
def test_a_batch_refuses_in_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(generate, "load_pipeline", lambda *_, **__: pytest.fail("loaded"))
    (tmp_path / "prompts.txt").write_text("a cat\n")

    with pytest.raises(SystemExit) as end:
        generate.main(["--prompts", str(tmp_path / "prompts.txt"), *arguments])

    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_systems_get_a_folder_each_and_one_manifest(model, tmp_path, monkeypatch):
    monkeypatch.setitem(cli.MODELS, model.card.name, model.card)
    monkeypatch.setattr(generate, "load_pipeline", lambda *_, **__: model)
    monkeypatch.setattr(generate, "check_loading", lambda *_, **__: None)  # it has no files
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    name = model.card.name

    generate.main(
        ["--prompts", str(tmp_path / "prompts.txt"), "--seeds", "2", "--seed", "5"]
        + ["--systems", f"{name}:2,{name}:3:6.5", "--out", str(tmp_path / "out")]
    )

    rows = Manifest(tmp_path / "out").rows()
    found = [(path.split("/")[0], row["prompt"], row["seed"]) for path, row in rows.items()]
    assert found == [
        (folder, prompt, seed)
        for folder in (f"{name}-2", f"{name}-3-6.5")
        for prompt in ("a cat", "a dog")
        for seed in ("5", "6")
    ]
    path, row = list(rows.items())[-1]
    recipe = load_video(tmp_path / "out" / path).recipe
    assert recipe["guidance"] == float(row["guidance"]) == 6.5
    assert "visible_mark" not in recipe


def test_clips_with_a_visible_mark_are_made_beside_those_without(tmp_path):
    (tmp_path / "prompts.txt").write_text("a red star\n")
    command = ["--prompts", str(tmp_path / "prompts.txt"), "--steps", "1"]
    command += ["--out", str(tmp_path / "out")]

    generate.main(command)
    generate.main([*command, "--visible-mark"])

    recipes = [load_video(tmp_path / "out" / path).recipe for path in _digests(tmp_path / "out")]
    assert [recipe.get("visible_mark") for recipe in recipes] == [None, True]


def test_a_signed_clip_is_made_beside_one_that_is_not(model):
    request = check_request(model.card, "a red star")

    assert batch.clip_name(model, request) != batch.clip_name(model, request, signed=True)


def test_a_key_without_a_certificate_is_refused_before_the_model_is_loaded(monkeypatch):
    monkeypatch.setattr(generate, "load_pipeline", lambda *_, **__: pytest.fail("loaded"))

    with pytest.raises(SystemExit):
        generate.main(["a red star", "--model", "shapes-turbo", "--c2pa-key", "key.pem"])


def test_a_dry_run_prints_the_plan_and_writes_nothing(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(cli.MODELS, model.card.name, model.card)
    monkeypatch.setattr(generate, "load_pipeline", lambda *_, **__: model)
    monkeypatch.setattr(type(model.card), "is_ready", lambda card: card is model.card)
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    before = sorted(tmp_path.rglob("*"))
    name = model.card.name

    generate.main(
        ["--prompts", str(tmp_path / "prompts.txt"), "--seeds", "2", "--dry-run"]
        + ["--systems", f"{name}:3,vcm-vc2:4", "--out", str(tmp_path / "out")]
    )

    assert sorted(tmp_path.rglob("*")) == before
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    [ours] = [row for row in table if row[:1] == [f"{name}-3"]]
    [other] = [row for row in table if row[:1] == ["vcm-vc2-4"]]
    calls = 3 if model.card.sampler == "consistency" else 6
    assert ours[1:3] == ["4", str(4 * calls)]
    assert other[1:3] == ["4", "16"] and "training" in other


@pytest.mark.parametrize("processes, watched", [(1, 0), (2, 1)])
def test_only_the_processes_of_a_launcher_end_with_it(processes, watched, monkeypatch):
    """One process may be left running on purpose, by nohup."""
    state, calls = SimpleNamespace(process_index=0, num_processes=processes), []
    monkeypatch.setattr(batch, "PartialState", lambda **settings: state)
    monkeypatch.setattr(batch, "exit_with_parent", lambda: calls.append(1))

    assert Share.of_launch() == Share(0, processes)

    assert len(calls) == watched


def test_a_process_ends_with_its_parent():
    end, open_while_it_runs = os.pipe()
    if not (launcher := os.fork()):
        if not os.fork():
            batch.exit_with_parent()
            os.write(open_while_it_runs, b"ready")
            time.sleep(60)
            os._exit(0)
        os.read(end, 5)
        os._exit(0)  # before its child
    os.close(open_while_it_runs)
    os.waitpid(launcher, 0)

    assert select.select([end], [], [], 20)[0]
    assert os.read(end, 1) == b""
    os.close(end)


@pytest.mark.slow
def test_a_batch_that_is_killed_ends_in_the_same_clips(tmp_path):
    expected = undisturbed(tmp_path / "whole", prompts=30)

    rows = disturb(tmp_path / "killed", prompts=30, kills=2, seed=0)

    assert {row["path"]: row["sha256"] for row in rows} == expected
    assert len(rows) == len(expected) == 30
