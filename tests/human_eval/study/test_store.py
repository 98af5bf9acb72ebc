"""The study as a whole: its tables, its copies, what it forgets and what it takes in."""

import shutil
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from datetime import UTC, datetime

import psycopg
import pytest
from sqlalchemy import event, make_url, select
from sqlalchemy.exc import IntegrityError, OperationalError

from human_eval.cli.main import main
from human_eval.collection.assignment import release_all
from human_eval.collection.quarantine import RefusedClip, list_refused
from human_eval.collection.raters import enter as let_in
from human_eval.definition.prompts import Prompt
from human_eval.errors import StorageBusy, StorageDamaged, StorageFull, StudyError
from human_eval.mturk.votes_in import ImportedSubmission, import_submissions
from human_eval.statistics.screening import consistency, screen
from human_eval.statistics.votes import check_votes
from human_eval.storage import events
from human_eval.storage.database import create_file, open_database, safe_sqlite, translate
from human_eval.storage.events import block, exclude_by_hand
from human_eval.storage.migrate import downgrade_tables, table_version, upgrade_tables
from human_eval.storage.tables import AssignmentRow, Event, PairRow, Rater, Study
from human_eval.study.backup import back_up, list_backups, open_to_restore, replace_backups, restore
from human_eval.study.erasure import erase_rater, erase_simulation
from human_eval.study.queries import count_answers, read_pairs, read_study_progress, read_votes
from human_eval.study.simulation import Crowd, simulate
from human_eval.study.store import create_study, open_study
from tests.human_eval.collection.test_assignment import enter, finish
from tests.support.studies import (
    add_clips,
    answer,
    claim_pair,
    define,
    enter_rater,
    exclude,
    find_defects,
    find_table_differences,
    fresh_schema,
    make_clip,
    pair_clips,
    revoke,
    set_closed,
    submit_answers,
)

sqlite_only = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
postgresql_only = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


def ballot(**changes) -> ImportedSubmission:
    about = {
        "provider": "mturk",
        "rater": "A1",
        "comparison": "C1",
        "prompt_index": 0,
        "side_a": "left",
        "answers": {"Q1": "tie", "Q2": "a"},
        "answered_at": datetime(2026, 11, 1, tzinfo=UTC),
        "seconds": 12.0,
        "source": "batch.csv, line 2",
    }
    return ImportedSubmission(**{**about, **changes})


def test_the_votes_frame_is_as_analyses_expect_it(make_store):
    store = make_store(k=2, num_prompts=3)
    finish(store, enter(store, 3))

    votes = check_votes(read_votes(store))

    assert len(votes) == 2 * 2 * 2 * 3
    assert set(votes["definition_hash"]) == {store.definition.hash}
    assert set(votes["system_a"]) == {"ours"}
    assert not votes["simulated"].any() and not votes["excluded"].any()
    assert len(check_votes(read_votes(store, datetime(2020, 1, 1, tzinfo=UTC)))) == 0


def test_the_tally_counts_what_the_frame_holds(make_store):
    store = make_store(k=2, num_prompts=4)
    raters = enter(store, 3)
    first = claim_pair(store, raters[1])
    submit_answers(store, answer(store, first, "left"))
    submit_answers(store, answer(store, first, "right", revision=1))
    finish(store, raters)
    exclude(store, f"rater:{raters[0]}", rule="by hand", evidence={"why": "test"}, author="me")
    exclude(store, f"assignment:{first.assignment_id}", rule="b", evidence={}, author="me")
    keys = ["comparison", "question", "choice", "side_a", "excluded"]

    tally = count_answers(store).set_index(keys)["count"].sort_index()

    votes = read_votes(store)
    assert votes["excluded"].any()
    counted = votes.assign(excluded=votes["excluded"].astype(int)).groupby(keys).size()
    assert tally.to_dict() == counted.to_dict()


def test_a_study_without_answers_has_an_empty_tally(make_store):
    assert count_answers(make_store()).empty
    assert read_votes(make_store()).empty


