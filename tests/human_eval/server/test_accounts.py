"""Accounts with a password: roles, and how often one may guess."""

import pytest

from human_eval.errors import NotYours, StudyError
from human_eval.server.accounts import ATTEMPTS, PERIOD, Authenticator, add_account, read_accounts


def test_many_wrong_passwords_block_an_account_for_a_while(tmp_path):
    seconds = [0.0]
    authenticator = Authenticator(tmp_path, clock=lambda: seconds[0])
    add_account(tmp_path, "ada", "correct horse battery")
    for _ in range(ATTEMPTS):
        with pytest.raises(NotYours, match="name or the password is wrong"):
            authenticator.check("ada", "wrong")

    with pytest.raises(NotYours, match="ten minutes"):
        authenticator.check("ada", "correct horse battery")
    seconds[0] = PERIOD
    authenticator.check("ada", "correct horse battery")


def test_a_raters_account_is_not_a_researchers(tmp_path):
    authenticator = Authenticator(tmp_path)
    add_account(tmp_path, "ada", "correct horse battery")
    add_account(tmp_path, "bob", "staple battery horse", role="admin")

    with pytest.raises(NotYours):
        authenticator.check("ada", "correct horse battery", role="admin")
    with pytest.raises(NotYours):
        authenticator.check("eve", "staple battery horse", role="admin")
    authenticator.check("bob", "staple battery horse", role="admin")


@pytest.mark.parametrize(
    "name, password, message",
    [
        ("ada", "short", "10 to 200 characters"),
        ("../ada", "correct horse battery", "letters, digits"),
        ("", "correct horse battery", "letters, digits"),
    ],
)
def test_an_account_that_will_not_do_is_refused(tmp_path, name, password, message):
    with pytest.raises(StudyError, match=message):
        add_account(tmp_path, name, password)

    assert read_accounts(tmp_path) == {}
