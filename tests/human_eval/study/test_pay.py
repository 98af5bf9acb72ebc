"""Paid raters: who did what, joined with the platform's own list, paid once."""

from dataclasses import replace
from decimal import Decimal

import pandas as pd
import pytest

from human_eval.cli.main import main
from human_eval.collection.endings import record_ending
from human_eval.collection.progress import is_screened_out
from human_eval.definition.definition import parse_definition
from human_eval.errors import StudyError
from human_eval.storage import events
from human_eval.study.amendment import amend_study
from human_eval.study.pay import count_countries, owed_bonuses, read_platform_export, write_bonuses
from human_eval.study.queries import read_votes
from human_eval.study.rater_table import tabulate_raters
from human_eval.study.store import open_study
from tests.support.studies import answer, claim_pair, enter_rater, submit_answers

EXTRA = """
[quotas]
per_study = 4
[codes]
done = "C1DONE"
screened_out = "C2OUT"
[pay]
per_pair = 0.205
[[providers]]
key = "prolific"
"""
ANN, BOB, EVE = (letter * 24 for letter in "abe")
sqlite_only = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def store(make_store):
    """Ann answers a whole session, Bob one pair; Eve only enters."""
    store = make_store(k=3, num_prompts=4, extra=EXTRA)
    for name, pairs in ((ANN, 4), (BOB, 1), (EVE, 0)):
        rater = enter_rater(store, "prolific", name)
        for _ in range(pairs):
            lease = claim_pair(store, rater)
            store.clock.pass_seconds(30)
            submit_answers(store, answer(store, lease, "left"))
    return store


def write_export(path, encoding="utf-8", separator=","):
    lines = [["Submission id", "Participant id", "Status", "Completion code"]]
    lines += [["s1", ANN, "APPROVED", "C1DONE"], ["s2", BOB, "RETURNED", "C1DONE"]]
    lines += [["s3", "f" * 24, "TIMED-OUT", ""]]
    path.write_text("\n".join(separator.join(line) for line in lines) + "\n", encoding=encoding)
    return path


def decide(store, decision, rater, reason="they asked for it"):
    with store.write() as connection:
        return decision(connection, rater, reason=reason, author="ada", now=store.clock())


def test_the_list_tells_pairs_minutes_outcome_and_code(store):
    table = tabulate_raters(store)

    assert table["rater"].iloc[0] == store.keys.pseudonym("prolific", ANN)
    assert list(table["pairs"]) == [4, 1, 0]
    assert list(table["minutes"]) == [2.0, 0.5, 0.0]
    assert list(table["outcome"]) == ["done", "unfinished", "entered"]
    assert list(table["code"]) == ["C1DONE", "", ""]


@sqlite_only
def test_countries_of_few_raters_are_not_named(store, tmp_path):
    table = tabulate_raters(store)
    export = write_export(tmp_path / "list.csv")
    voted = set(table["rater"][:2])
    with pytest.raises(StudyError, match="Country of residence"):
        count_countries(read_platform_export(export, store), table, voted)
    lines = export.read_text().splitlines()
    lines = [lines[0] + ",Country of residence", *(line + ",Peru" for line in lines[1:])]
    export.write_text("\n".join(lines) + "\n")
    listed = read_platform_export(export, store)

    assert count_countries(listed, table, voted) == {"other countries": 2}
    many = pd.concat([table.assign(rater=f"{n}" + table["rater"]) for n in range(5)])
    assert count_countries(listed, many, set(many["rater"])) == {"Peru": 10, "unknown country": 5}


def test_a_pair_loaded_ahead_takes_no_minutes_twice(make_store):
    store = make_store(num_prompts=4)
    rater = enter_rater(store, "test", "x")
    first, second = claim_pair(store, rater), claim_pair(store, rater, ahead=True)
    for lease in (first, second):
        store.clock.pass_seconds(60)
        submit_answers(store, answer(store, lease))

    assert list(tabulate_raters(store)["minutes"]) == [2.0]


@sqlite_only
def test_gold_is_counted_by_the_last_answer_to_the_primary_question(make_store):
    store = make_store(k=2, num_prompts=4)
    rater = enter_rater(store, "test", "x")
    lease = claim_pair(store, rater)
    with store.write() as connection:
        connection.exec_driver_sql(
            "UPDATE pair SET kind = 'gold', gold_answer = 'a', target = NULL "
            f"WHERE id = {lease.pair_id}"
        )
    wrong = "right" if lease.side_a == "left" else "left"
    submit_answers(store, answer(store, lease, wrong))
    assert list(tabulate_raters(store)[["gold_right", "gold_asked"]].iloc[0]) == [0, 1]
    submit_answers(store, answer(store, lease, lease.side_a, revision=1))

    assert list(tabulate_raters(store)[["gold_right", "gold_asked"]].iloc[0]) == [1, 1]


