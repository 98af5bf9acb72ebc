"""The session of a signed-in researcher: a cookie, and a token in each form against forgery."""

from collections.abc import Mapping

from human_eval.errors import NotYours
from human_eval.server.accounts import read_accounts
from human_eval.study.store import StudyStore

COOKIE = "human_eval_researcher"
SESSION_SECONDS = 12 * 3600


def issue_cookie(store: StudyStore, name: str) -> str:
    """Return the cookie of a researcher who has just signed in."""
    return store.keys.sign("operator", ["cookie", name, store.clock()])


def issue_form_token(store: StudyStore, name: str) -> str:
    """Return the token of a researcher's forms, which another site cannot know."""
    return store.keys.sign("operator", ["form", name, store.clock()])


def read_researcher(store: StudyStore, cookies: Mapping[str, str]) -> str | None:
    """Return the name of the signed-in researcher, or None."""
    try:
        return _read(store, "cookie", cookies.get(COOKIE, ""))
    except NotYours:
        return None


def check_form_token(store: StudyStore, name: str, token: str) -> None:
    """Check that the form was given to this researcher.

    Raises:
        NotYours: it was not, or it is too old.
    """
    if _read(store, "form", token) != name:
        raise NotYours("This form belongs to another account. Reload the page and try again.")


def _read(store: StudyStore, kind: str, token: str) -> str:
    payload = store.keys.read("operator", token)
    if len(payload) != 3 or payload[0] != kind:
        raise NotYours("Your session is not valid. Sign in again.")
    _, name, since = payload
    if not 0 <= store.clock() - since <= 1000 * SESSION_SECONDS:
        raise NotYours("Your session has expired. Sign in again.")
    account = read_accounts(store.folder).get(name)
    if account is None or account["role"] != "admin":
        raise NotYours("This account may not run the study. Sign in with another one.")
    return str(name)


def has_researchers(store: StudyStore) -> bool:
    """Return whether any account may sign in."""
    return any(account["role"] == "admin" for account in read_accounts(store.folder).values())