def test_a_closed_study_takes_no_ballots(make_store):
    store = make_store()
    set_closed(store, True, author="jo")

    with pytest.raises(StudyError, match="The study is closed"):
        import_submissions(store, [ballot()])
    with pytest.raises(StudyError, match="The study is closed"):
        simulate(store, Crowd(raters=2))

    assert read_votes(store).empty and read_pairs(store, simulated=True).empty


def test_an_exclusion_is_an_event_that_can_be_revoked(make_store):
    store = make_store()
    rater, other = enter(store, 2)
    finish(store, [rater, other])
    subject = f"rater:{rater}"
    number = exclude(store, subject, rule="too_fast", evidence={"fast": 9}, author="me")
    votes = read_votes(store)
    mine = votes["exclusion_rule"] == "too_fast"

    assert mine.any() and (votes["excluded"] == mine).all()
    with pytest.raises(StudyError, match="already excludes"):
        exclude(store, subject, rule="too_fast", evidence={}, author="me")
    revoke(store, number, author="me", reason="looked again")
    assert not read_votes(store)["excluded"].any()
    with pytest.raises(StudyError, match="in force"):
        revoke(store, number, author="me", reason="twice")


def test_the_tables_are_those_that_the_code_describes(make_store):
    store = make_store()
    with store.write() as connection:
        assert find_table_differences(connection) == []
        downgrade_tables(connection, "base")
        assert table_version(connection) is None
        upgrade_tables(connection)
        assert find_table_differences(connection) == []


def test_tables_of_a_newer_program_are_refused(make_store):
    store = make_store()
    with store.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    store.close()

    with pytest.raises(StudyError, match="newer program"):
        open_study(store.folder)


def test_a_definition_never_changes(make_store):
    store = make_store()

    for values in ({"definition": "x"}, {"definition_hash": "x"}, {"name": "x"}):
        with pytest.raises(IntegrityError), store.write() as connection:
            connection.execute(Study.__table__.update().values(**values))


def test_a_second_study_does_not_fit_in_a_folder(make_store):
    store = make_store()
    with pytest.raises(StudyError, match="already holds a study"):
        create_study(store.folder, define(), [Prompt(0, "x")])


def test_a_folder_with_the_url_of_a_study_takes_no_second_one(tmp_path, postgresql):
    url = fresh_schema(postgresql)
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "study.url").write_text("postgresql://elsewhere")

    with pytest.raises(StudyError, match="already holds a study"):
        create_study(folder, define(), [Prompt(0, "x")], database_url=url)

    # The database is still empty.
    create_study(tmp_path / "other", define(), [Prompt(0, "x")], database_url=url).close()


def test_pairs_wait_until_a_comparison_is_complete(tmp_path):
    store = create_study(tmp_path / "study", define(), [Prompt(0, "x"), Prompt(1, "y")])
    add_clips(store, [make_clip("ours", 0), make_clip("ours", 1), make_clip("theirs", 0)])
    assert read_pairs(store).empty
    assert pair_clips(store, partial=True) == {"C1": 1}
    assert add_clips(store, [make_clip("theirs", 1)]) == {"C1": 1}
    assert len(read_pairs(store)) == 2
    with pytest.raises(StudyError, match="already has a clip of ours for prompt 0"):
        add_clips(store, [make_clip("ours", 0, stored_name="again.mp4")])
    store.close()


def test_a_refused_clip_is_listed_until_a_sound_one_comes_in(tmp_path):
    store = create_study(tmp_path / "study", define(), [Prompt(0, "x")])

    def refused() -> list[RefusedClip]:
        with store.read() as connection:
            return list_refused(connection)

    for reason in ("no file", "cut short"):
        add_clips(store, [make_clip("ours", 0, status="quarantined", reason=reason)])
    assert refused() == [RefusedClip("ours", 0, "cut short")]
    add_clips(store, [make_clip("ours", 0)])
    assert refused() == []
    store.close()


def test_clips_of_differing_shapes_make_no_pair(tmp_path):
    store = create_study(tmp_path / "study", define(), [Prompt(0, "x")])
    add_clips(store, [make_clip("ours", 0), make_clip("theirs", 0, frames=12)], pair=False)

    with pytest.raises(StudyError, match="prompt 0 .*ours: .* 16 frames .*; theirs: .* 12"):
        pair_clips(store)

    assert read_pairs(store).empty
    store.close()


