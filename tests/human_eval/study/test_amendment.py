"""A study that has begun can grow; what its votes mean never changes."""

from dataclasses import replace

import pytest

from human_eval.cli.main import main
from human_eval.collection.pairs import list_prompts
from human_eval.definition.amendment import list_differences
from human_eval.definition.definition import parse_definition
from human_eval.definition.prompts import Prompt
from human_eval.errors import StudyClosed, StudyError
from human_eval.reporting.export import read_export, write_export
from human_eval.reporting.methods_text import methods_paragraph
from human_eval.storage.lock import serving
from human_eval.study.amendment import amend_study, find_edits
from human_eval.study.backup import back_up, open_to_restore, restore
from human_eval.study.queries import read_pairs, read_votes
from human_eval.study.store import open_study
from tests.human_eval.collection.test_assignment import enter, finish
from tests.support.studies import add_clips, define, find_defects, make_clip, set_closed

sqlite_only = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
NEW_COMPARISON = '[[comparisons]]\nkey = "C3"\na = "theirs"\nb = "third"\n'


def rewrite(store, *changes, version=2):
    """Return the study's definition with texts replaced, as a new version."""
    source = store.definition.source.replace("[[systems]]", f"version = {version}\n[[systems]]", 1)
    for old, new in changes:
        assert old in source
        source = source.replace(old, new, 1)
    return parse_definition(source)


def amend(store, definition, prompts=(), reason="the reviewers asked"):
    """Amend the study and return it opened again."""
    amend_study(store, definition, prompts, reason=reason, author="ada")
    return reopen(store)


def reopen(store):
    return replace(open_study(store.folder), clock=store.clock, rng=store.rng)


def test_more_raters_open_full_pairs_and_old_votes_keep_their_version(make_store):
    store = make_store(k=1, num_prompts=2)
    finish(store, enter(store, 1))
    first = store.definition.hash
    typo = ("Which do you prefer?", "Which one do you prefer?")

    later = amend(store, rewrite(store, ("raters_per_pair = 1", "raters_per_pair = 3"), typo))

    before = read_votes(later)
    assert set(before["definition_hash"]) == {first} and later.definition.raters_per_pair == 3
    finish(later, enter(later, 3))
    votes = read_votes(later)
    assert len(votes) == 3 * len(before)
    assert set(votes["definition_hash"][len(before) :]) == {later.definition.hash}
    assert (read_pairs(later)["taken"] == 3).all() and find_defects(later) == []
    later.close()


def test_more_prompts_and_comparisons_make_pairs_beside_the_old(make_store):
    store = make_store(k=2, num_prompts=2)
    finish(store, enter(store, 1))
    prompts = [Prompt(index, f"prompt {index}") for index in range(3)]
    definition = rewrite(store, ("[[questions]]", NEW_COMPARISON + "[[questions]]"))

    later = amend(store, definition, prompts)

    assert len(read_pairs(later)) == 4
    add_clips(later, [make_clip(system.key, 2) for system in later.definition.systems])
    assert read_pairs(later).groupby("comparison").size().to_dict() == {"C1": 3, "C2": 3, "C3": 3}
    assert len(read_votes(later)) == 2 * 4
    later.close()


@sqlite_only
def test_prompts_alone_need_no_new_version(make_store):
    store = make_store(num_prompts=1)
    prompts = [Prompt(0, "prompt 0"), Prompt(7, "another")]

    later = amend(store, store.definition, prompts)

    assert later.definition.hash == store.definition.hash and not later.definition.earlier
    later.close()


@sqlite_only
@pytest.mark.parametrize(
    "old, new, message",
    [
        ("raters_per_pair = 2", "raters_per_pair = 1", "can only grow"),
        ('key = "C1"', 'key = "C9"', "comparisons"),
        ('b = "theirs"', 'b = "third"', "C"),
        ('ties = "tie"', 'ties = "forced"', "questions.Q1.ties"),
        ("min_loops = 0", "min_loops = 2", "viewing.min_loops"),
        ('key = "Q1"', 'key = "Q7"', "questions"),
        ("raters_per_pair = 2", "raters_per_pair = 2\nmatch_seeds = false", "match_seeds"),
        ('name = "test"', 'name = "other"', "name"),
        ("min_loops = 0", "min_loops = 0\n[checks]\nmin_gold_accuracy = 0.1", "min_gold_accuracy"),
        (
            "[viewing]",
            '[[questions]]\nkey = "Q3"\nwording = "More?"\n[viewing]',
            "questions.Q3.wording cannot be added",
        ),
    ],
)
def test_what_would_change_the_meaning_of_votes_is_refused(make_store, old, new, message):
    store = make_store(k=2)
    extra = [("C2", "C2")] if old != 'b = "theirs"' else [('b = "third"', 'b = "theirs"')]

    with pytest.raises(StudyError, match=message):
        amend(store, rewrite(store, *extra, (old, new)))

    again = open_study(store.folder)
    assert again.definition.source == store.definition.source
    again.close()


