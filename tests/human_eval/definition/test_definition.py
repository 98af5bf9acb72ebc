"""The definition of a study: presets, refusals, and a hash that changes with any change."""

import hashlib
from pathlib import Path

import pytest

import human_eval
from human_eval.definition.definition import load_definition, parse_definition
from human_eval.errors import StudyError
from tests.support.studies import DEFINITION, define
from turbo.models.registry import find_card

MINIATURE = Path(human_eval.__file__).parent / "simulated_miniature"


def test_the_preset_of_the_paper_has_its_six_comparisons_and_three_questions():
    definition = load_definition("t2v-turbo")

    assert [entry.key for entry in definition.comparisons] == ["C1", "C2", "C3", "C4", "C5", "C6"]
    assert definition.comparison("C5").a == "t2v-turbo-ms-2"
    changed = load_definition("t2v-turbo", {"ms_second_steps": 8})
    assert changed.comparison("C5").a == "t2v-turbo-ms-8"
    assert [question.primary for question in definition.questions] == [False, False, True]
    assert {question.ties for question in definition.questions} == {"forced"}
    assert definition.prompts == "evalcrafter"


@pytest.mark.parametrize("source", ["t2v-turbo", MINIATURE / "study.toml"])
def test_the_clips_of_the_papers_comparisons_can_be_shown_side_by_side(source):
    """`turbo.generate --systems` names its folders MODEL-STEPS, so `ingest` finds them by key."""
    definition = load_definition(source)
    cards = {}
    for system in definition.systems:
        name, _, steps = system.key.rpartition("-")
        cards[system.key] = find_card(name)
        assert system.steps in (None, int(steps))

    for comparison in definition.comparisons:
        shapes = {
            (card.width, card.height, card.num_frames, card.fps, card.network_fps)
            for card in (cards[comparison.a], cards[comparison.b])
        }
        assert len(shapes) == 1, comparison.key


def test_every_change_of_a_definition_changes_its_hash():
    assert define(k=2).hash == define(k=2).hash != define(k=3).hash


def test_the_hash_is_that_of_the_text_so_new_settings_do_not_change_it():
    definition = define()

    assert "language" not in definition.source and definition.language == "en"
    assert definition.hash == hashlib.sha256(definition.source.encode()).hexdigest()


@pytest.mark.parametrize(
    "old, new, message",
    [
        ('b = "theirs"', 'b = "ours"', "C1 compares 'ours' with itself"),
        ('b = "theirs"', 'b = "nobody"', "no system 'nobody'.* ours, theirs, third"),
        ('b = "third"', 'b = "theirs"', "compare the same two systems"),
        ('key = "C2"', 'key = "c1"', "comparisons have the same key"),
        ('key = "C2"', 'key = "../C2"', "'../C2' in comparisons .* letters, digits"),
        ('name = "test"', 'name = "my study"', "name 'my study' .* letters, digits"),
        ("primary = true", "primary = false", "exactly one primary question"),
        ('ties = "tie"', 'ties = "maybe"', "one of"),
        ("raters_per_pair = 2", "raters_per_pair = 0", "between 1 and 1000"),
        ("raters_per_pair = 2", 'raters_per_pair = "2"', "of type int"),
        ("raters_per_pair = 2", "raters = 2", "unknown key 'raters'"),
        ("min_loops = 1", "min_loops = -1", "min_loops is -1, but must be between 0 and 100"),
        ("primary = true", 'primary = true\ndimension = "beauty"', "one of"),
        ("min_loops = 1", "min_loops = ", "not valid TOML"),
        ("[viewing]", "[checks]\ngold_share = 0.5\nmirror_share = 0.5\n[viewing]", "below 1"),
        ('wording = "Which do you prefer?"', "", "questions has no wording"),
        ('name = "test"', 'name = "test"\nhash = "0"', "'hash' is computed"),
    ],
)
def test_a_definition_that_contradicts_itself_is_refused(old, new, message):
    text = DEFINITION.format(k=2, loops=1)
    assert old in text

    with pytest.raises(StudyError, match=message):
        parse_definition(text.replace(old, new, 1))


def test_two_questions_cannot_measure_the_same_dimension():
    text = DEFINITION.format(k=2, loops=1).replace(
        "\nwording =", '\ndimension = "motion_quality"\nwording ='
    )

    with pytest.raises(StudyError, match="same dimension"):
        parse_definition(text)


def test_an_unknown_preset_or_parameter_is_refused():
    with pytest.raises(StudyError, match="shapes-demo, t2v-turbo"):
        load_definition("nothing")
    with pytest.raises(StudyError, match="no parameter 'steps'"):
        load_definition("t2v-turbo", {"steps": 2})
    with pytest.raises(StudyError, match="ms_second_steps cannot be 4"):
        load_definition("t2v-turbo", {"ms_second_steps": 4})


def test_a_definition_saved_with_a_byte_order_mark_is_the_same(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(define().source, encoding="utf-8-sig")

    assert load_definition(path).hash == define().hash
