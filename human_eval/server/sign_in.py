"""Who comes in, by which way, and how they are known from then on.

just so      anybody, where the study is anonymous
by a link    anybody who holds one: it is signed, and names a crowd platform or nobody
invited      one person, whom the signed invitation names
as staff     with a name and a password

What a browser brings is checked once. From then on a signed cookie says who they are: a number, and
the parameters that their platform wants back in the end.
"""

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request, Response
from sqlalchemy import Connection, bindparam, select

from human_eval.definition.platforms import finish_address, read_parameters, study_address
from human_eval.errors import NotYours
from human_eval.server.accounts import Door, read_accounts
from human_eval.server.http import EnterBody
from human_eval.storage.events import record
from human_eval.storage.keys import Keys
from human_eval.storage.tables import Rater
from human_eval.study.store import StudyStore, enter

COOKIE = "human_eval_rater"
COOKIE_SECONDS = 30 * 86_400
NOBODY_IN_PARTICULAR = ("anonymous", "link")  # providers whose raters have no name


@dataclass(frozen=True)
class Arrival:
    """Somebody who may come in."""

    provider: str
    name: str  # as the provider knows them; empty for nobody in particular
    session: str = ""
    kept: Mapping[str, str] = field(default_factory=dict)  # what the platform wants back


@dataclass(frozen=True)
class Pass:
    """Who a rater is, as the cookie says it."""

    rater_id: int
    provider: str
    kept: Mapping[str, str]

    def sign(self, keys: Keys) -> str:
        """Return the cookie's value."""
        return keys.sign("rater", [self.rater_id, self.provider, dict(self.kept)])


def read_pass(keys: Keys, request: Request) -> Pass:
    """Return who sent the request.

    Raises:
        NotYours: the cookie is missing or not ours.
    """
    token = request.cookies.get(COOKIE)
    if token is None:
        raise NotYours("Expected a rater's cookie, got none. Enter the study first.")
    match keys.read("rater", token):
        case [int(rater_id), str(provider), dict(kept)]:
            return Pass(rater_id, provider, kept)
    raise NotYours("Expected a rater's cookie of this version, got an older one. Enter again.")


async def recognise(store: StudyStore, door: Door, body: EnterBody) -> Arrival:
    """Find out who comes, by the first of the ways that the body takes.

    Raises:
        NotYours: nobody may come in so.
        NotAcceptable: the platform's link lacks who comes.
    """
    if body.name is not None:
        await asyncio.to_thread(door.admit, body.name, body.password or "")
        return Arrival("staff", body.name)
    if body.invitation is not None:
        provider, name = (str(part) for part in store.keys.read("invitation", body.invitation))
        return Arrival(provider, name)
    if body.link is not None:
        [key] = store.keys.read("link", body.link)
        if key == "link":
            return Arrival("link", "")
        platform = store.definition.provider(str(key))
        kept = read_parameters(platform, body.parameters)
        return Arrival(platform.key, kept[platform.rater], kept.get(platform.session, ""), kept)
    if store.definition.anonymous:
        return Arrival("anonymous", "")
    raise NotYours("Expected an invitation, got none. Use the link that you were given.")


def admit(
    connection: Connection, store: StudyStore, arrival: Arrival, before: Pass | None, now: int
) -> Pass:
    """Write down that somebody agreed and came in; return their pass.

    Args:
        before: who this browser was so far. Nobody in particular stays the one they were, so that a
            second window is not a second person.
    """
    keys, name = store.keys, arrival.name
    if not name:
        if before is not None and before.provider == arrival.provider:
            if connection.execute(_KNOWN, {"rater": before.rater_id}).first():
                return before
        name = f"{store.rng.getrandbits(128):032x}"
    rater_id = enter(connection, keys, arrival.provider, name, now)
    consent = store.definition.consent.text
    payload = {"consent": hashlib.sha256(consent.encode()).hexdigest()[:16]}
    if arrival.session:
        payload["session"] = keys.pseudonym(f"{arrival.provider} session", arrival.session)
    actor = f"rater:{rater_id}"
    record(connection, "entered", actor=actor, subject="study", now=now, payload=payload)
    return Pass(rater_id, arrival.provider, arrival.kept)


def set_cookie(response: Response, keys: Keys, mine: Pass, *, embedded: bool) -> None:
    """Let the browser remember the pass, out of reach of scripts.

    Args:
        embedded: the page lives in another site's frame, so that its cookie is a third party's.
    """
    response.set_cookie(
        COOKIE,
        mine.sign(keys),
        max_age=COOKIE_SECONDS,
        httponly=True,
        secure=embedded,
        samesite="none" if embedded else "lax",
    )
    if embedded:
        response.headers["set-cookie"] += "; Partitioned"  # not known to Python before 3.14


def way_back(store: StudyStore, mine: Pass, code: str) -> str:
    """Return where the browser goes in the end; empty where there is no such place."""
    known = {provider.key for provider in store.definition.providers}
    if mine.provider not in known:
        return ""
    return finish_address(store.definition.provider(mine.provider), mine.kept, code)


def list_ways_in(store: StudyStore, page: str) -> dict[str, str]:
    """Return the addresses to hand out, by whom they are for.

    Args:
        page: address of the Rate page.
    """
    keys, definition = store.keys, store.definition
    ways: dict[str, str] = {"anybody": page} if definition.anonymous else {}
    ways["link"] = f"{page}?link={keys.sign('link', ['link'])}"
    for provider in definition.providers:
        platform = definition.provider(provider.key)
        ways[platform.key] = study_address(platform, page, keys.sign("link", [platform.key]))
    if read_accounts(store.folder):
        ways["staff"] = f"{page}?staff"
    return ways


def describe_ways_in(store: StudyStore) -> dict[str, Any]:
    """Say which ways are open to somebody who brings nothing."""
    return {
        "anonymous": store.definition.anonymous,
        "staff": bool(read_accounts(store.folder)),
    }


_KNOWN = select(Rater.id).where(Rater.id == bindparam("rater"), Rater.erased_at.is_(None))
