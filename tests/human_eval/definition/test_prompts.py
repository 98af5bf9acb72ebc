import os
import socket
from pathlib import Path

import pytest

from human_eval.definition import prompts as prompts_module
from human_eval.definition.prompts import (
    SHA256,
    fetch_evalcrafter,
    load_prompts,
    read_evalcrafter,
    read_prompts,
)
from human_eval.errors import StudyError

BESIDE = Path(__file__).parents[4] / "shared" / "evalcrafter"


@pytest.fixture(scope="module")
def evalcrafter():
    folder = Path(os.environ.get("EVALCRAFTER_DIR", BESIDE))
    if not all((folder / name).exists() for name in SHA256):
        pytest.skip("no files of EvalCrafter; set EVALCRAFTER_DIR")
    return read_evalcrafter(folder)


def test_evalcrafter_has_700_prompts_of_696_texts(evalcrafter):
    assert [prompt.index for prompt in evalcrafter] == list(range(700))
    assert len({prompt.text for prompt in evalcrafter}) == 696
    for first, second in [(5, 18), (17, 31), (99, 108), (107, 111)]:
        assert evalcrafter[first].text == evalcrafter[second].text


def test_the_garbled_prompt_is_stored_verbatim_and_shown_repaired(evalcrafter):
    prompt = evalcrafter[320]

    assert prompt.text == "In 3d game style, Salvador Dal\u221a\u2260 with a robotic half face"
    assert prompt.display == "In 3d game style, Salvador Dal\u00ed with a robotic half face"
    changed = [p.index for p in evalcrafter if p.display != p.text.strip()]
    assert changed == [320]


def test_trailing_spaces_are_kept_and_not_shown(evalcrafter):
    assert evalcrafter[28].text.endswith("easily. ")
    assert evalcrafter[28].display.endswith("easily.")


def test_categories_are_those_of_the_metadata(evalcrafter):
    counts = {}
    for prompt in evalcrafter:
        for category in prompt.category.split("|"):
            counts[category] = counts.get(category, 0) + 1

    wanted = {"face": 54, "count": 50, "action": 50, "text": 50, "amp": 50, "color": 46}
    assert counts == {**wanted, "none": 413}
    assert evalcrafter[78].category == "action|count"


def test_another_file_under_the_name_is_refused(tmp_path):
    for name in SHA256:
        (tmp_path / name).write_text("{}")

    with pytest.raises(StudyError, match="prompt700.txt has the SHA-256 .* instead of 2b54c278"):
        load_prompts(tmp_path)


def test_without_a_network_the_message_names_the_files_to_fetch(tmp_path, monkeypatch):
    monkeypatch.setattr(prompts_module, "UPSTREAM", "http://127.0.0.1:9/")

    with pytest.raises(StudyError, match="Put prompt700.txt and metadata.json"):
        fetch_evalcrafter(tmp_path)
    assert not list(tmp_path.iterdir())


def test_download_is_checked_before_it_is_kept(tmp_path, monkeypatch):
    (tmp_path / "upstream").mkdir()
    for name in SHA256:
        (tmp_path / "upstream" / name).write_text("not the prompts")
    monkeypatch.setattr(prompts_module, "UPSTREAM", (tmp_path / "upstream").as_uri() + "/")

    with pytest.raises(StudyError, match="has the SHA-256"):
        fetch_evalcrafter(tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.network
def test_upstream_still_has_the_pinned_files(tmp_path):
    try:
        socket.create_connection(("raw.githubusercontent.com", 443), timeout=5).close()
    except OSError as error:
        pytest.skip(f"no network: {error}")
    assert len(read_evalcrafter(fetch_evalcrafter(tmp_path))) == 700


@pytest.mark.parametrize(
    "content",
    [b"one\ntwo\n", b"one\r\ntwo", b"\xef\xbb\xbfone\ntwo\n\n", "one\ntwo".encode("utf-16")],
)
def test_lines_are_prompts_in_any_common_encoding(tmp_path, content):
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)

    assert [(p.index, p.text) for p in read_prompts(path)] == [(0, "one"), (1, "two")]


def test_csv_has_prompts_indices_and_categories(tmp_path):
    path = tmp_path / "prompts.csv"
    path.write_text('index,text,category\n7,"a cat, two dogs",count|animal\n9,=SUM(A1),none\n')

    first, second = read_prompts(path, column="text")

    assert (first.index, first.text, first.category) == (7, "a cat, two dogs", "animal|count")
    assert (second.index, second.text, second.category) == (9, "=SUM(A1)", "none")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("p.txt", b"", "no prompts"),
        ("p.txt", b"one\n\ntwo", "prompt 1 is empty"),
        ("p.txt", b"\xff\xfe\xff", "UTF-16"),
        ("p.txt", b"a\nb\xe9c", "line 2 contains the byte 0xe9"),
        ("p.txt", b"a\x00b", r"control character U\+0000"),
        ("p.txt", b"x" * 2001, "2,001 characters"),
        ("p.txt", b'{"prompt": "a cat"}\n', "contains JSON"),
        ("p.jsonl", b'{"title": "a cat"}\n', "line 1: there is no prompt"),
        ("p.docx", b"PK", "ends in .docx"),
        ("p.csv", b"title\nhello\n", "needs a column named 'prompt'"),
        ("p.csv", b"prompt,prompt\na,b\n", "several columns named 'prompt'"),
        ("p.csv", b"prompt\na,b\n", "Line 2 .* 2 cells instead of 1"),
        ("p.csv", b'prompt\n"a"b\n', "not a valid CSV file"),
        ("p.csv", b"index,prompt\n1,a\n1,b\n", "the index 1 is used twice"),
        ("p.csv", b"index,prompt\nx,a\n", "not a whole number"),
        ("p.csv", b"", "needs a column named"),
    ],
)
def test_a_file_that_is_not_all_prompts_is_refused(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)

    with pytest.raises(StudyError, match=message):
        load_prompts(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(StudyError, match=r"none.txt cannot be read: No such file"):
        load_prompts(tmp_path / "none.txt")


def test_only_the_first_problems_are_listed(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("ok\n" + "\n" * 30 + "ok")

    with pytest.raises(StudyError, match="prompt 20 is empty and 10 more"):
        load_prompts(path)


def test_prompts_are_read_from_json_lines(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a cat", "category": "animal"}\n{"prompt": "a dog"}\n')

    assert [(p.index, p.text, p.category) for p in load_prompts(path)] == [
        (0, "a cat", "animal"),
        (1, "a dog", "none"),
    ]


def test_the_length_of_prompts_is_a_setting(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("x" * 800)

    assert len(load_prompts(path)[0].text) == 800
    with pytest.raises(StudyError, match="max_prompt_length"):
        load_prompts(path, max_length=799)
