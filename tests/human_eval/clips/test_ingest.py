"""The ingest gate: from files as their makers left them to clips that tell nothing."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from human_eval.clips.ingest import ingest, missing_clips, tabulate_clips
from human_eval.clips.media import MAX_BYTES, Footage, Shape, read_footage, write_footage
from human_eval.clips.sources import Selection, Source, find_sources, find_systems
from human_eval.definition.prompts import Prompt
from human_eval.errors import StudyError
from tests.support.crowd import define_pair
from tests.support.studies import define, make_clip
from turbo.video import Video

PROMPTS = [Prompt(index, f"prompt {index}") for index in range(3)]


def draw(frames: int = 8, width: int = 32, height: int = 32, seed: int = 0) -> np.ndarray:
    """Return a bright square that moves over a coloured ground."""
    pixels = np.empty((frames, height, width, 3), np.uint8)
    pixels[:] = np.random.default_rng(seed).integers(0, 200, 3)
    for number in range(frames):
        pixels[number, 8:16, 2 * number : 2 * number + 8] = 255
    return pixels


def film(path: Path, *, fps: int = 8, **about) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_footage(Footage(draw(**about), Fraction(fps)), path)
    return path


def film_foreign(
    path: Path, codec: str = "mpeg4", pix_fmt: str = "yuv420p", live: bool = False, **about
) -> Path:
    """Write a clip as somebody else's program does, with a comment that gives it away."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"live": "1"} if live else {}) as container:
        container.metadata["comment"] = container.metadata["title"] = "made by ours, seed 7"
        stream = container.add_stream(codec, rate=8)
        pixels = draw(**about)
        stream.height, stream.width = pixels.shape[1:3]
        stream.pix_fmt = pix_fmt
        for frame in pixels:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format=pix_fmt)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


@pytest.fixture
def folders(tmp_path) -> dict[str, Path]:
    """Two systems with a clip for each of three prompts."""
    for place, system in enumerate(["ours", "theirs"]):
        for prompt in PROMPTS:
            film(tmp_path / system / f"{prompt.index:04d}.mp4", seed=10 * place + prompt.index)
    return find_systems(tmp_path, ["ours", "theirs"])


def take_in(folders, tmp_path, *, extra: str = "", known=None, **options):
    sources = find_sources(folders, PROMPTS)
    definition = define_pair(extra)
    media = tmp_path / "media"
    return list(ingest(sources, PROMPTS, definition, media, known=known or {}, **options))


def test_every_clip_comes_in_under_a_name_that_tells_nothing(folders, tmp_path):
    clips = take_in(folders, tmp_path)

    assert {(clip.system, clip.prompt_index) for clip in clips} == {
        (system, index) for system in folders for index in range(3)
    }
    assert all(clip.status == "ok" and clip.bytes > 0 for clip in clips)
    for clip in clips:
        stored = tmp_path / "media" / clip.stored_name
        assert len(stored.stem) == 32 and stored.stat().st_mode & 0o777 == 0o600
        assert clip.system not in stored.name and clip.source_sha256 not in stored.name
    assert (tmp_path / "media").stat().st_mode & 0o777 == 0o700


def test_a_clip_with_a_visible_mark_is_refused(folders, tmp_path):
    """Raters could recognise its system."""
    marked = Video(draw(height=160, width=160), 8, {"visible_mark": True})
    marked.save(folders["ours"] / "0001.mp4")

    with pytest.raises(StudyError, match="--visible-mark"):
        read_footage(folders["ours"] / "0001.mp4")


def test_pictures_survive_the_gate(folders, tmp_path):
    [clip] = [c for c in take_in(folders, tmp_path) if (c.system, c.prompt_index) == ("ours", 1)]

    stored = read_footage(tmp_path / "media" / clip.stored_name)

    assert stored.shape == clip.shape == Shape(32, 32, Fraction(8), 8)
    assert np.abs(stored.pixels.astype(int) - draw(seed=1)).mean() < 6


