"""A study's definition: presets, refusals in plain words, and a hash that notices any change."""

import pytest

from human_eval.definition.definition import load_definition, parse_definition
from human_eval.errors import StudyError
from tests.support.studies import DEFINITION, define


def test_the_preset_of_the_paper_has_its_six_comparisons_and_three_questions():
    definition = load_definition("t2v-turbo")

    assert [entry.key for entry in definition.comparisons] == ["C1", "C2", "C3", "C4", "C5", "C6"]
    assert definition.comparison("C5").a == "turbo-ms-2"
    assert load_definition("t2v-turbo", {"ms_second_steps": 8}).comparison("C5").a == "turbo-ms-8"
    assert [question.primary for question in definition.questions] == [False, False, True]
    assert {question.ties for question in definition.questions} == {"forced"}
    assert definition.prompts == "evalcrafter"


def test_a_definition_is_told_by_its_hash():
    assert define(k=2).hash == define(k=2).hash != define(k=3).hash


@pytest.mark.parametrize(
    "old, new, message",
    [
        ('b = "theirs"', 'b = "ours"', "two systems in C1"),
        ('b = "theirs"', 'b = "nobody"', r"a system from \['ours', 'theirs', 'third'\]"),
        ('b = "third"', 'b = "theirs"', "each pair of systems in one comparison"),
        ('key = "C2"', 'key = "c1"', "each key of comparisons once"),
        ('key = "C2"', 'key = "../C2"', "a key of letters"),
        ("primary = true", "primary = false", "exactly one primary question"),
        ('ties = "tie"', 'ties = "maybe"', "one of"),
        ("raters_per_pair = 2", "raters_per_pair = 0", "between 1 and 1000"),
        ("raters_per_pair = 2", 'raters_per_pair = "2"', "type int"),
        ("raters_per_pair = 2", "raters = 2", "got 'raters'"),
        ("min_loops = 1", "min_loops = -1", "min_loops between 0 and 100"),
        ("min_loops = 1", "min_loops = ", "Expected TOML"),
        ('wording = "Which do you prefer?"', "", "wording in questions"),
        ('name = "test"', 'name = "test"\nhash = "0"', "it is computed"),
    ],
)
def test_a_definition_that_contradicts_itself_is_refused(old, new, message):
    text = DEFINITION.format(k=2, loops=1)
    assert old in text

    with pytest.raises(StudyError, match=message):
        parse_definition(text.replace(old, new, 1))


def test_an_unknown_preset_or_parameter_is_refused():
    with pytest.raises(StudyError, match="shapes-demo, t2v-turbo"):
        load_definition("nothing")
    with pytest.raises(StudyError, match="got 'steps'"):
        load_definition("t2v-turbo", {"steps": 2})
    with pytest.raises(StudyError, match="ms_second_steps from"):
        load_definition("t2v-turbo", {"ms_second_steps": 4})
