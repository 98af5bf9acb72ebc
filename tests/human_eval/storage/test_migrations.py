"""Databases of earlier versions open, upgrade and restore without losing a row."""

import shutil
from dataclasses import replace

import pytest
from sqlalchemy import Boolean, MetaData, insert, inspect, select
from sqlalchemy.exc import IntegrityError

from human_eval.collection.quarantine import list_withheld
from human_eval.collection.submission import give_back
from human_eval.storage.database import create_file, open_database
from human_eval.storage.events import record
from human_eval.storage.migrate import downgrade_tables, table_version, upgrade_tables
from human_eval.storage.tables import AssignmentRow, Base
from human_eval.study.backup import open_to_restore, restore
from human_eval.study.queries import read_study_progress, read_votes
from human_eval.study.store import open_study
from tests.human_eval.collection.test_assignment import enter, finish
from tests.support.studies import (
    answer,
    claim_pair,
    find_defects,
    find_table_differences,
    fresh_schema,
    submit_answers,
    sweep_expired,
)

FORMER_NAMES = {"pair": "task", "pair_id": "task_id", "assigned_at": "leased_at"}


def rate(store):
    """Leave assignments in every state, a revision, checks, and a pair that was withheld."""
    raters = enter(store, 5)
    for rater in raters[:3]:
        claimed = claim_pair(store, rater)
        with store.write() as connection:
            give_back(connection, rater, claimed.assignment_id, "broken", now=store.clock())
    claim_pair(store, raters[3])
    store.clock.pass_seconds(3600)
    sweep_expired(store)
    claimed = claim_pair(store, raters[0])
    submit_answers(store, answer(store, claimed, "left"))
    submit_answers(store, answer(store, claimed, "right", revision=1))
    claim_pair(store, raters[4])
    finish(store, raters[:2])


def write_version_1(store, where):
    """Make a database by the DDL of version 1 and copy the rows of a study into it."""
    database = open_database(where)
    with database.write() as connection, store.read() as source:
        upgrade_tables(connection, "0001")
        former = MetaData()
        former.reflect(connection)
        for table in Base.metadata.sorted_tables:
            target = former.tables[FORMER_NAMES.get(table.name, table.name)]
            rows = [to_version_1(row, target) for row in source.execute(select(table)).mappings()]
            connection.execute(insert(target), rows)
            if connection.dialect.name == "postgresql" and "id" in table.columns:
                connection.exec_driver_sql(
                    f"SELECT setval(pg_get_serial_sequence('{target.name}', 'id'), {len(rows)})"
                )
    database.close()


def to_version_1(row, table):
    values = {FORMER_NAMES.get(name, name): value for name, value in row.items()}
    if values.get("state") == "open":
        values["state"] = "leased"
    if "subject" in values:
        values["subject"] = values["subject"].replace("pair:", "task:")
    values.pop("session", None)
    for column in table.columns:
        if isinstance(column.type, Boolean):
            values[column.name] = bool(values[column.name])
    return {name: value for name, value in values.items() if name in table.columns}


def describe(part):
    """Return a column, key, constraint or index as text."""
    if "sqltext" in part:
        del part["name"]  # version 1 wrote "ck_vote_ck_vote_..." where the tables say "ck_vote_..."
    # By its words: a clause prints its address.
    options = {name: str(clause) for name, clause in part.pop("dialect_options", {}).items()}
    return f"{part} {options}"


def describe_schema(connection):
    """Return every column, key, constraint, index and trigger of a database."""
    found = inspect(connection)
    tables = {}
    for name in Base.metadata.tables:
        parts = [
            *found.get_columns(name),
            found.get_pk_constraint(name),
            *found.get_unique_constraints(name),
            *found.get_check_constraints(name),
            *found.get_foreign_keys(name),
            *found.get_indexes(name),
        ]
        tables[name] = sorted(describe(part) for part in parts)
    triggers = (
        "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' ORDER BY name"
        if connection.dialect.name == "sqlite"
        else "SELECT trigger_name, event_manipulation, event_object_table, action_statement "
        "FROM information_schema.triggers WHERE trigger_schema = current_schema() ORDER BY 1"
    )
    return tables, connection.exec_driver_sql(triggers).all()


@pytest.fixture
def version_1(make_store, tmp_path, database_url):
    """A rated study, and a copy of its folder whose database is of version 1."""
    extra = "[checks]\ngold_share = 0.2\nmirror_share = 0.2\nmirror_distance = 1"
    store = make_store(k=2, num_prompts=4, extra=extra)
    rate(store)
    folder = tmp_path / "version1"
    shutil.copytree(store.folder, folder, ignore=shutil.ignore_patterns("study.db*", "study.url"))
    if database_url is None:
        create_file(folder / "study.db")
        write_version_1(store, folder / "study.db")
    else:
        url = fresh_schema(database_url)
        write_version_1(store, url)
        (folder / "study.url").write_text(url)
    return store, folder


