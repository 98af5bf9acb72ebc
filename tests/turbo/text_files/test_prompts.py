"""Files of prompts in every form that is taken, and the forms that are refused."""

import json

import pytest

from turbo.text_files.decoding import FileRefused
from turbo.text_files.prompts import read_prompt_file


def _texts(tmp_path, name, content, column=None):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [entry.text for entry in read_prompt_file(path, column)]


@pytest.mark.parametrize(
    "name, content",
    [
        ("p.txt", "a cat\na dog, running"),
        ("p.TXT", "a cat\r\na dog, running\r\n"),
        ("p", "a cat\ra dog, running\r"),
        ("p.csv", 'prompt\na cat\n"a dog, running"\n'),
        ("p.csv", "id;Caption\n1;a cat\n2;a dog, running\n"),
        ("p.tsv", "text\tid\na cat\t1\na dog, running\t2\n"),
        ("p.csv", 'prompt_en,dimension\na cat,x\n"a dog, running",y\n'.encode("utf-16")),
        ("p.json", '["a cat", "a dog, running"]'),
        ("p.json", '{"prompts": ["a cat", {"prompt": "a dog, running"}]}'),
        ("p.json", '[{"prompt_en": "a cat"}, {"prompt_en": "a dog, running", "dimension": []}]'),
        ("p.jsonl", '{"prompt": "a cat"}\n\n{"text": "a dog, running"}\n'),
        ("p.jsonl", '\ufeff"a cat"\r\n{"caption": "a dog, running", "n": 1}'),
        ("p.ndjson", '{"text": "a cat"}\n{"text": "a dog, running"}'),
    ],
)
def test_prompts_are_read_from_every_usual_form(tmp_path, name, content):
    assert _texts(tmp_path, name, content) == ["a cat", "a dog, running"]


def test_the_column_asked_for_wins(tmp_path):
    assert _texts(tmp_path, "p.csv", "prompt,title\na,b\n", column="title") == ["b"]
    assert _texts(tmp_path, "p.jsonl", '{"prompt": "a", "title": "b"}', column="title") == ["b"]


def test_categories_and_indices_of_json_are_read(tmp_path):
    path = tmp_path / "p.json"
    path.write_text(json.dumps([{"prompt": "a", "index": 7, "category": ["count", "animal"]}]))

    [entry] = read_prompt_file(path)

    assert (entry.index, entry.category) == ("7", "count|animal")


def test_lines_that_only_begin_like_json_or_name_a_column_are_prompts(tmp_path):
    lines = ["[close-up] a cat", "text, a caption and a cat", "{a cat}", "prompt"]

    assert _texts(tmp_path, "p.txt", "\n".join(lines)) == lines


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("p.xlsx", b"PK\x03\x04", "p.xlsx ends in .xlsx"),
        ("p.yaml", "- a cat", "ends in .yaml"),
        ("p.csv.gz", b"\x1f\x8b", "ends in .gz"),
        ("p.txt", '{"prompt": "a cat"}\n{"prompt": "a dog"}\n', "JSON lines"),
        ("p.txt", '[\n  "a cat"\n]', "contains JSON"),
        ("p.txt", "prompt,seed\na cat,1\n", "CSV"),
        ("p.json", '{"a": 1}', "not a list of prompts"),
        ("p.json", "a cat", "not valid JSON"),
        ("p.json", "[" * 100_000, "not valid JSON"),
        ("p.json", '[{"prompt": 3}]', "entry 1: there is no prompt"),
        ("p.jsonl", '{"prompt": "a"}\n{"title": "b"}', "line 2: there is no prompt"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": ', "JSON in line 2"),
        ("p.jsonl", "a cat\n", "JSON in line 1"),
        ("p.csv", "a cat\na dog\n", "needs a column named 'prompt'"),
        ("p.txt", "a caf\xe9".encode("latin-1"), "not UTF-8"),
        ("p.json", '["a cat", " "]', "entry 2"),
        ("p.jsonl", '{"prompt": "a cat"}\n{"prompt": ""}', "line 2"),
        ("p.csv", "prompt,index\na cat,0\n,1\n", "line 3"),
    ],
)
def test_everything_else_is_refused_by_name(tmp_path, name, content, message):
    with pytest.raises(FileRefused, match=message):
        _texts(tmp_path, name, content)