@sqlite_only
def test_an_amendment_needs_a_version_a_reason_a_change_and_no_running_service(make_store):
    store = make_store(k=1)
    more = ("raters_per_pair = 1", "raters_per_pair = 2")
    good = rewrite(store, more)

    with pytest.raises(StudyError, match="version must be greater than 1"):
        amend(store, rewrite(store, more, version=1))
    with pytest.raises(StudyError, match="reason"):
        amend(store, good, reason=" ")
    with pytest.raises(StudyError, match="nothing to amend"):
        amend(store, store.definition)
    with pytest.raises(StudyError, match="Prompt 0 of the study is 'prompt 0', but 'other'"):
        amend(store, good, [Prompt(0, "other")])
    with serving(store.database, store.folder), pytest.raises(StudyError, match="Stop it"):
        amend(store, good)
    set_closed(store, True, author="ada")
    with pytest.raises(StudyClosed):
        amend(store, good)
    assert read_pairs(store)["target"].eq(1).all()


PROLIFIC = '[quotas]\nper_study = 5\n[[providers]]\nkey = "prolific"\n'


@sqlite_only
def test_a_first_crowd_platform_may_be_added_and_the_last_not_removed(make_store):
    store = make_store(k=1)

    later = amend(store, rewrite(store, ("[viewing]", PROLIFIC + "[viewing]")))

    assert [provider.key for provider in later.definition.providers] == ["prolific"]
    with pytest.raises(StudyError, match="providers"):
        amend(later, rewrite(store, version=3))
    later.close()


@sqlite_only
def test_the_command_takes_the_prompts_that_create_takes(make_store, tmp_path):
    store = make_store(k=1, num_prompts=2)
    study, path = store.folder / "study.toml", tmp_path / "prompts.csv"
    path.write_text("caption\nprompt 0\nprompt 1\n" + "long " * 500 + "\n")
    longer = ("raters_per_pair = 1", "raters_per_pair = 1\nmax_prompt_length = 5000")
    study.write_text(rewrite(store, longer).source)

    main(["amend", str(store.folder), "--prompts", str(path), "--reason", "more prompts"])

    with store.read() as connection:
        assert [len(prompt.text) for prompt in list_prompts(connection)] == [8, 8, 2500]


@sqlite_only
def test_an_edited_file_is_told_by_status_and_amended(make_store, capsys, caplog):
    store = make_store(k=1)
    path = store.folder / "study.toml"
    study = str(store.folder)
    main(["status", study])
    assert "study.toml" not in capsys.readouterr().out
    path.write_text(path.read_text() + "\n# a remark")
    assert find_edits(store) == []
    path.write_text(rewrite(store, ("raters_per_pair = 1", "raters_per_pair = 3")).source)

    main(["status", study])

    shown = capsys.readouterr().out
    assert "raters_per_pair: 1, now 3" in shown and "`amend`" in shown
    main(["amend", study, "--reason", "more power"])
    main(["status", study])
    assert "which counts" not in capsys.readouterr().out
    assert (store.folder / "study-v1.toml").read_text() == store.definition.source
    for content in ("name = ", None):
        path.write_text(content) if content else path.unlink()
        main(["status", study])
        assert "which counts" in capsys.readouterr().out


def test_an_amended_study_is_backed_up_and_restored(make_store):
    store = make_store(k=1, num_prompts=2)
    finish(store, enter(store, 1))
    old = back_up(store)
    later = amend(store, rewrite(store, ("raters_per_pair = 1", "raters_per_pair = 2")))
    finish(later, enter(later, 1))
    before = read_votes(later)
    new = back_up(later)

    restore(later, old)
    first = reopen(store)
    assert first.definition.hash == store.definition.hash and len(read_votes(first)) == 8
    restore(first, new)
    second = open_study(store.folder)
    assert read_votes(second).equals(before) and second.definition.hash == later.definition.hash
    for opened in (later, first, second):
        opened.close()


@sqlite_only
def test_a_lost_database_of_an_amended_study_is_restored(make_store):
    store = make_store(k=1, num_prompts=2)
    later = amend(store, rewrite(store, ("raters_per_pair = 1", "raters_per_pair = 2")))
    copy = back_up(later)
    later.close()
    for path in store.folder.glob("study.db*"):
        path.unlink()

    opened, _ = open_to_restore(store.folder)
    restore(opened, copy)
    opened.close()

    again = open_study(store.folder)
    assert again.definition.raters_per_pair == 2
    again.close()


@sqlite_only
def test_an_export_and_its_methods_tell_the_earlier_wording(make_store, tmp_path):
    store = make_store(k=1, num_prompts=2)
    finish(store, enter(store, 1))
    typo = ("Which do you prefer?", "Which one do you prefer?")
    later = amend(store, rewrite(store, ("raters_per_pair = 1", "raters_per_pair = 2"), typo))
    finish(later, enter(later, 1))
    votes = read_votes(later)

    write_export(votes, later.definition, tmp_path / "export")
    read, definition = read_export(tmp_path / "export")

    assert definition.versions == later.definition.versions
    assert read["definition_hash"].equals(votes["definition_hash"])
    told = methods_paragraph(read, definition)
    assert "amended once" in told
    assert '4 answers to Q2 were given in version 1 to the wording "Which do you prefer?"' in told
    later.close()


def test_differences_name_each_setting():
    old = define(k=1)
    new = parse_definition(old.source.replace("Ours", "Mine").replace('= "C2"', '= "C4"'))

    found = list_differences(old, new)

    assert "systems.ours.title: 'Ours', now 'Mine'" in found
    assert "comparisons: 'C1, C2', now 'C1, C4'" in found
    assert list_differences(old, old) == []