def test_a_backup_holds_what_was_acknowledged_and_brings_it_back(make_store):
    store = make_store(k=2, num_prompts=3)
    raters = enter(store, 3)
    submit_answers(store, answer(store, claim_pair(store, raters[0])))
    before = read_votes(store)
    copy = back_up(store)
    finish(store, raters)
    assert len(read_votes(store)) > len(before)
    for file in store.media.iterdir():  # a backup holds no clips
        file.unlink()

    missing = restore(store, copy)

    assert read_votes(store).equals(before)
    assert find_defects(store) == []
    assert len(missing) == 9
    finish(store, raters)
    assert find_defects(store) == []


@postgresql_only
def test_a_backup_fills_a_postgresql_database_that_was_lost(make_store, capsys):
    store = make_store(k=1, num_prompts=1)
    finish(store, enter(store, 1))
    before = read_votes(store)
    back_up(store)
    with store.write() as connection:
        [schema] = connection.exec_driver_sql("SELECT current_schema()").one()
        connection.exec_driver_sql(f"DROP SCHEMA {schema} CASCADE")
        connection.exec_driver_sql(f"CREATE SCHEMA {schema}")

    with pytest.raises(StudyError, match="is empty") as refusal:
        open_study(store.folder)
    main(["restore", str(store.folder)])

    assert "postgresql://" not in str(refusal.value)  # which may hold a password
    assert "Restored" in capsys.readouterr().out
    assert read_votes(store).equals(before)
    assert find_defects(store) == []


@postgresql_only
def test_an_empty_postgresql_database_takes_no_backup_of_another_study(make_store):
    store, other = make_store(k=2), make_store(k=3)
    copy = back_up(other)
    with store.write() as connection:
        downgrade_tables(connection, "base")

    with pytest.raises(StudyError, match="is a backup of another study"):
        open_to_restore(store.folder, copy)


@sqlite_only
def test_a_backup_on_a_full_disk_says_so_and_leaves_nothing(make_store, monkeypatch):
    store = make_store()

    def open_small(path):
        database = open_database(path)
        limit = "PRAGMA max_page_count=2"
        event.listen(database.writing, "connect", lambda driver, _: driver.execute(limit))
        return database

    monkeypatch.setattr("human_eval.study.backup.open_database", open_small)

    with pytest.raises(StorageFull, match="disk is full"):
        back_up(store)

    assert list(store.backups.iterdir()) == []


def test_a_damaged_backup_is_refused_and_nothing_changes(make_store):
    store = make_store()
    finish(store, enter(store, 2))
    copy = back_up(store)
    content = bytearray(copy.read_bytes())
    content[5000] ^= 1
    copy.write_bytes(content)
    before = read_votes(store)

    with pytest.raises(StudyError, match="has changed since it was written"):
        restore(store, copy)
    copy.with_suffix(".sha256").unlink()
    copy.write_bytes(b"not a database")
    with pytest.raises(StudyError, match="is not a backup"):
        restore(store, copy)
    with pytest.raises(StudyError, match="There is no file"):
        restore(store, copy.with_name("none.db"))
    assert read_votes(store).equals(before)


@sqlite_only
@pytest.mark.parametrize(
    "tables, message", [(True, "holds no study"), (False, "is not a backup of a study")]
)
def test_a_database_that_holds_no_study_is_no_backup(make_store, tmp_path, capsys, tables, message):
    store = make_store()
    other = tmp_path / "other.db"
    create_file(other)
    if tables:
        database = open_database(other)
        with database.write() as connection:
            upgrade_tables(connection)
        database.close()

    for lost in (False, True):
        if lost:
            store.close()
            shutil.copy(other, store.folder / "study.db")
        with pytest.raises(SystemExit):
            main(["restore", str(store.folder), str(other)])
        assert message in capsys.readouterr().err


def test_a_backup_of_another_study_is_refused(make_store):
    store, other = make_store(k=2), make_store(k=3)

    with pytest.raises(StudyError, match="is a backup of another study"):
        restore(store, back_up(other))


