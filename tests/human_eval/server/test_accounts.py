"""Accounts of staff: who may log in as what, and how often one may guess."""

import pytest

from human_eval.errors import NotYours, StudyError
from human_eval.server.accounts import ATTEMPTS, PERIOD, Door, add_account, read_accounts


def test_many_wrong_passwords_close_the_door_for_a_while(tmp_path):
    seconds = [0.0]
    door = Door(tmp_path, clock=lambda: seconds[0])
    add_account(tmp_path, "ada", "correct horse battery")
    for _ in range(ATTEMPTS):
        with pytest.raises(NotYours, match="name and its password"):
            door.admit("ada", "wrong")

    with pytest.raises(NotYours, match="Wait ten minutes"):
        door.admit("ada", "correct horse battery")
    seconds[0] = PERIOD
    door.admit("ada", "correct horse battery")


def test_a_raters_account_does_not_open_the_researchers_door(tmp_path):
    door = Door(tmp_path)
    add_account(tmp_path, "ada", "correct horse battery")
    add_account(tmp_path, "bob", "staple battery horse", role="admin")

    with pytest.raises(NotYours):
        door.admit("ada", "correct horse battery", role="admin")
    with pytest.raises(NotYours):
        door.admit("eve", "staple battery horse", role="admin")
    door.admit("bob", "staple battery horse", role="admin")


@pytest.mark.parametrize(
    "name, password, told",
    [
        ("ada", "short", "10 to 200 characters"),
        ("../ada", "correct horse battery", "letters, digits"),
        ("", "correct horse battery", "letters, digits"),
    ],
)
def test_an_account_that_will_not_do_is_refused(tmp_path, name, password, told):
    with pytest.raises(StudyError, match=told):
        add_account(tmp_path, name, password)

    assert read_accounts(tmp_path) == {}
