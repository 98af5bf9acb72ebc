"""Which file is the clip of which prompt: numbers, names of prompts, manifests."""

import unicodedata

import pytest

from human_eval.clips.sources import Selection, find_sources
from human_eval.definition.prompts import Prompt
from human_eval.errors import StudyError

PROMPTS = [Prompt(0, "a café"), Prompt(1, "a dog, running")]


def _find(folder, selection=None):
    sources = find_sources({"ours": folder}, PROMPTS, selection or Selection())
    return {source.prompt_index: source.path.name for source in sources}


def _touch(folder, *names):
    for name in names:
        (folder / name).touch()
    return folder


@pytest.mark.parametrize("names", [["1.mp4", "2.mp4"], ["0001.mp4"]])
def test_numbers_from_1_are_refused_until_the_first_one_is_named(tmp_path, names):
    _touch(tmp_path, *names)

    with pytest.raises(StudyError, match="count from 1"):
        _find(tmp_path)

    assert _find(tmp_path, Selection(first_number=1)) == dict(enumerate(names))


def test_a_folder_without_its_first_clip_is_taken_when_said_so(tmp_path):
    _touch(tmp_path, "0001.mp4")

    assert _find(tmp_path, Selection(first_number=0)) == {1: "0001.mp4"}


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_files_may_be_named_after_their_prompts(tmp_path, form):
    name = unicodedata.normalize(form, "a café-0.mp4")
    _touch(tmp_path, name, "a dog, running-0.mp4")

    assert _find(tmp_path) == {0: name, 1: "a dog, running-0.mp4"}


def test_one_of_several_samples_is_chosen_by_its_number(tmp_path):
    _touch(tmp_path, *(f"{prompt.text}-{n}.mp4" for prompt in PROMPTS for n in range(3)))

    with pytest.raises(StudyError, match="--seed 0"):
        _find(tmp_path)

    assert _find(tmp_path, Selection(seed=2)) == {0: "a café-2.mp4", 1: "a dog, running-2.mp4"}
    with pytest.raises(StudyError, match="no clips of seed 7"):
        _find(tmp_path, Selection(seed=7))


def test_only_files_that_belong_to_no_prompt_are_named_as_such(tmp_path):
    _touch(tmp_path, "a café-0.mp4", "a dog, running-0.mp4", "a bird-0.mp4")

    with pytest.raises(StudyError, match=r"no prompt: a bird-0\.mp4\. "):
        _find(tmp_path)


@pytest.mark.parametrize("names", [["take-3.mp4", "a cat.mp4"], ["take-3-0.mp4", "a cat-0.mp4"]])
def test_a_prompt_may_end_like_the_number_of_a_sample(tmp_path, names):
    prompts = [Prompt(0, "take-3"), Prompt(1, "a cat")]
    _touch(tmp_path, *names)

    sources = find_sources({"ours": tmp_path}, prompts)

    assert {source.prompt_index: source.path.name for source in sources} == dict(enumerate(names))


def test_a_file_that_may_belong_to_two_prompts_is_refused(tmp_path):
    _touch(tmp_path, "take-3.mp4")

    with pytest.raises(StudyError, match="manifest.csv"):
        find_sources({"ours": tmp_path}, [Prompt(0, "take"), Prompt(1, "take-3")])