def test_an_erased_rater_is_known_to_nobody(make_store):
    store = make_store(k=1)
    rater = enter_rater(store, "prolific", "jane@example.org")
    finish(store, [rater])
    claim_pair(store, enter_rater(store, "lab", "other"))
    back_up(store)

    erase_rater(store, "prolific", "jane@example.org")
    fresh = replace_backups(store)

    votes = read_votes(store)
    assert len(votes) and votes["rater"].str.startswith("erased-").all()
    assert list_backups(store) == [fresh]
    with pytest.raises(StudyError, match="The study has no rater"):
        erase_rater(store, "prolific", "jane@example.org")
    assert enter_rater(store, "prolific", "jane@example.org") != rater
    assert find_defects(store) == []


def test_where_consent_says_so_an_erased_raters_answers_go_too(make_store):
    store = make_store(k=1, extra='[consent]\non_erase = "delete"')
    rater = enter_rater(store, "prolific", "jane")
    finish(store, [rater])

    done = erase_rater(store, "prolific", "jane")

    assert done.assignments_deleted == 6
    assert read_votes(store).empty
    assert len(finish(store, enter(store, 1))) == 6  # the pairs are free again
    assert find_defects(store) == []


def test_a_pair_that_is_claimed_during_an_erasure_is_not_lost(make_store, monkeypatch):
    store = make_store(k=1, extra='[consent]\non_erase = "delete"')
    rater = enter_rater(store, "prolific", "jane")

    def release_while_claiming(connection, number, state):
        release_all(connection, number, state)
        claims.append(pool.submit(claim_pair, store, rater))
        wait(claims, timeout=0.5)

    claims: list[Future] = []
    monkeypatch.setattr("human_eval.study.erasure.release_all", release_while_claiming)
    with ThreadPoolExecutor(1) as pool:
        erase_rater(store, "prolific", "jane")

    assert claims and find_defects(store) == []


def test_nobody_inherits_the_exclusions_of_an_erased_simulation(make_store):
    store = make_store()
    simulate(store, Crowd(raters=3, seed=1))
    with store.write() as connection:
        numbers = connection.execute(select(Rater.id)).scalars().all()
        for number in numbers:
            exclude_by_hand(connection, number, reason="x", author="lab", now=1)
            block(connection, number, reason="x", author="lab", now=1)
        numbers = connection.execute(select(AssignmentRow.id)).scalars().all()
        for number in numbers:
            events.exclude(
                connection, f"assignment:{number}", rule="slow", evidence={}, author="lab", now=1
            )

    erase_simulation(store)

    with store.read() as connection:
        assert events.exclusions(connection) == [] and events.blocks(connection) == {}


@postgresql_only
def test_who_comes_in_twice_at_once_is_one_rater(make_store):
    store = make_store()
    with ThreadPoolExecutor(1) as pool, store.database.writing.connect() as connection:
        first = let_in(connection, store.keys, "lab", "jane", now=store.clock())
        second = pool.submit(enter_rater, store, "lab", "jane")
        with suppress(TimeoutError):  # until it waits for the first
            second.result(timeout=0.5)
        connection.commit()
        number = second.result(timeout=10)

    assert number == first
    assert read_study_progress(store).raters == 1


def test_no_name_is_stored(make_store, database_url):
    store = make_store()
    enter_rater(store, "prolific", "jane@example.org")
    if database_url is None:
        files = b"".join(path.read_bytes() for path in store.folder.glob("study.db*"))
        assert b"jane" not in files
    assert "jane" not in repr(read_study_progress(store))


def test_simulated_raters_leave_no_trace_among_people(make_store):
    store = make_store(k=2, num_prompts=6)
    done = simulate(store, Crowd(raters=6, spammers=0.3))

    assert done == 2 * 2 * 6
    assert read_votes(store).empty
    simulated = check_votes(read_votes(store, simulated=True))
    assert simulated["simulated"].all() and set(simulated["provider"]) == {"simulated"}
    assert (read_pairs(store)["taken"] == 0).all()
    assert (read_pairs(store, simulated=True)["taken"] == 2).all()
    assert len(finish(store, enter(store, 2))) == 24

    with pytest.raises(StudyError, match="No pairs are left"):
        simulate(store, Crowd(raters=2))
    erase_simulation(store)
    assert read_votes(store, simulated=True).empty
    assert len(read_votes(store)) == 48
    assert find_defects(store) == []