def test_who_was_told_done_stays_done_when_excluded_later(store):
    with store.write() as connection:
        for outcome in ("done", "screened_out"):
            record_ending(connection, 1, outcome, session="", now=store.clock())
    decide(store, events.exclude_by_hand, 1)
    decide(store, events.block, 2)

    table = tabulate_raters(store)

    assert list(table["outcome"])[:2] == ["done", "screened_out"]
    assert "by hand, they asked for it" in table["decision"].iloc[0]
    assert table["decision"].iloc[1] == "blocked: they asked for it"


def test_a_blocked_rater_gets_no_pairs_and_their_votes_count(store):
    decide(store, events.block, 2)
    with store.read() as connection:
        assert is_screened_out(connection, 2) and not is_screened_out(connection, 1)
    assert not read_votes(store)["excluded"].any()
    with pytest.raises(StudyError, match="blocked already"):
        decide(store, events.block, 2)

    decide(store, events.unblock, 2)

    with store.read() as connection:
        assert not is_screened_out(connection, 2)
    with pytest.raises(StudyError, match="not blocked"):
        decide(store, events.unblock, 2)


@pytest.mark.parametrize("decision", [events.exclude_by_hand, events.block])
@pytest.mark.parametrize("reason", ["", " \n", "x" * 501])
def test_a_decision_needs_a_reason_that_is_stored_whole(store, decision, reason):
    with pytest.raises(StudyError, match="reason"):
        decide(store, decision, 1, reason)


@sqlite_only
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_the_platforms_export_is_joined_by_the_column_of_its_ids(
    store, tmp_path, encoding, separator
):
    export = read_platform_export(write_export(tmp_path / "p.csv", encoding, separator), store)

    assert (export.provider, export.id_column) == ("prolific", "Participant id")
    assert export.rows["rater_number"].tolist()[:2] == [1, 2]
    assert pd.isna(export.rows["rater_number"].iloc[2])
    assert export.absent == [store.keys.pseudonym("prolific", EVE)]
    assert export.other_codes == [store.keys.pseudonym("prolific", BOB)]


@sqlite_only
@pytest.mark.parametrize(
    "codes, named", [(("C1DONE", "C2OUT"), 0), (("C1DONE", "C1DONE"), 1), (("C2OUT", "C2OUT"), 1)]
)
def test_a_code_is_compared_with_what_that_session_told(store, tmp_path, codes, named):
    sessions = [store.keys.pseudonym("prolific session", name) for name in ("s1", "s4")]
    with store.write() as connection:
        for session, outcome in zip(sessions, ("done", "screened_out"), strict=True):
            record_ending(connection, 1, outcome, session=session, now=store.clock())
    rows = [f"{name},{ANN},{code}" for name, code in zip(("s1", "s4"), codes, strict=True)]
    text = "\n".join(["Submission id,Participant id,Completion code", *rows])
    (tmp_path / "p.csv").write_text(text)

    export = read_platform_export(tmp_path / "p.csv", store)

    assert export.other_codes == [store.keys.pseudonym("prolific", ANN)] * named


@sqlite_only
def test_a_code_from_a_session_that_told_none_is_named(store, tmp_path):
    session = store.keys.pseudonym("prolific session", "s4")
    with store.write() as connection:
        record_ending(connection, 1, "done", session="s1's", now=store.clock())
        payload = {"session": session}
        events.record(
            connection, "entered", actor="rater:1", subject="study", now=0, payload=payload
        )
    (tmp_path / "p.csv").write_text(f"Session,Participant id,code\ns4,{ANN},C1DONE\n")

    export = read_platform_export(tmp_path / "p.csv", store)

    assert export.other_codes == [store.keys.pseudonym("prolific", ANN)]


@sqlite_only
def test_an_export_of_other_people_or_without_the_column_is_refused(store, tmp_path):
    (tmp_path / "p.csv").write_text("Participant id,Status\nnobody,APPROVED\nnone,APPROVED\n")

    with pytest.raises(StudyError, match="No column"):
        read_platform_export(tmp_path / "p.csv", store)
    with pytest.raises(StudyError, match="no column 'Worker'"):
        read_platform_export(tmp_path / "p.csv", store, id_column="Worker")
    for content in (b"\xff\x00\xfe", b"", b'a,b\n"x'):
        (tmp_path / "p.csv").write_bytes(content)
        with pytest.raises(StudyError, match="cannot be read"):
            read_platform_export(tmp_path / "p.csv", store)