def test_a_study_of_version_1_opens_without_losing_a_row(version_1):
    store, folder = version_1

    upgraded = open_study(folder)

    for table in Base.metadata.sorted_tables:
        with store.read() as before, upgraded.read() as after:
            rows, expected = (
                connection.execute(select(table).order_by(*table.primary_key)).all()
                for connection in (after, before)
            )
        assert rows == expected and rows, table.name
    assert read_votes(upgraded).equals(read_votes(store))
    assert set(read_study_progress(upgraded).assignments) == {
        "open",
        "submitted",
        "expired",
        "returned",
    }
    with upgraded.read() as connection:
        assert [pair.reports for pair in list_withheld(connection)] == [3]
    assert find_defects(upgraded) == []
    upgraded.close()


def test_an_upgraded_study_has_the_schema_of_a_new_one(version_1, make_store):
    _, folder = version_1
    new, upgraded = make_store(), open_study(folder)

    with new.read() as left, upgraded.write() as right:
        assert describe_schema(right) == describe_schema(left)
        assert find_table_differences(right) == []
    upgraded.close()


def test_the_migrations_make_what_the_tables_declare(make_store, tmp_path, database_url):
    store = make_store()
    where = fresh_schema(database_url) if database_url else tmp_path / "declared.db"
    if database_url is None:
        create_file(where)
    declared = open_database(where)
    with declared.write() as connection, store.read() as migrated:
        Base.metadata.create_all(connection)
        assert describe_schema(connection)[0] == describe_schema(migrated)[0]
    declared.close()


def test_an_upgraded_study_refuses_what_a_new_one_refuses(version_1):
    _, folder = version_1
    upgraded = open_study(folder)

    for statement in (
        "UPDATE vote SET choice = 'tie'",
        "DELETE FROM vote",
        "UPDATE event SET actor = 'x'",
        "DELETE FROM event",
        "UPDATE assignment SET state = 'leased'",
        "UPDATE assignment SET pair_id = 9999",
        "UPDATE pair SET taken = target + 1 WHERE kind = 'real'",
        "UPDATE assignment SET state = 'open', slot = 0",
    ):
        with pytest.raises(IntegrityError), upgraded.write() as connection:
            connection.exec_driver_sql(statement)
    upgraded.close()


def test_an_upgraded_study_takes_answers(version_1):
    store, folder = version_1
    upgraded = open_study(folder)
    before = len(read_votes(upgraded))

    upgraded = replace(upgraded, clock=store.clock)
    store.clock.pass_seconds(3600)  # the open assignment expires
    finish(upgraded, enter(upgraded, 3))

    assert len(read_votes(upgraded)) > before
    assert find_defects(upgraded) == []
    upgraded.close()


def test_a_downgrade_keeps_every_row_too(version_1):
    store, folder = version_1
    upgraded = open_study(folder)
    with upgraded.write() as connection:
        downgrade_tables(connection, "0001")
        assert table_version(connection) == "0001"
        states = connection.exec_driver_sql("SELECT DISTINCT state FROM assignment").scalars()
        assert set(states) == {"leased", "submitted", "expired", "returned"}
        upgrade_tables(connection)

    assert read_votes(upgraded).equals(read_votes(store))
    upgraded.close()


def test_pairs_of_version_2_go_to_the_session_that_their_rater_entered_last(make_store):
    store = make_store()
    [visitor, other] = enter(store, 2)
    with store.write() as connection:
        for session in ("first", "last"):
            about = {"actor": f"rater:{visitor}", "subject": "study", "now": store.clock()}
            record(connection, "entered", **about, payload={"consent": "c", "session": session})
    claim_pair(store, visitor), claim_pair(store, other)

    with store.write() as connection:
        downgrade_tables(connection, "0002")
        upgrade_tables(connection)
        rows = connection.execute(select(AssignmentRow.rater_id, AssignmentRow.session)).all()

    assert sorted(rows) == [(visitor, "last"), (other, "")]


def test_a_backup_of_version_1_restores(make_store):
    store = make_store(k=2, num_prompts=4)
    rate(store)
    before = read_votes(store)
    backup = store.backups / "study-20260101T000000000000.db"
    create_file(backup)
    write_version_1(store, backup)
    content = backup.read_bytes()
    finish(store, enter(store, 5))

    restore(store, backup)

    assert read_votes(store).equals(before)
    assert find_defects(store) == []
    assert backup.read_bytes() == content


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_restore_does_not_take_a_database_of_version_1_for_a_damaged_one(version_1):
    _, folder = version_1

    store, _ = open_to_restore(folder, folder / "study.db")

    assert list(folder.glob("*.damaged-*")) == []
    store.close()