def test_a_simulated_rater_cannot_touch_a_pair_of_people(make_store):
    store = make_store()
    [person] = enter(store, 1)
    lease = claim_pair(store, person)
    robot = enter_rater(store, "simulated", "r2", simulated=True)

    with pytest.raises(IntegrityError), store.write() as connection:
        connection.exec_driver_sql(
            f"UPDATE assignment SET rater_id = {robot} WHERE id = {lease.assignment_id}"
        )
    with pytest.raises(StudyError, match="reserved for simulated raters"):
        enter_rater(store, "simulated", "me")


def test_a_simulation_shows_what_was_planted_in_each_comparison(tmp_path):
    prompts = [Prompt(index, f"prompt {index}") for index in range(150)]
    store = create_study(tmp_path / "study", define(k=3), prompts)
    systems = ("ours", "theirs", "third")
    add_clips(store, [make_clip(system, index) for system in systems for index in range(150)])
    with pytest.raises(StudyError, match="no comparison 'C3'"):
        simulate(store, Crowd(win_rates={"C3": 0.5}))
    with pytest.raises(StudyError, match="between 0.001 and 0.999"):
        Crowd(win_rates={"C2": 1.2})

    simulate(store, Crowd(raters=20, win_rate=0.7, win_rates={"C2": 0.2}, abandon=0, seed=1))

    votes = read_votes(store, simulated=True)
    wins = (votes["choice"] == "a")[votes["question"] == "Q2"].groupby(votes["comparison"]).mean()
    assert abs(wins["C1"] - 0.7) < 3 * (0.21 / 450) ** 0.5
    assert abs(wins["C2"] - 0.2) < 3 * (0.16 / 450) ** 0.5
    store.close()


def test_simulated_raters_follow_the_rate_of_a_pair(tmp_path):
    prompts = [Prompt(index, f"prompt {index}") for index in range(20)]
    store = create_study(tmp_path / "study", define(k=3), prompts)
    add_clips(
        store, [make_clip(system, index) for system in ("ours", "theirs") for index in range(20)]
    )
    rates = {("C1", index): index % 2 for index in range(20)}

    simulate(store, Crowd(raters=5, win_rate=0.5, pair_rates=rates))

    votes = read_votes(store, simulated=True)
    wins = (votes["choice"] == "a")[votes["comparison"] == "C1"]
    # A rate of 1 counts as 0.999. Of 120 votes, more than two against it are rarer than 1 in 1,000.
    assert (wins != (votes["prompt_index"] % 2 == 1)).sum() <= 2
    store.close()


def test_simulated_raters_prefer_the_clip_of_higher_utility(tmp_path):
    store = create_study(
        tmp_path / "study", define(k=3), [Prompt(index, f"prompt {index}") for index in range(20)]
    )
    ours, theirs = (
        [make_clip(system, index) for index in range(20)] for system in ("ours", "theirs")
    )
    add_clips(store, ours + theirs)
    liked = {clip.stored_name for clip in ours[::2] + theirs[1::2]}

    simulate(
        store,
        Crowd(raters=5, win_rate=0.5),
        utility=lambda file: 50 * (file.parent == store.media and file.name in liked),
    )

    votes = read_votes(store, simulated=True)
    assert ((votes["choice"] == "a") == (votes["prompt_index"] % 2 == 0)).all()
    store.close()


def test_screening_finds_spammers_and_leaves_the_honest_alone(tmp_path):
    prompts = [Prompt(index, f"prompt {index}") for index in range(100)]
    text = "[checks]\ngold_share = 0.15\nmirror_share = 0.1"
    store = create_study(tmp_path / "study", define(k=3, extra=text), prompts)
    add_clips(
        store, [make_clip(system, index) for system in ("ours", "theirs") for index in range(100)]
    )

    simulate(store, Crowd(raters=15, spammers=0.2, seed=2))

    votes = read_votes(store, simulated=True)
    proposed = screen(votes, store.definition)
    fast = votes.groupby("rater")["seconds"].max() < 2
    assert set(proposed["rater"]) == set(fast[fast].index)
    assert {"too_fast"} <= set(proposed["rule"])
    again = consistency(votes)
    assert (again[again["check"] == "mirror"]["pairs"] > 0).all()
    store.close()