def test_no_trace_of_the_maker_stays_in_the_file(folders, tmp_path):
    film_foreign(folders["ours"] / "0000.mp4")

    [clip] = [c for c in take_in(folders, tmp_path) if (c.system, c.prompt_index) == ("ours", 0)]

    content = (tmp_path / "media" / clip.stored_name).read_bytes()
    for trace in (b"ours", b"seed", b"Lavf", b"Lavc", b"x264"):
        assert trace not in content
    with av.open(str(tmp_path / "media" / clip.stored_name)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert not container.streams.audio
        assert "comment" not in container.metadata and "title" not in container.metadata


def test_one_recipe_makes_the_same_bytes(tmp_path):
    first = film(tmp_path / "a.mp4").read_bytes()

    assert film(tmp_path / "b.mp4").read_bytes() == first


def test_a_stopped_ingest_goes_on_where_it_was(folders, tmp_path):
    sources = find_sources(folders, PROMPTS)
    options = (sources, PROMPTS, define_pair(), tmp_path / "media")
    running = ingest(*options, known={})
    begun = [next(running), next(running)]
    running.close()
    (tmp_path / "media" / ".half-written.mp4").write_bytes(b"...")

    known = {(clip.system, clip.prompt_index): clip for clip in begun}
    rest = list(ingest(*options, known=known))

    assert len(rest) == 4
    assert {(clip.prompt_index) for clip in rest} == {1, 2}
    assert not (tmp_path / "media" / ".half-written.mp4").exists()


def test_progress_ends_at_the_number_of_clips(folders, tmp_path):
    seen = []

    take_in(folders, tmp_path, progress=lambda done, total, what: seen.append((done, total)))

    assert seen == [(0, 6), (2, 6), (4, 6), (6, 6)]


def test_a_clip_that_changed_after_it_came_in_is_refused(folders, tmp_path):
    known = {(clip.system, clip.prompt_index): clip for clip in take_in(folders, tmp_path)}
    film(folders["ours"] / "0001.mp4", seed=99)

    with pytest.raises(StudyError, match=r"0001.mp4 has changed since"):
        take_in(folders, tmp_path, known=known)


def test_missing_clips_are_listed_and_nothing_is_taken_in(folders, tmp_path):
    (folders["theirs"] / "0002.mp4").unlink()

    with pytest.raises(StudyError, match="missing: theirs 0002"):
        take_in(folders, tmp_path)
    assert not (tmp_path / "media").exists()
    assert len(take_in(folders, tmp_path, partial=True)) == 5


def test_missing_clips_know_those_that_came_in_before(folders, tmp_path):
    sources = [source for source in find_sources(folders, PROMPTS) if source.system == "ours"]

    assert missing_clips(sources, PROMPTS, define_pair()) == [
        f"theirs {index:04d}" for index in range(3)
    ]


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("this is no video")
    elif how == "one frame":
        write_footage(Footage(draw(frames=1), Fraction(8)), path)
    elif how == "sound":
        with av.open(str(path), "w", format="mp4") as container:
            stream = container.add_stream("aac", rate=8000)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate = 8000
            container.mux(stream.encode(frame))
            container.mux(stream.encode())


@pytest.mark.parametrize("how", ["cut", "empty", "text", "one frame", "sound"])
def test_a_broken_clip_is_named_and_the_others_come_in(folders, tmp_path, how):
    damage(folders["ours"] / "0001.mp4", how)

    clips = take_in(folders, tmp_path)

    refused = [clip for clip in clips if clip.status == "quarantined"]
    assert [(clip.system, clip.prompt_index) for clip in refused] == [("ours", 1)]
    assert "ours/0001.mp4: The " in refused[0].reason
    assert refused[0].stored_name == ""
    assert len(clips) == 6


def test_a_file_that_announces_more_frames_than_it_has_is_refused(tmp_path):
    path = film(tmp_path / "clip.mp4", frames=20)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 200])  # faststart: the index stands in front

    with pytest.raises(StudyError, match="Make it again|cut short|copy"):
        read_footage(path)


FOREIGN = [
    ("clip.webm", {"codec": "libvpx-vp9"}),
    ("clip.mkv", {"codec": "libx264"}),
    ("clip.mkv", {"codec": "libx264", "live": True}),  # its segment announces no size
    ("clip.gif", {"codec": "gif", "pix_fmt": "rgb8"}),
    ("clip.avi", {"codec": "mpeg4"}),
    ("clip.mov", {"codec": "libx264"}),
]