@pytest.mark.parametrize(
    "text",
    [
        'path,prompt\na.mp4,a café\nb.mp4,"a dog, running"\n',
        'filename,caption\na.mp4,a café\nb.mp4,"a dog, running"\n',
        "Path;Prompt;Seed\na.mp4;a café;0.0\nb.mp4;a dog, running;0.0\n",
        "path\ttext\na.mp4\ta cafe\u0301\nb.mp4\t a  dog, running \n",
        'video_path,prompt_en\n.\\a.mp4,a café\nb.mp4,"a dog, running"\n',
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_manifests_of_other_tools_are_taken(tmp_path, text, encoding):
    _touch(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "manifest.csv").write_bytes(text.encode(encoding))

    assert _find(tmp_path) == {0: "a.mp4", 1: "b.mp4"}


def test_several_seeds_of_a_manifest_are_chosen_from(tmp_path):
    rows = [f'{p.index}-{s}.mp4,"{p.text}",{s}.0' for p in PROMPTS for s in (3, 4)]
    (tmp_path / "manifest.csv").write_text("\n".join(["path,prompt,seed", *rows]))

    with pytest.raises(StudyError, match="--seed 3"):
        _find(tmp_path)

    assert _find(tmp_path, Selection(seed=4)) == {0: "0-4.mp4", 1: "1-4.mp4"}


def test_one_manifest_lists_the_folders_of_several_systems(tmp_path):
    rows = [f'{s}/{p.index}.mp4,"{p.text}",0' for s in ("turbo-4", "turbo-8") for p in PROMPTS]
    (tmp_path / "manifest.csv").write_text("\n".join(["path,prompt,seed", *rows]))
    for folder in ("turbo-4", "turbo-8"):
        (tmp_path / folder).mkdir()
        _touch(tmp_path / folder, "0.mp4", "1.mp4")

        assert _find(tmp_path / folder) == {0: "0.mp4", 1: "1.mp4"}


def test_a_manifest_above_that_lists_other_files_is_passed_over(tmp_path):
    (tmp_path / "manifest.csv").write_text("file,label\nb.mp4,1")
    (tmp_path / "a").mkdir()
    _touch(tmp_path / "a", "0000.mp4", "0001.mp4")

    assert _find(tmp_path / "a") == {0: "0000.mp4", 1: "0001.mp4"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("start", ["two/", "two\\", "./two/", ".\\two\\", " two/"])
def test_a_manifest_above_is_read_however_it_was_saved(tmp_path, start, encoding):
    rows = [f'{start}{1 - p.index}.mp4,"{p.text}",7,AB' for p in PROMPTS]  # the other way round
    text = "\r\n".join(["path,prompt,seed,sha256", *rows])
    (tmp_path / "manifest.csv").write_bytes(text.encode(encoding))
    (tmp_path / "two").mkdir()
    _touch(tmp_path / "two", "0.mp4", "1.mp4")

    sources = find_sources({"ours": tmp_path / "two"}, PROMPTS)

    assert {source.prompt_index: source.path.name for source in sources} == {0: "1.mp4", 1: "0.mp4"}
    assert {(source.seed, source.sha256) for source in sources} == {(7, "ab")}


def test_a_manifest_above_may_have_whole_paths(tmp_path):
    rows = [f'{tmp_path}/two/{1 - p.index}.mp4,"{p.text}"' for p in PROMPTS]
    (tmp_path / "manifest.csv").write_text("\n".join(["path,prompt", *rows]))
    (tmp_path / "two").mkdir()
    _touch(tmp_path / "two", "0.mp4", "1.mp4")

    assert _find(tmp_path / "two") == {0: "1.mp4", 1: "0.mp4"}


def test_a_manifest_above_lists_no_folder_whose_name_is_only_part_of_another(tmp_path):
    rows = [f'turbo-vc2/{p.index}.mp4,"{p.text}"' for p in PROMPTS]
    (tmp_path / "manifest.csv").write_text("\n".join(["path,prompt", *rows]))
    (tmp_path / "vc2").mkdir()
    _touch(tmp_path / "vc2", "0000.mp4", "0001.mp4")

    assert _find(tmp_path / "vc2") == {0: "0000.mp4", 1: "0001.mp4"}


@pytest.mark.parametrize(
    "content, message",
    [
        (b"path,prompt\ntwo/0.mp4,a caf\xe9\n", "not UTF-8"),
        (b"path,prompt\ntwo/0.mp4\n", "Line 2 of .* has 1 cells"),
        (b"clip_at,prompt\ntwo/0.mp4,x\n", "needs a column named 'path'"),
        (b"path,label\ntwo/0.mp4,x\n", "needs a column named 'prompt'"),
        (b"path,prompt\nC:\\clips\\two\\0.mp4,x\n", "lists no clips in"),
        (b"path,prompt\n/elsewhere/two/0.mp4,x\n", "lists no clips in"),
    ],
)
def test_numbers_never_stand_in_for_a_manifest_above_that_cannot_be_used(
    tmp_path, content, message
):
    (tmp_path / "manifest.csv").write_bytes(content)
    (tmp_path / "two").mkdir()
    _touch(tmp_path / "two", "0000.mp4", "0001.mp4")

    with pytest.raises(StudyError, match=message):
        _find(tmp_path / "two")