@sqlite_only
def test_an_export_of_one_column_or_with_our_own_column_names_is_joined(store, tmp_path):
    for header, rest in (("id", ""), ("rater_number,rater,code", ",x,C1DONE")):
        (tmp_path / "p.csv").write_text(f"{header}\n{ANN}{rest}\n")

        export = read_platform_export(tmp_path / "p.csv", store)

        assert export.rows[export.id_column].tolist() == [ANN]
        assert export.rows["rater_number"].tolist() == [1]


@sqlite_only
def test_bonuses_are_rounded_to_cents_less_the_reward_and_paid_once(store, tmp_path):
    export = read_platform_export(write_export(tmp_path / "p.csv"), store)

    def owe(**options):
        return owed_bonuses(tabulate_raters(store), per_pair=0.205, reward=0.5, **options)

    total = write_bonuses(store, export, owe(), tmp_path / "bonus.csv", author="ada")

    assert (tmp_path / "bonus.csv").read_text() == f"{ANN},0.32\n{BOB},0.21\n"
    assert total == Decimal("0.53")
    assert owe() == {} and owe(again=True) == {1: Decimal("0.32"), 2: Decimal("0.21")}
    with pytest.raises(StudyError, match="owed"):
        write_bonuses(store, export, owe(), tmp_path / "more.csv", author="ada")
    assert not (tmp_path / "more.csv").exists()


@sqlite_only
def test_a_file_that_cannot_be_written_leaves_nobody_paid(store, tmp_path):
    export = read_platform_export(write_export(tmp_path / "p.csv"), store)
    owed = owed_bonuses(tabulate_raters(store), per_pair=1, reward=0)

    with pytest.raises(OSError):
        write_bonuses(store, export, owed, tmp_path / "none" / "b.csv", author="ada")

    assert owed_bonuses(tabulate_raters(store), per_pair=1, reward=0) == owed


@sqlite_only
def test_the_command_pays_excludes_and_stores_no_id(store, tmp_path, capsys):
    study, platform = str(store.folder), str(write_export(tmp_path / "p.csv"))
    main(["raters", study, "--block", BOB, "--reason", "rude", "--author", "ada"])
    main(["raters", study, "--exclude", store.keys.pseudonym("prolific", ANN), "--reason", "bot"])
    main(["raters", study, "--platform", platform, "--out", str(tmp_path / "joined.csv")])
    shown = capsys.readouterr().out
    assert "2 of 3 participants" in shown and "blocked: rude" in shown and "by hand, bot" in shown
    assert ANN in (tmp_path / "joined.csv").read_text()
    bonus = ["--bonus", str(tmp_path / "b.csv"), "--reward", "0"]

    with pytest.raises(SystemExit):  # both were decided against
        main(["raters", study, "--platform", platform, *bonus])
    main(["raters", study, "--unblock", BOB, "--reason", "a mistake"])
    main(["raters", study, "--platform", platform, *bonus])

    assert (tmp_path / "b.csv").read_text() == f"{BOB},0.21\n"
    stored = b"".join(path.read_bytes() for path in store.folder.rglob("*") if path.is_file())
    assert not any(name.encode() in stored for name in (ANN, BOB, EVE))


@sqlite_only
@pytest.mark.parametrize(
    "words, message",
    [
        ("--bonus b.csv --reward 1", "needs --platform"),
        ("--bonus b.csv --platform p.csv", "--reward"),
        ("--platform p.csv --simulated", "no platform"),
        ("--per-pair -1", "amount"),
        ("--reward nan", "amount"),
        ("--exclude nobody --reason x", "No rater has"),
        ("--block {bob}", "reason"),
        ("--out p.csv", "exists"),
        ("--platform none.csv", "none.csv"),
    ],
)
def test_a_wrong_request_is_refused_in_words(store, tmp_path, monkeypatch, capsys, words, message):
    write_export(tmp_path / "p.csv")
    monkeypatch.chdir(tmp_path)

    with pytest.raises(SystemExit) as exit:
        main(["raters", str(store.folder), *words.format(bob=BOB).split()])

    assert exit.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "b.csv").exists()


@pytest.fixture
def crowd(make_store):
    """A study with sessions of four pairs and no answers yet."""
    return make_store(k=1, num_prompts=8, extra=EXTRA)