@pytest.mark.parametrize("name, about", FOREIGN)
@pytest.mark.parametrize("share", [0.5, 0.75, 0.9])
def test_a_file_that_was_cut_is_refused_in_every_format(tmp_path, name, about, share):
    path = film_foreign(tmp_path / name, frames=24, width=64, height=64, **about)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])

    with pytest.raises(StudyError, match="cut short|cannot be decoded"):
        read_footage(path)


@pytest.mark.parametrize("name, about", FOREIGN)
@pytest.mark.parametrize("padding", [0, 100])
def test_a_sound_file_is_read_whole_in_every_format(tmp_path, name, about, padding):
    path = film_foreign(tmp_path / name, frames=24, width=64, height=64, **about)
    path.write_bytes(path.read_bytes() + bytes(padding))

    assert len(read_footage(path).pixels) == 24


def test_a_gif_without_its_last_byte_is_refused(tmp_path):
    path = film_foreign(tmp_path / "clip.gif", codec="gif", pix_fmt="rgb8")
    path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(StudyError, match="cut short"):
        read_footage(path)


def test_differing_clips_of_a_pair_are_refused_by_name(folders, tmp_path):
    film(folders["ours"] / "0001.mp4", width=48)

    refused = [clip for clip in take_in(folders, tmp_path) if clip.status != "ok"]

    assert {(clip.system, clip.prompt_index) for clip in refused} == {("ours", 1), ("theirs", 1)}
    for clip in refused:
        assert "ours: 48x32, 8 frames at 8 fps; theirs: 32x32" in clip.reason
        assert "equalise = true" in clip.reason


@pytest.mark.parametrize(
    "about", [{"frames": 12}, {"fps": 16, "frames": 16}, {"width": 64, "height": 64}, {"fps": 24}]
)
def test_differing_clips_can_be_made_alike(folders, tmp_path, about):
    film(folders["ours"] / "0001.mp4", **about)

    pair = [c for c in take_in(folders, tmp_path, extra="equalise = true") if c.prompt_index == 1]

    assert [clip.status for clip in pair] == ["ok", "ok"]
    assert pair[0].shape == pair[1].shape
    for clip in pair:
        assert read_footage(tmp_path / "media" / clip.stored_name).shape == clip.shape


def test_clips_of_other_proportions_cannot_be_made_alike(folders, tmp_path):
    film(folders["ours"] / "0001.mp4", width=64)

    clips = take_in(folders, tmp_path, extra="equalise = true")

    [refused] = [clip for clip in clips if clip.status != "ok"]
    assert (refused.system, refused.prompt_index) == ("ours", 1)
    assert "cannot shrink to 32x32" in refused.reason


def take_in_later(system, folders, tmp_path, known, **options):
    """Take in one system in a run of its own, after the clips that are known."""
    known = {(clip.system, clip.prompt_index): clip for clip in known}
    return take_in({system: folders[system]}, tmp_path, known=known, partial=True, **options)


@pytest.mark.parametrize("about", [{"frames": 12}, {"fps": 24, "frames": 24}, {"width": 48}])
def test_a_clip_that_differs_from_one_that_came_in_earlier_is_refused(folders, tmp_path, about):
    film(folders["theirs"] / "0001.mp4", **about)
    earlier = take_in_later("ours", folders, tmp_path, [])

    later = take_in_later("theirs", folders, tmp_path, earlier)

    [refused] = [clip for clip in later if clip.status != "ok"]
    assert (refused.system, refused.prompt_index) == ("theirs", 1)
    assert "the clips it is compared with have 32x32, 8 frames at 8 fps" in refused.reason


@pytest.mark.parametrize(
    "about", [{"frames": 12}, {"fps": 16, "frames": 16}, {"width": 64, "height": 64}]
)
def test_a_clip_is_made_like_one_that_came_in_earlier(folders, tmp_path, about):
    film(folders["theirs"] / "0001.mp4", **about)
    earlier = take_in_later("ours", folders, tmp_path, [])

    later = take_in_later("theirs", folders, tmp_path, earlier, extra="equalise = true")

    assert [clip.status for clip in later] == ["ok"] * 3
    assert {clip.shape for clip in later} == {Shape(32, 32, Fraction(8), 8)}


