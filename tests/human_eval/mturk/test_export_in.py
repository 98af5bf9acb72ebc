"""The votes of two servers of one study are joined: completely, once, or not at all."""

from dataclasses import replace

import pandas as pd
import pytest
from sqlalchemy import select, update

from human_eval.cli.main import main
from human_eval.collection.assignment import claim, release_all
from human_eval.collection.submission import Answer
from human_eval.errors import StudyError
from human_eval.mturk.export_in import read_submissions
from human_eval.mturk.votes_in import import_submissions
from human_eval.reporting.export import write_export
from human_eval.storage.tables import AssignmentRow, ClipRow, PairRow
from human_eval.study.amendment import amend_study
from human_eval.study.queries import read_votes
from human_eval.study.simulation import Crowd, simulate
from human_eval.study.store import open_study
from tests.human_eval.collection.test_assignment import enter, finish
from tests.human_eval.study.test_amendment import rewrite
from tests.support.studies import (
    answer,
    claim_pair,
    define,
    exclude,
    find_defects,
    revoke,
    stored_clips,
    submit_answers,
)

sqlite_only = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def collect(store, folder, raters=1):
    """Let raters answer everything, and export it."""
    finish(store, enter(store, raters))
    return export(store, folder)


def export(store, folder, simulated=False):
    votes = read_votes(store, simulated=simulated)
    write_export(votes, store.definition, folder, clips=stored_clips(store))
    return folder


def join(store, folder):
    return import_submissions(store, read_submissions(folder, store).submissions)


def comparable(votes):
    keys = ["provider", "rater", "comparison", "prompt_index", "question"]
    return votes.drop(columns=["vote_id", "task_id"]).sort_values(keys, ignore_index=True)


def test_the_votes_of_two_servers_are_joined_once(make_store, tmp_path):
    here, there = make_store(k=2), make_store(k=2, seed=1)
    finish(here, enter(here, 1))
    folder = collect(there, tmp_path / "export")
    before = read_votes(here)

    first, second = join(here, folder), join(here, folder)

    assert (first.added, second.added, second.already_there) == (6, 0, 6)
    both = pd.concat([before, read_votes(there)])
    pd.testing.assert_frame_equal(comparable(read_votes(here)), comparable(both))
    assert find_defects(here) == []


def test_one_vote_too_many_leaves_the_study_as_it_was(make_store, tmp_path):
    here, there = make_store(k=2), make_store(k=2, seed=1)
    rater, other = enter(here, 2)
    finish(here, [rater])
    submit_answers(here, answer(here, claim_pair(here, other)))
    folder = collect(there, tmp_path / "export")
    before = read_votes(here)

    with pytest.raises(StudyError, match=r"1 of 6 submissions [\s\S]*`amend`"):
        join(here, folder)

    assert read_votes(here).equals(before)


@sqlite_only
def test_another_answer_of_the_same_rater_is_refused(make_store, tmp_path):
    here, there = make_store(k=2), make_store(k=2, seed=1)
    there = replace(there, keys=here.keys)  # a copied folder: people have the same pseudonyms
    for store, side in ((here, "left"), (there, "right")):
        [rater] = enter(store, 1)
        while lease := claim_pair(store, rater):
            other = "right" if lease.side_a == "left" else "left"
            submit_answers(store, answer(store, lease, lease.side_a if side == "left" else other))
    finish(there, enter(there, 2)[1:])
    before = read_votes(here)
    folder = export(there, tmp_path / "export")

    with pytest.raises(StudyError, match="stored answers to the pair differ"):
        join(here, folder)

    assert read_votes(here).equals(before)
    done = import_submissions(here, read_submissions(folder, here).submissions, keep_stored=True)
    assert (done.added, done.already_there, len(done.contradicting)) == (6, 0, 6)
    after = read_votes(here)
    assert set(after["rater"]) == set(read_votes(there)["rater"])
    assert comparable(after[after["rater"].isin(before["rater"])]).equals(comparable(before))