def work(store, *sessions):
    """Answer pairs in sessions on the platform; each is (name, pairs, outcome told at its end)."""
    rater = enter_rater(store, "prolific", ANN)
    for session, pairs, outcome in sessions:
        for _ in range(pairs):
            store.clock.pass_seconds(30)
            submit_answers(store, answer(store, claim_pair(store, rater, session=session)))
        if outcome:
            with store.write() as connection:
                record_ending(connection, rater, outcome, session=session, now=store.clock())
    return store


def amend_quota(store, per_study):
    source = store.definition.source.replace("per_study = 4", f"per_study = {per_study}")
    definition = parse_definition(f"version = 2\n{source}")
    amend_study(store, definition, reason="the pilot was long", author="ada")
    return replace(open_study(store.folder), clock=store.clock, rng=store.rng)


def list_pay(store):
    """Return the rater's complete sessions, outcome and bonus at 0.10 a pair, 0.40 a session."""
    table = tabulate_raters(store)
    owed = owed_bonuses(table, per_pair=0.1, reward=0.4)
    return table["sessions_done"].iloc[0], table["outcome"].iloc[0], owed.get(1, 0)


@pytest.mark.parametrize(
    "sessions, expected",
    [
        # complete sessions
        ([("s1", 4, "done")], (1, "done", 0)),
        ([("s1", 4, "")], (1, "done", 0)),
        ([("s1", 4, "done"), ("s2", 4, "done")], (2, "done", 0)),
        ([("", 4, "done")], (1, "done", 0)),
        # two incomplete ones, together as long as a complete one
        ([("s1", 2, ""), ("s2", 2, "no_work_left")], (0, "no_work_left", Decimal("0.40"))),
        ([("s1", 2, ""), ("s2", 2, "")], (0, "unfinished", Decimal("0.40"))),
        ([("s1", 3, "technical"), ("s2", 3, "")], (0, "unfinished", Decimal("0.60"))),
        # a complete and an incomplete one
        ([("s1", 4, "done"), ("s2", 3, "")], (1, "unfinished", Decimal("0.30"))),
        ([("s1", 3, ""), ("s2", 4, "")], (1, "done", Decimal("0.30"))),
        ([("s1", 4, "done"), ("s2", 2, "no_work_left")], (1, "no_work_left", Decimal("0.20"))),
        # the rater goes back to an earlier session
        ([("s1", 2, ""), ("s2", 4, "done"), ("s1", 1, "")], (1, "unfinished", Decimal("0.30"))),
        # told that a shorter session is complete
        ([("s1", 3, "done"), ("s2", 1, "")], (1, "unfinished", 0)),
        ([("s1", 1, "done")], (1, "done", 0)),
    ],
)
def test_each_session_is_complete_by_its_own_pairs_or_as_it_was_told(crowd, sessions, expected):
    assert list_pay(work(crowd, *sessions)) == expected


@sqlite_only
@pytest.mark.parametrize("told", ["done", ""])
@pytest.mark.parametrize("per_study", [2, 3, 5, 8])
def test_a_complete_session_stays_complete_when_the_quota_is_amended(crowd, told, per_study):
    later = amend_quota(work(crowd, ("s1", 4, told), ("s2", 4, told)), per_study)

    assert list_pay(later) == (2, "done", 0)
    work(later, ("s3", 1, ""))
    assert list_pay(later) == (2, "unfinished", Decimal("0.10"))
    later.close()


@sqlite_only
def test_a_session_that_was_left_stays_incomplete_when_the_quota_is_lowered(crowd):
    later = amend_quota(work(crowd, ("s1", 2, "")), 2)

    assert list_pay(later) == (0, "unfinished", Decimal("0.20"))
    work(later, ("s2", 2, ""))
    assert list_pay(later) == (1, "done", 0)
    work(later, ("s1", 0, "done"))  # they came back to it
    assert list_pay(later)[:2] == (2, "done")
    later.close()


@sqlite_only
def test_a_session_that_goes_on_after_an_amendment_is_complete_once(crowd):
    later = amend_quota(work(crowd, ("s1", 4, "done")), 6)
    work(later, ("s1", 1, ""))
    assert list_pay(later) == (1, "done", Decimal("0.10"))

    work(later, ("s1", 1, "done"))

    assert list_pay(later) == (1, "done", Decimal("0.20"))
    later.close()


@sqlite_only
def test_an_outcome_stored_without_its_session_is_one_complete_session(crowd):
    work(crowd, ("s1", 3, ""))
    with crowd.write() as connection:
        record_ending(connection, 1, "done", session="", now=crowd.clock())

    assert list_pay(crowd) == (1, "done", 0)