def test_a_clip_that_one_from_earlier_cannot_become_alike_to_is_refused(folders, tmp_path):
    film(folders["theirs"] / "0001.mp4", frames=4)
    earlier = take_in_later("ours", folders, tmp_path, [])

    later = take_in_later("theirs", folders, tmp_path, earlier, extra="equalise = true")

    assert [clip.status for clip in later] == ["ok", "quarantined", "ok"]
    assert "has 32x32, 4 frames at 8 fps and cannot shrink to 32x32, 8 frames" in later[1].reason


def test_a_seed_that_differs_from_one_that_came_in_earlier_is_refused(folders, tmp_path):
    for system, seed in (("ours", 1), ("theirs", 2)):
        rows = [f"{i:04d}.mp4,m,prompt {i},{seed if i == 0 else 7}" for i in range(3)]
        write_manifest(folders[system], rows)
    earlier = take_in_later("ours", folders, tmp_path, [])

    later = take_in_later("theirs", folders, tmp_path, earlier)

    assert [clip.status for clip in later] == ["quarantined", "ok", "ok"]
    assert "different seeds: 1, 2" in later[0].reason


def test_nothing_joins_clips_that_came_in_unequal(folders, tmp_path):
    film(tmp_path / "third" / "0001.mp4")
    unequal = [make_clip("ours", 1), make_clip("theirs", 1, width=48)]
    sources = find_sources({"third": tmp_path / "third"}, PROMPTS, Selection(first_number=0))
    known = {(clip.system, clip.prompt_index): clip for clip in unequal}

    [refused] = ingest(sources, PROMPTS, define(), tmp_path / "media", known=known, partial=True)

    assert "(ours: 32x32, 16 frames at 8 fps; theirs: 48x32" in refused.reason


def test_a_slower_rate_keeps_the_speed_of_what_is_seen():
    film_ = Footage(draw(frames=16), Fraction(16))

    slow = film_.fit(Shape(32, 32, Fraction(8), 8))

    assert np.array_equal(slow.pixels, film_.pixels[::2])


def write_manifest(folder: Path, rows: list[str], head: str = "path,model,prompt,seed") -> None:
    (folder / "manifest.csv").write_text("\n".join([head, *rows]) + "\n")


def test_a_manifest_names_clips_by_prompt_and_tells_seeds(tmp_path):
    for name in ("x.mp4", "y.mp4"):
        film(tmp_path / "ours" / name)
    write_manifest(tmp_path / "ours", ["x.mp4,m,prompt 2,5", "y.mp4,m,prompt 0,6"])

    found = find_sources({"ours": tmp_path / "ours"}, PROMPTS)

    assert {(s.prompt_index, s.path.name, s.seed) for s in found} == {
        (2, "x.mp4", 5),
        (0, "y.mp4", 6),
    }


def test_prompts_of_equal_text_may_share_a_clip(tmp_path):
    film(tmp_path / "ours" / "x.mp4")
    write_manifest(tmp_path / "ours", ["x.mp4,m,twice,5"])
    prompts = [Prompt(0, "twice"), Prompt(1, "once"), Prompt(2, "twice ")]

    found = find_sources({"ours": tmp_path / "ours"}, prompts)

    assert [(s.prompt_index, s.path.name) for s in found] == [(0, "x.mp4"), (2, "x.mp4")]


@pytest.mark.parametrize("match, refused", [("true", 2), ("false", 0)])
def test_pairs_with_differing_seeds_are_refused_unless_allowed(folders, tmp_path, match, refused):
    for system, seed in (("ours", 1), ("theirs", 2)):
        rows = [f"{i:04d}.mp4,m,prompt {i},{seed if i == 0 else 7}" for i in range(3)]
        write_manifest(folders[system], rows)

    clips = take_in(folders, tmp_path, extra=f"match_seeds = {match}")

    wrong = [clip for clip in clips if clip.status != "ok"]
    assert len(wrong) == refused
    assert all("one seed" in clip.reason and clip.prompt_index == 0 for clip in wrong)