@sqlite_only
@pytest.mark.parametrize("end", ["expired", "returned", "overdue"])
def test_a_pair_that_ended_here_without_an_answer_takes_the_one_given_there(
    make_store, tmp_path, end
):
    here, there = make_store(k=2), make_store(k=2, seed=1)
    there = replace(there, keys=here.keys)
    [rater] = enter(here, 1)
    with here.write() as connection:
        now, rng = here.clock(), here.rng
        assert claim(connection, here.definition, rater, session="visit", now=now, rng=rng)
        if end != "overdue":
            release_all(connection, rater, end)
    here.clock.pass_seconds(here.definition.assignment.lease_seconds)
    folder = collect(there, tmp_path / "export")

    first, second = join(here, folder), join(here, folder)

    assert (first.added, second.already_there) == (6, 6)
    assert comparable(read_votes(here)).equals(comparable(read_votes(there)))
    assert find_defects(here) == []
    with here.read() as connection:
        assert set(connection.execute(select(AssignmentRow.session)).scalars()) == {""}


@sqlite_only
@pytest.mark.parametrize("keep_stored", [False, True])
def test_a_pair_that_its_rater_has_open_here_waits_for_its_end(make_store, tmp_path, keep_stored):
    here, there = make_store(k=2), make_store(k=2, seed=1)
    there = replace(there, keys=here.keys)
    [rater] = enter(here, 1)
    assert claim_pair(here, rater)
    folder = collect(there, tmp_path / "export")
    submissions = read_submissions(folder, here).submissions

    with pytest.raises(StudyError, match=r"1 of 6 submissions [\s\S]* open "):
        import_submissions(here, submissions, keep_stored=keep_stored)

    assert read_votes(here).empty
    here.clock.pass_seconds(here.definition.assignment.lease_seconds)
    assert import_submissions(here, submissions, keep_stored=keep_stored).added == 6


@sqlite_only
def test_strengths_of_a_scale_come_along(make_store, tmp_path):
    scale = '[[questions]]\nkey = "Q3"\nwording = "How much?"\nkind = "scale"\n'
    here, there = (make_store(k=2, extra=scale, seed=seed) for seed in (0, 1))
    [rater] = enter(there, 1)
    lease = claim_pair(there, rater)
    given = answer(there, lease)
    answers = {**given.answers, "Q3": Answer("left", 1.0, 2)}
    submit_answers(there, replace(given, answers=answers))
    folder = export(there, tmp_path / "export")

    join(here, folder)

    assert read_votes(here)["strength"].tolist() == read_votes(there)["strength"].tolist()
    assert 2 in read_votes(here)["strength"].tolist()
    assert join(here, folder).already_there == 1


@sqlite_only
def test_exclusions_and_checks_come_along(make_store, tmp_path):
    here, there = make_store(k=2), make_store(k=2, seed=1)
    gold = update(PairRow).where(PairRow.id == 1).values(kind="gold", target=None, gold_answer="a")
    for store in (here, there):
        with store.write() as connection:
            connection.execute(gold)
    alone = update(PairRow).where(PairRow.id == 2).values(kind="identical", target=None)
    with there.write() as connection:
        connection.execute(alone)
    [rater] = enter(there, 1)
    for pair in (1, 2):  # as if given by chance
        with there.write() as connection:
            connection.exec_driver_sql(
                "INSERT INTO assignment (pair_id, rater_id, comparison, simulated, ordinal, slot, "
                "state, attempt, side_a, assigned_at, expires_at) SELECT id, 1, comparison, 0, "
                f"id + 50, 0, 'open', 1, 'left', 0, 9999999999999 FROM pair WHERE id = {pair}"
            )
            connection.exec_driver_sql(f"UPDATE pair SET taken = 1 WHERE id = {pair}")
        lease = claim_pair(there, rater)
        submit_answers(there, answer(there, lease))
    finish(there, [rater])
    exclude(there, f"rater:{rater}", rule="too_fast", evidence={}, author="ada")
    folder = export(there, tmp_path / "export")

    read = read_submissions(folder, here)
    import_submissions(here, read.submissions)

    votes = read_votes(here)
    assert read.left_out == 1 and votes["excluded"].all()
    assert set(votes["exclusion_rule"]) == {"too_fast"}
    assert (votes["kind"] == "gold").sum() == 2