def test_imported_ballots_go_in_once_and_whole(make_store):
    store = make_store(k=2)
    several = [ballot(rater=name, prompt_index=index) for name in "AB" for index in range(3)]

    assert import_submissions(store, several).added == 6
    assert import_submissions(store, several).already_there == 6
    votes = read_votes(store)
    assert len(votes) == 12 and set(votes["provider"]) == {"mturk"}
    assert find_defects(store) == []


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"comparison": "C9"}, "no comparison 'C9', only C1"),
        ({"prompt_index": 99}, "no real pair of C1 for prompt 99"),
        ({"side_a": "up"}, "left or right"),
        ({"answers": {"Q1": "a"}}, r"answers \['Q1'\] instead of"),
        ({"answers": {"Q1": "a", "Q2": "tie"}}, "'tie' is not an answer to Q2; it takes a, b"),
        ({"seconds": -1.0}, "-1.0 seconds are not possible"),
        ({"answered_at": datetime(2026, 1, 1)}, "has no time zone"),
        ({"rater": "A1"}, "stored answers to the pair differ"),
        ({"rater": "third"}, "its 2 raters already"),
        ({"provider": "simulated"}, "reserved for simulated raters"),
    ],
)
def test_submissions_that_do_not_fit_are_listed_and_none_goes_in(make_store, changes, message):
    store = make_store(k=2)
    import_submissions(store, [ballot(answers={"Q1": "a", "Q2": "b"}), ballot(rater="second")])
    before = read_votes(store)

    with pytest.raises(StudyError, match=message):
        import_submissions(store, [ballot(rater="new", prompt_index=1), ballot(**changes)])

    assert read_votes(store).equals(before)


def test_an_unsafe_sqlite_is_refused(monkeypatch):
    driver = safe_sqlite()
    monkeypatch.setattr(driver, "sqlite_version_info", (3, 40, 1))

    with pytest.raises(StudyError, match=r"3\.51\.3 or newer"):
        safe_sqlite()


def test_commits_are_synced_to_disk(tmp_path):
    store = create_study(tmp_path / "study", define(), [Prompt(0, "x")])
    with store.write() as connection:
        settings = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
    assert settings == ["wal", 2, 1]
    modes = {path.name: path.stat().st_mode & 0o777 for path in store.folder.iterdir()}
    assert modes["secret"] == modes["study.db"] == 0o600 and modes["media"] == 0o700
    store.close()


def test_an_unknown_kind_of_database_is_refused():
    with pytest.raises(StudyError, match="postgresql://"):
        open_database("mysql://somewhere")


@pytest.mark.parametrize(
    "url",
    ["foo", "postgresql:/x", "postgresql://u:geheim@h:port/x", "postgresql://u:ge:heim@h:/b:1/x"],
)
def test_what_is_no_url_is_refused_without_showing_its_password(tmp_path, url):
    with pytest.raises(StudyError, match=r"not of the form postgresql://USER") as refusal:
        create_study(tmp_path / "study", define(), [Prompt(0, "x")], database_url=url)

    assert "heim" not in str(refusal.value)


def test_timeouts_of_a_database_url_are_kept():
    database = open_database("postgresql://me@host/study?connect_timeout=3")

    query = database.writing.url.query
    assert query["connect_timeout"] == "3" and query["tcp_user_timeout"] == "8000"


def test_a_postgresql_host_of_unknown_name_is_told_plainly(tmp_path):
    url = "postgresql://me:geheim@nowhere.invalid/study"
    with pytest.raises(StudyError, match="host name is unknown") as refusal:
        create_study(tmp_path / "study", define(), [Prompt(0, "x")], database_url=url)

    assert "geheim" not in str(refusal.value)


@pytest.mark.parametrize("part", ["username", "database"])
def test_a_user_or_a_database_that_postgresql_does_not_have_is_told_plainly(
    tmp_path, postgresql, part
):
    url = make_url(postgresql).set(**{part: "nobody_else"}).render_as_string(hide_password=False)
    with pytest.raises(StudyError, match="does not exist"):
        create_study(tmp_path / "study", define(), [Prompt(0, "x")], database_url=url)


