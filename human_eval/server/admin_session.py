"""A researcher who has signed in: the cookie that says so, and the token of each of their forms."""

from collections.abc import Mapping

from human_eval.errors import NotYours
from human_eval.server.accounts import read_accounts
from human_eval.study.store import StudyStore

COOKIE = "human_eval_researcher"
SIGNED_IN = 12 * 3_600_000  # milliseconds


def issue_cookie(store: StudyStore, name: str) -> str:
    """Return the cookie of somebody whose password was right."""
    return store.keys.sign("operator", ["cookie", name, store.clock()])


def issue_form_token(store: StudyStore, name: str) -> str:
    """Return what a form carries, so that no other site can send it."""
    return store.keys.sign("operator", ["form", name, store.clock()])


def who_is(store: StudyStore, cookies: Mapping[str, str]) -> str | None:
    """Return the researcher's name, or None for everybody else."""
    try:
        return _read(store, "cookie", cookies.get(COOKIE, ""))
    except NotYours:
        return None


def check_form(store: StudyStore, name: str, token: str) -> None:
    """Return if the form is one that we gave this researcher.

    Raises:
        NotYours: it is not, or it is too old.
    """
    if _read(store, "form", token) != name:
        raise NotYours("Expected your own form, got another's. Reload the page.")


def _read(store: StudyStore, kind: str, token: str) -> str:
    payload = store.keys.read("operator", token)
    if len(payload) != 3 or payload[0] != kind:
        raise NotYours("Expected another token, got one for something else. Sign in.")
    _, name, since = payload
    if not 0 <= store.clock() - since <= SIGNED_IN:
        raise NotYours("Expected somebody who signed in today, got an older visit. Sign in.")
    account = read_accounts(store.folder).get(name)
    if account is None or account["role"] != "admin":
        raise NotYours("Expected a researcher of this study, got somebody else. Sign in.")
    return str(name)


def has_researchers(store: StudyStore) -> bool:
    """Tell whether anybody can sign in at all."""
    return any(account["role"] == "admin" for account in read_accounts(store.folder).values())
