"""How raters enter a study, and how they are recognized afterwards.

anonymous   anyone, if the study allows it
link        anyone who has the study's signed link
platform    a person whom a crowd platform sends, through the platform's signed link
invitation  one person, named in a signed invitation
staff       an account with a password

The entry is checked once. After that a signed cookie identifies the rater: it holds their number
and the parameters that their platform needs when they finish.
"""

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from fastapi import Request, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection, bindparam, select

from human_eval.collection.raters import enter
from human_eval.definition.platforms import (
    Provider,
    finish_address,
    read_parameters,
    session_name,
    study_address,
)
from human_eval.errors import NotAcceptable, NotYours
from human_eval.server.accounts import Authenticator, read_accounts
from human_eval.storage.events import record
from human_eval.storage.keys import BROKEN_LINK, Keys
from human_eval.storage.tables import Rater
from human_eval.study.store import StudyStore

COOKIE = "human_eval_rater"
COOKIE_SECONDS = 30 * 86_400


class EntryBody(BaseModel):
    """A request to enter. Of name, invitation and link, the first that is set counts."""

    model_config = ConfigDict(extra="forbid", strict=True)

    consent: bool
    invitation: str | None = None
    link: str | None = None
    parameters: dict[str, str] = Field({}, max_length=20)  # that the platform added to the link
    name: str | None = Field(None, max_length=64)
    password: str | None = Field(None, max_length=200)


@dataclass(frozen=True)
class Identity:
    """Who may enter."""

    provider: str
    name: str  # as the provider knows the person; empty for anonymous raters
    parameters: Mapping[str, str] = field(default_factory=dict)  # that the platform needs back


@dataclass(frozen=True)
class RaterSession:
    """What the cookie holds about a rater."""

    rater_id: int
    provider: str
    parameters: Mapping[str, str]


def read_session(keys: Keys, request: Request) -> RaterSession:
    """Return the rater who sent the request.

    Raises:
        NotYours: the cookie is missing, forged, or of an older version.
    """
    token = request.cookies.get(COOKIE)
    if token is None:
        raise NotYours("You have not entered this study yet. Open the link you were given.")
    match keys.read("rater", token):
        case [int(rater_id), str(provider), dict(parameters)]:
            return RaterSession(rater_id, provider, parameters)
    raise NotYours("The study was updated. Open the link you were given again.")


async def identify(store: StudyStore, authenticator: Authenticator, body: EntryBody) -> Identity:
    """Check what the browser brings and return who may enter.

    Raises:
        NotYours: the password, invitation or link is wrong, or the study needs one.
        NotAcceptable: no consent, or the platform's link does not name the person.
    """
    if not body.consent:
        raise NotAcceptable("Please accept the consent text first.")
    if body.name is not None:
        await asyncio.to_thread(authenticator.check, body.name, body.password or "")
        return Identity("staff", body.name)
    if body.invitation is not None:
        provider, name = (str(part) for part in store.keys.read("invitation", body.invitation))
        return Identity(provider, name)
    if body.link is not None:
        [key] = store.keys.read("link", body.link)
        if key == "link":
            return Identity("link", "")
        platform = store.definition.provider(str(key))
        parameters = read_parameters(platform, body.parameters)
        return Identity(platform.key, parameters[platform.rater], parameters)
    if any(platform.rater in body.parameters for platform in store.definition.providers):
        raise NotYours(BROKEN_LINK)  # an anonymous session would not be paid
    if store.definition.anonymous:
        return Identity("anonymous", "")
    raise NotYours("This study is by invitation only. Open the link you were given.")


def open_session(
    connection: Connection,
    store: StudyStore,
    identity: Identity,
    previous: RaterSession | None,
    now: int,
) -> RaterSession:
    """Store that a person consented and entered; return their session.

    Args:
        previous: the browser's session so far. An anonymous rater keeps it, so that a second
            window does not count as a second person.
        now: Unix time, milliseconds.
    """
    keys, name = store.keys, identity.name
    if not name:
        if previous is not None and previous.provider == identity.provider:
            if connection.execute(_KNOWN, {"rater": previous.rater_id}).first():
                return previous
        name = f"{store.rng.getrandbits(128):032x}"
    rater_id = enter(connection, keys, identity.provider, name, now=now)
    consent = store.definition.consent.text
    session = RaterSession(rater_id, identity.provider, identity.parameters)
    payload = {"consent": hashlib.sha256(consent.encode()).hexdigest()[:16]}
    if hashed := hash_session(store, session):
        payload["session"] = hashed
    actor = f"rater:{rater_id}"
    record(connection, "entered", actor=actor, subject="study", now=now, payload=payload)
    return session


def hash_session(store: StudyStore, session: RaterSession) -> str:
    """Return the keyed hash of the session's name on its platform; empty if it has none."""
    platform = _find_platform(store, session)
    name = session_name(platform, session.parameters) if platform else ""
    return store.keys.pseudonym(f"{session.provider} session", name) if name else ""


def set_cookie(response: Response, keys: Keys, session: RaterSession, *, embedded: bool) -> None:
    """Store the session in the browser, where scripts cannot read it.

    Args:
        embedded: the page is shown in another site's frame, which makes this a third-party cookie.
    """
    response.set_cookie(
        COOKIE,
        keys.sign("rater", [session.rater_id, session.provider, dict(session.parameters)]),
        max_age=COOKIE_SECONDS,
        httponly=True,
        secure=embedded,
        samesite="none" if embedded else "lax",
    )
    if embedded:
        response.headers["set-cookie"] += "; Partitioned"  # Python's cookies lack it before 3.14


def finish_link(store: StudyStore, session: RaterSession, code: str, outcome: str) -> str:
    """Return the platform's address for a rater whose part ends; empty without a platform."""
    platform = _find_platform(store, session)
    return finish_address(platform, session.parameters, code, outcome) if platform else ""


def _find_platform(store: StudyStore, session: RaterSession) -> Provider | None:
    """Return the crowd platform of a session; None for another way to enter."""
    known = {provider.key for provider in store.definition.providers}
    return store.definition.provider(session.provider) if session.provider in known else None


def entry_links(store: StudyStore, page: str) -> dict[str, str]:
    """Return the links for raters, by provider.

    Args:
        page: address of the Rate page.
    """
    keys, definition = store.keys, store.definition
    links: dict[str, str] = {"anonymous": page} if definition.anonymous else {}
    links["link"] = f"{page}?link={keys.sign('link', ['link'])}"
    for platform in definition.providers:
        links[platform.key] = study_address(platform, page, keys.sign("link", [platform.key]))
    if read_accounts(store.folder):
        links["staff"] = f"{page}?staff"
    return links


_KNOWN = select(Rater.id).where(Rater.id == bindparam("rater"), Rater.erased_at.is_(None))