@pytest.mark.parametrize(
    "message, meaning",
    [
        (
            'connection failed: FATAL:  password authentication failed for user "me"',
            "user or password is wrong",
        ),
        ("connection failed: fe_sendauth: no password supplied", "user or password is wrong"),
        ("connection failed: FATAL:  no pg_hba.conf entry for host", "no right to connect"),
        ("connection timeout expired", "did not respond"),
        ("connection is bad: connection to server on socket failed", "did not respond"),
        ("connection failed: FATAL:  the database system is starting up", "did not respond"),
        ("connection socket closed", "did not respond"),
        ("the connection is lost", "did not respond"),
        ("consuming input failed: server closed the connection unexpectedly", "did not respond"),
    ],
)
def test_a_connection_to_postgresql_that_fails_is_told_plainly(message, meaning):
    error = translate(OperationalError(None, None, psycopg.OperationalError(message)))

    assert isinstance(error, StorageBusy) and meaning in str(error)


@pytest.mark.parametrize(
    "error, kind",
    [
        (safe_sqlite().OperationalError("unable to open database file"), StorageBusy),
        (safe_sqlite().OperationalError("locking protocol"), StorageBusy),
        (safe_sqlite().DatabaseError("malformed database schema (x)"), StorageDamaged),
        (psycopg.errors.IoError("could not read block 3"), StorageBusy),
        (psycopg.errors.DataCorrupted("invalid page in block 3"), StorageDamaged),
        (psycopg.errors.InsufficientPrivilege("permission denied for schema public"), StudyError),
    ],
)
def test_errors_of_the_databases_machine_are_told_plainly(error, kind):
    assert type(translate(OperationalError(None, None, error))) is kind


def test_damage_that_is_read_after_the_first_rows_is_told_plainly(make_store):
    store = make_store(k=8, num_prompts=40)
    simulate(store, Crowd(raters=8, seed=1))
    if not store.database.is_sqlite:
        pytest.skip("PostgreSQL's client has all rows at once")
    with store.write() as connection:
        leaf = connection.exec_driver_sql("SELECT rootpage FROM sqlite_master WHERE name = 'vote'")
        root = leaf.scalar_one()
        size = connection.exec_driver_sql("PRAGMA page_size").scalar_one()
    store.database.close()
    path = store.folder / "study.db"
    content = bytearray(path.read_bytes())
    page = content[(root - 1) * size : root * size]
    assert page[0] == 5  # an inner page: its last child is the last leaf
    last = int.from_bytes(page[8:12], "big")
    content[(last - 1) * size : last * size] = b"\xff" * size
    path.write_bytes(content)

    with pytest.raises(StorageDamaged):
        read_votes(store, simulated=True)


def test_a_database_that_cannot_be_created_leaves_no_file(tmp_path, monkeypatch):
    class Driver:
        Error = safe_sqlite().Error

        @staticmethod
        def connect(path):
            raise safe_sqlite().OperationalError("disk I/O error")

    monkeypatch.setattr("human_eval.storage.database.safe_sqlite", lambda: Driver)
    with pytest.raises(StorageBusy):
        create_file(tmp_path / "study.db")

    assert list(tmp_path.iterdir()) == []


def test_a_database_that_can_only_be_read_is_told_plainly(make_store):
    store = make_store()
    kind = "PRAGMA query_only=ON" if store.database.is_sqlite else "SET TRANSACTION READ ONLY"
    engine = store.database.writing
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(kind))

    with pytest.raises(StorageBusy, match="read-only"):
        enter_rater(store, "test", "somebody")


def test_what_happened_is_written_down(make_store):
    store = make_store()
    set_closed(store, True, author="jo")

    with store.read() as connection:
        rows = connection.execute(select(Event.kind, Event.actor)).all()
        targets = connection.execute(select(PairRow.target).distinct()).scalars().all()
    assert ("closed", "jo") in rows
    assert targets == [2]
    for statement in ("UPDATE event SET actor = 'x'", "DELETE FROM event"):
        with pytest.raises(IntegrityError), store.write() as connection:
            connection.exec_driver_sql(statement)