def excluded(store):
    """Return the rule by which each rater's answers are excluded, or None."""
    votes = read_votes(store)
    return {
        row.rater: row.exclusion_rule if row.excluded else None
        for row in votes.itertuples(index=False)
    }


@sqlite_only
def test_exclusions_that_were_made_after_an_import_come_along(make_store, tmp_path, capsys):
    here, there = make_store(k=2), make_store(k=2, seed=1)
    join(here, collect(there, tmp_path / "before", raters=2))
    event = exclude(there, "rater:1", rule="by hand", evidence={}, author="ada")
    folder = export(there, tmp_path / "after")

    main(["import-votes", str(here.folder), str(folder)])
    again = join(here, folder)

    assert "6 exclusions" in capsys.readouterr().out
    assert (again.added, again.already_there) == (0, 12)
    assert (again.excluded, len(again.differing)) == (0, 0)
    assert excluded(here) == excluded(there)
    assert sorted(map(str, excluded(here).values())) == ["None", "by hand"]

    revoke(there, event, author="ada", reason="a mistake")
    kept = join(here, export(there, tmp_path / "revoked"))

    assert (kept.excluded, len(kept.differing)) == (0, 6)
    assert sorted(map(str, excluded(here).values())) == ["None", "by hand"]


@sqlite_only
def test_exclusions_that_the_study_has_decided_on_are_left_as_they_are(make_store, tmp_path):
    here, there = make_store(k=2), make_store(k=2, seed=1)
    join(here, collect(there, tmp_path / "before", raters=2))
    for rater in (1, 2):
        exclude(there, f"rater:{rater}", rule="too_fast", evidence={}, author="ada")
    exclude(here, "rater:1", rule="too_fast", evidence={}, author="ada")
    event = exclude(here, "rater:2", rule="too_fast", evidence={}, author="ada")
    revoke(here, event, author="ada", reason="a careful rater")
    before = read_votes(here)

    done = join(here, export(there, tmp_path / "after"))

    assert (done.excluded, len(done.differing)) == (0, 6)
    assert read_votes(here).equals(before)


@sqlite_only
def test_votes_of_an_earlier_version_keep_it(make_store, tmp_path):
    here, there = make_store(k=1), make_store(k=1, seed=1)
    folder = collect(there, tmp_path / "export")
    more = rewrite(here, ("raters_per_pair = 1", "raters_per_pair = 2"))
    amend_study(here, more, reason="joined", author="ada")
    later = open_study(here.folder)

    join(later, folder)

    assert set(read_votes(later)["definition_hash"]) == {there.definition.hash}
    amended = open_study(there.folder)
    later.close(), amended.close()


@sqlite_only
def test_an_export_of_another_study_is_refused(make_store, tmp_path):
    here, there = make_store(k=2), make_store(k=2, extra="\n# another\n", seed=1)
    other_definition = collect(there, tmp_path / "definition")
    there = make_store(k=2, seed=2)
    with there.write() as connection:
        connection.execute(
            update(ClipRow).where(ClipRow.id == 1).values(sha256="x", source_sha256="x")
        )
    other_clips = collect(there, tmp_path / "clips")
    there = make_store(k=2, seed=3)
    simulate(there, Crowd(raters=2))
    simulated = export(there, tmp_path / "simulated", simulated=True)
    damaged = collect(make_store(k=2, seed=4), tmp_path / "damaged")
    (damaged / "votes.parquet").write_bytes(b"x")
    assert define().hash != there.definition.hash

    for folder, message in (
        (other_definition, "never had"),
        (other_clips, "other clips .* ours 0000"),
        (simulated, "simulated votes"),
        (damaged, "changed since the export"),
        (tmp_path, "not an export"),
    ):
        with pytest.raises(StudyError, match=message):
            join(here, folder)
    assert read_votes(here).empty


@sqlite_only
def test_the_command_joins_an_export(make_store, tmp_path, capsys):
    here, there = make_store(k=2), make_store(k=2, seed=1)
    folder = str(collect(there, tmp_path / "export"))

    main(["import-votes", str(here.folder), folder])

    assert "6 submissions imported, 0 were there already." in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["import-votes", str(here.folder), folder, "--answer", "Q1=x"])
