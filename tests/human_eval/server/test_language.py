"""The raters' page in every language: complete catalogues, directions, labels, refusals."""

import ast
import json
import re
from pathlib import Path
from typing import get_args

import pytest
from fastapi.testclient import TestClient

import human_eval
from human_eval.definition import definition
from human_eval.definition.definition import parse_definition
from human_eval.definition.prompts import Prompt
from human_eval.errors import NotAcceptable, StudyError
from human_eval.server.http import BY_STATUS
from human_eval.server.language import LABELS, PAGES, Language, load_language, page_environment
from human_eval.server.vote_api import create_app
from human_eval.study.store import create_study
from tests.support.studies import DEFINITION

LANGUAGES = get_args(definition.Language)
TRANSLATED = [key for key in LANGUAGES if key != "en"]
# What raters read of the server: the sentences of these calls, except in the files of researchers.
NOT_FOR_RATERS = {"admin.py", "admin_session.py", "results_api.py"}
REFUSALS = ("NotYours", "NotAcceptable", "TooLate", "StudyClosed", "StudyPaused")
SENTENCES = {**dict.fromkeys(REFUSALS, slice(0, 1)), "LeadPage": slice(1, 3)}  # which arguments


def _texts(node: ast.expr | None, constants: dict[str, ast.expr]) -> list[str]:
    """Return the sentences that an expression stands for; an f-string fails."""
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.Name(id=name):
            return _texts(constants[name], constants)
        case ast.IfExp(body=body, orelse=other):
            return _texts(body, constants) + _texts(other, constants)
    raise AssertionError(f"line {node.lineno}: a refusal is a literal; give its values by name")


def _sentences_of_the_server() -> set[str]:
    sources = [
        ast.parse(path.read_text())
        for path in Path(human_eval.__file__).parent.rglob("*.py")
        if path.name not in NOT_FOR_RATERS
    ]
    constants = {
        target.id: node.value
        for source in sources
        for node in source.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and isinstance(node.value, ast.Constant)
    }
    return {
        text
        for source in sources
        for node in ast.walk(source)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        if node.func.id in SENTENCES
        for argument in node.args[SENTENCES[node.func.id]]
        for text in _texts(argument, constants)
    }


def _english() -> set[str]:
    """Return every sentence of the page, its scripts and the server's refusals."""
    environment = page_environment(Language("en"))
    found = _sentences_of_the_server() | set(LABELS.values()) | set(BY_STATUS.values())
    for path in PAGES.glob("*.html"):
        for _, _, message in environment.extract_translations(path.read_text()):
            found.add(str(message))
    for path in PAGES.glob("*.js"):
        found |= set(re.findall(r'\btext\(\s*"((?:[^"\\]|\\.)+)"', path.read_text()))
    return found


def placeholders(sentence: str) -> set[str]:
    return set(re.findall(r"\{(\w*)\}", sentence))


@pytest.mark.parametrize("key", TRANSLATED)
def test_every_catalogue_has_exactly_the_english_sentences_and_their_placeholders(key):
    path = PAGES / "languages" / f"{key}.json"
    pairs = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=list)
    english, catalogue = _english(), dict(pairs)

    assert sorted(english - set(catalogue)) == []
    assert sorted(set(catalogue) - english) == []
    assert len(pairs) == len(catalogue)
    for sentence, translated in pairs:
        assert placeholders(translated) == placeholders(sentence), sentence
        assert translated.strip() == translated != "", sentence
        assert not set('<>&"') & set(translated), sentence  # it may be an HTML attribute


@pytest.fixture
def serve(tmp_path):
    """Serve a study in a language; `question` is added to its primary question."""
    stores = []

    def serve_one(language: str, question: str = "", old: str = "", new: str = "") -> TestClient:
        text = DEFINITION.format(k=2, loops=1).replace(
            "primary = true", f"primary = true\n{question}"
        )
        text = f'language = "{language}"\n{text}'.replace(old, new)
        folder = tmp_path / f"study{len(stores)}"
        stores.append(create_study(folder, parse_definition(text), [Prompt(0, "a corgi")]))
        return TestClient(create_app(stores[-1]))

    yield serve_one
    for store in stores:
        store.close()


@pytest.mark.parametrize("key", LANGUAGES)
def test_the_page_states_its_language_and_direction(serve, key):
    with serve(key) as client:
        page = client.get("/rate").text
        script = client.get("/rate/catalogue.js").text

    assert f'<html lang="{key}" dir="{"rtl" if key == "ar" else "ltr"}">' in page
    assert ("I have read this" in page) == (key == "en")
    sent = json.loads(script.removeprefix("export default ").rstrip(";\n"))
    assert sent == load_language(key).catalogue


def test_texts_of_the_study_choose_their_own_direction(serve):
    with serve("ar") as client:
        page = client.get("/rate").text

    for part in ("prompt", "consent-text", "instructions"):
        assert re.search(rf'id="{part}"[^>]* dir="auto"', page)


def test_a_refusal_is_in_the_language_of_the_study(serve):
    with serve("de") as client:
        refused = [
            client.post("/api/enter", json={"consent": False}),
            client.post("/api/enter", json={"consent": True, "link": "WyJsaW5"}),
            client.post("/api/enter", json={"consent": True, "name": "ada", "password": "no"}),
            client.post("/api/enter", json={"consent": "yes"}),
            client.post("/api/claim", json={}),
            client.get("/api/enter"),
        ]

    german = [re.escape(text) for text in load_language("de").catalogue.values()]
    pattern = "|".join(re.sub(r"\\{\w+\\}", ".*", text) for text in german)
    for reply in refused:
        assert re.fullmatch(pattern, reply.json()["error"]), reply.json()


def test_a_refusal_is_translated_before_its_values_are_filled_in():
    french = load_language("fr")
    sentence = "Please watch both videos to the end first. Required loops: {count}."

    translated = french.translate(sentence, count=3)

    assert translated == french.catalogue[sentence].replace("{count}", "3")
    assert str(NotAcceptable(sentence, count=3)) == sentence.replace("{count}", "3")


def asked(client) -> list[list[str]]:
    """Return the labels of the choices of each question."""
    questions = client.get("/api/study").json()["questions"]
    return [[choice["label"] for choice in question["choices"]] for question in questions]


def test_choices_have_the_labels_of_the_study_or_of_its_language(serve):
    with serve("es", question='labels = ["Izquierda", "Derecha"]') as client:
        labels = asked(client)

    spanish = load_language("es").catalogue
    by_default = [spanish[name] for name in ("Video 1", "Video 2", "No difference")]
    assert labels == [by_default, ["Izquierda", "Derecha"]]


@pytest.mark.parametrize(
    "old, new",
    [
        ('"en"', '"it"'),
        ('"en"', '"EN"'),
        ('"en"', "7"),
        ("primary = true", 'primary = true\nlabels = ["Left"]'),
        ("primary = true", 'primary = true\nlabels = ["Left", "Right", "None"]'),
        ("primary = true", 'primary = true\nlabels = ["Left", " Left "]'),
        ("primary = true", 'primary = true\nlabels = ["Left", " "]'),
        ("primary = true", 'primary = true\nlabels = "Left"'),
        ("primary = true", f'primary = true\nlabels = ["Left", "{"long " * 13}"]'),
    ],
)
def test_a_wrong_language_or_label_is_refused(old, new):
    text = 'language = "en"\n' + DEFINITION.format(k=2, loops=1)

    parse_definition(text)
    with pytest.raises(StudyError):
        parse_definition(text.replace(old, new))