def test_a_clip_that_is_not_the_one_of_the_manifest_is_refused(folders, tmp_path):
    head = "path,prompt,sha256"
    write_manifest(folders["ours"], [f"{i:04d}.mp4,prompt {i},{'0' * 64}" for i in range(3)], head)

    refused = [clip for clip in take_in(folders, tmp_path) if clip.status != "ok"]

    assert {clip.system for clip in refused} == {"ours"}
    assert "damaged or replaced" in refused[0].reason


@pytest.mark.parametrize(
    "rows, head, message",
    [
        (["x.mp4,m,something else,1"], "path,model,prompt,seed", "something else"),
        (["x.mp4,m,prompt 0,one"], "path,model,prompt,seed", "not a whole number"),
        (["x.mp4,m,prompt 0," + 30 * "9"], "path,model,prompt,seed", "not a whole number"),
        (["../x.mp4,m,prompt 0,1"], "path,model,prompt,seed", "outside its folder"),
        (["x.mp4,prompt 0"], "name,prompt", "needs a column named .path."),
        ([], "path,prompt", "lists no clips"),
        (["x.mp4,prompt 0", "y.mp4,prompt 0"], "path,prompt", "2 clips of the prompt"),
        (["x.mp4,a,prompt 0", "y.mp4,b,prompt 1"], "path,model,prompt", "several models"),
        (["x.mp4,prompt 0", "", "y.mp4"], "path,prompt", "Line 4 of .* 1 cells instead of 2"),
        (
            ["x.mp4,prompt 0", "y.mp4,prompt 1, red"],
            "path,prompt",
            "Line 3 of .* 3 cells instead of 2",
        ),
        (
            ["x.mp4,prompt 0,a", "y.mp4,prompt 1"],
            "path,prompt,model",
            "Line 3 of .* 2 cells instead of 3",
        ),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(tmp_path, rows, head, message):
    (tmp_path / "ours").mkdir()
    write_manifest(tmp_path / "ours", rows, head)

    with pytest.raises(StudyError, match=message):
        find_sources({"ours": tmp_path / "ours"}, PROMPTS)


@pytest.mark.parametrize(
    "names, message",
    [
        ([], "neither clips named 0000.mp4"),
        (["0000.mp4", "cat.mp4"], "belong to no prompt: cat.mp4"),
        (["0007.mp4"], "belong to no prompt: 0007.mp4"),
        (["0000.mp4", "0.mov"], "0.mov and 0000.mp4|0000.mp4 and 0.mov"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(tmp_path, names, message):
    (tmp_path / "ours").mkdir()
    for name in names:
        (tmp_path / "ours" / name).write_bytes(b"...")

    with pytest.raises(StudyError, match=message):
        find_sources({"ours": tmp_path / "ours"}, PROMPTS)


def test_folders_of_no_system_are_refused(tmp_path):
    with pytest.raises(StudyError, match="no folder named ours or theirs"):
        find_systems(tmp_path, ["ours", "theirs"])
    with pytest.raises(StudyError, match="folder .* of the clips of ours does not exist"):
        find_sources({"ours": tmp_path / "none"}, PROMPTS)


def test_an_unknown_system_or_prompt_is_refused(tmp_path):
    path = film(tmp_path / "x.mp4")
    for source in (Source("nobody", 0, path), Source("ours", 9, path)):
        with pytest.raises(StudyError, match="nobody|prompt 9"):
            list(ingest([source], PROMPTS, define_pair(), tmp_path / "media", known={}))


def test_a_huge_file_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "huge.mp4"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)

    with pytest.raises(StudyError, match="268,435,457 bytes"):
        read_footage(path)


def test_table_tells_what_could_give_a_system_away(folders, tmp_path):
    damage(folders["ours"] / "0001.mp4", "text")

    table = tabulate_clips(take_in(folders, tmp_path)).set_index("system")

    assert table["clips"].to_dict() == {"ours": 2, "theirs": 3}
    assert table.loc["theirs", ["width", "frames"]].to_list() == [32, 8]
    assert (table["mean_bytes"] > 0).all()
