"""How often one address may ask, and how many sessions and open connections there may be."""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie

from starlette.types import Scope

REMEMBERED = 20_000  # clients
MAX_SESSIONS = 1_500  # below Gradio's 2,000, beyond which it drops sessions with waiting jobs
SESSIONS_PER_CLIENT = 300
SESSION_SECONDS = 900  # a session without a connection is forgotten after this long


class TooMany(Exception):
    """Somebody asks more often, or for more at a time, than a person would."""


@dataclass(frozen=True)
class Rate:
    """At most `burst` at once, and `per_second` in the long run."""

    per_second: float
    burst: float


@dataclass
class _Bucket:
    tokens: float
    at: float


class Buckets:
    """A token bucket for each client. Its clock never runs backwards."""

    def __init__(self, rate: Rate, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def take(self, client: str) -> bool:
        """Take a token, if there is one."""
        now = self._clock()
        bucket = self._buckets.pop(client, None) or _Bucket(self._rate.burst, now)
        refill = (now - bucket.at) * self._rate.per_second
        bucket.tokens = min(self._rate.burst, bucket.tokens + refill)
        bucket.at = now
        self._buckets[client] = bucket
        while len(self._buckets) > REMEMBERED:
            self._buckets.popitem(last=False)
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The rates of a house. Many raters may share one address, so that theirs is per cookie too."""

    any_request: Rate = Rate(200, 2_000)  # per address
    join: Rate = Rate(1, 30)  # computations, per address
    rating: Rate = Rate(5, 60)  # requests about votes, per rater
    entering: Rate = Rate(1, 60)  # new raters and sign-ins, per address
    streams: int = 100  # open connections per address
    streams_in_all: int = 1_000
    rater_cookie: str = ""
    _buckets: dict[str, Buckets] = field(default_factory=dict, init=False, repr=False)
    _streams: dict[str, int] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("any_request", "join", "rating", "entering"):
            self._buckets[name] = Buckets(getattr(self, name))

    def check(self, client: str, scope: Scope) -> None:
        """Count a request.

        Raises:
            TooMany: this one is too many.
        """
        path = scope["path"]
        kinds = [("any_request", client)]
        if path.startswith("/gradio_api/queue/join"):
            kinds.append(("join", client))
        elif path.startswith("/study/api/"):
            rater = _cookie(scope, self.rater_cookie)
            kinds.append(("rating", f"{client} {rater}") if rater else ("entering", client))
        elif path.startswith("/admin") and scope["method"] == "POST":
            kinds.append(("entering", client))
        for kind, key in kinds:
            if not self._buckets[kind].take(key):
                raise TooMany("Expected fewer requests, got too many. Wait a moment.")

    @contextmanager
    def streaming(self, client: str) -> Iterator[None]:
        """Count a connection that stays open.

        Raises:
            TooMany: there are too many already.
        """
        count = self._streams.get(client, 0)
        if count >= self.streams or sum(self._streams.values()) >= self.streams_in_all:
            raise TooMany("Expected fewer open connections, got too many. Close other tabs.")
        self._streams[client] = count + 1
        try:
            yield
        finally:
            self._streams[client] -= 1
            if not self._streams[client]:
                del self._streams[client]


def _cookie(scope: Scope, name: str) -> str:
    for header, value in scope["headers"]:
        if header == b"cookie":
            try:
                cookies = SimpleCookie(value.decode("latin-1"))
            except CookieError:
                return ""
            return cookies[name].value if name in cookies else ""
    return ""


@dataclass
class _Session:
    client: str
    seen: float
    connections: int = 0


class Sessions:
    """Whose sessions there are. Gradio's are named by the client, so the first one to come owns it.

    A session is a page that somebody has open.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._sessions: OrderedDict[str, _Session] = OrderedDict()

    def __contains__(self, session: str) -> bool:
        return session in self._sessions

    def bind(self, session: str, client: str) -> None:
        """Note that a client speaks of a session.

        Raises:
            TooMany: it is another client's, or there are too many.
        """
        now = self._clock()
        known = self._sessions.get(session)
        if known is None:
            self._forget(now)
            mine = sum(other.client == client for other in self._sessions.values())
            if len(self._sessions) >= MAX_SESSIONS or mine >= SESSIONS_PER_CLIENT:
                raise TooMany("Expected fewer open pages, got too many. Close other tabs.")
            self._sessions[session] = _Session(client, now)
        elif known.client != client:
            raise TooMany("Expected a session of your own, got another one's. Reload the page.")
        else:
            known.seen = now
            self._sessions.move_to_end(session)

    @contextmanager
    def kept(self, session: str | None) -> Iterator[None]:
        """Keep a session while a connection of it is open."""
        known = self._sessions.get(session or "")
        if known is None:
            yield
            return
        known.connections += 1
        try:
            yield
        finally:
            known.connections -= 1
            known.seen = self._clock()

    def _forget(self, now: float) -> None:
        old = [
            name
            for name, session in self._sessions.items()
            if not session.connections and now - session.seen > SESSION_SECONDS
        ]
        for name in old:
            del self._sessions[name]
