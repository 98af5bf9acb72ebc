"""Limits per visitor's address: requests per second, open connections, and sessions."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address, ip_network

from starlette.types import Scope

from demo.web.gradio_internals import JOIN
from human_eval.hosting.proxies import path_below_root

DROP = "/dropped"  # where the page sends videos that are dropped on it
STUDY_API = "/study/api/"  # the requests of the raters' page
ENTER = f"{STUDY_API}enter"
MAX_CLIENTS = 20_000  # whose rates are remembered
MAX_SESSIONS = 1_500  # below `gradio_internals.REMEMBERED_SESSIONS`
SESSIONS_PER_CLIENT = 300
SESSION_SECONDS = 900  # after which a session without a connection is forgotten


class TooMany(Exception):
    """A client exceeds a limit; the message is for its user."""


def visitor(scope: Scope) -> str:
    """Return the address that a request is counted under.

    A machine with IPv6 has a network of addresses and changes between them, so the network counts.
    """
    text = str((scope.get("client") or ("?", 0))[0])
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:  # a Unix socket, or a proxy's "unknown"
        return text[:64]
    if isinstance(address, IPv6Address):
        return str(address.ipv4_mapped or ip_network((address, 64), strict=False))
    return str(address)


@dataclass(frozen=True)
class Rate:
    """At most `burst` requests at once, and `per_second` in the long run."""

    per_second: float
    burst: float


@dataclass
class _Bucket:
    tokens: float
    at: float


class TokenBuckets:
    """A token bucket per client."""

    def __init__(self, rate: Rate, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def take(self, client: str) -> bool:
        """Take a token of the client, and return whether there was one."""
        now = self._clock()
        bucket = self._buckets.pop(client, None) or _Bucket(self._rate.burst, now)
        refill = (now - bucket.at) * self._rate.per_second
        bucket.tokens = min(self._rate.burst, bucket.tokens + refill)
        bucket.at = now
        self._buckets[client] = bucket
        while len(self._buckets) > MAX_CLIENTS:
            self._buckets.popitem(last=False)
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of an application. Many raters may share one address: each has a rate too."""

    any_request: Rate = Rate(200, 2_000)  # per address
    join: Rate = Rate(1, 30)  # computations, per address
    rating: Rate = Rate(5, 60)  # requests about votes, per rater; before they enter, per address
    entering: Rate = Rate(1, 60)  # entries and sign-ins, per address
    dropping: Rate = Rate(0.2, 10)  # videos dropped on the page, per address
    drops_in_all: int = 2  # videos that arrive at the same time
    waiting: int = 5  # computations in the queue, per address
    streams: int = 100  # open connections per address
    streams_in_all: int = 1_000
    _buckets: dict[str, TokenBuckets] = field(default_factory=dict, init=False, repr=False)
    _streams: dict[str, int] = field(default_factory=dict, init=False, repr=False)
    _slots: threading.Semaphore = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("any_request", "join", "rating", "entering", "dropping"):
            self._buckets[name] = TokenBuckets(getattr(self, name))
        object.__setattr__(self, "_slots", threading.Semaphore(self.drops_in_all))

    def check(self, client: str, scope: Scope, rater: int | None = None) -> None:
        """Count a request.

        Args:
            rater: the number in a cookie with a valid signature; anyone can make up other cookies.

        Raises:
            TooMany: it exceeds a rate.
        """
        path = path_below_root(scope)
        kinds = [("any_request", client)]
        if path.startswith(JOIN):
            kinds.append(("join", client))
        elif path == ENTER or (path.startswith("/admin") and scope["method"] == "POST"):
            kinds.append(("entering", client))
        elif path.startswith(STUDY_API):
            kinds.append(("rating", client if rater is None else f"rater {rater}"))
        elif path == DROP:
            kinds.append(("dropping", client))
        for kind, key in kinds:
            if not self._buckets[kind].take(key):
                raise TooMany("Too many requests. Wait a moment, then try again.")

    @contextmanager
    def receiving(self) -> Iterator[None]:
        """Count a dropped video that arrives, since it is held in memory.

        Raises:
            TooMany: others arrive already.
        """
        if not self._slots.acquire(blocking=False):
            raise TooMany("Other videos are being read. Wait a moment, then drop yours again.")
        try:
            yield
        finally:
            self._slots.release()

    @property
    def open_streams(self) -> int:
        """How many connections are open: every open page has one."""
        return sum(self._streams.values())

    @contextmanager
    def streaming(self, client: str) -> Iterator[None]:
        """Count a connection that stays open.

        Raises:
            TooMany: there are too many already.
        """
        count = self._streams.get(client, 0)
        if count >= self.streams or self.open_streams >= self.streams_in_all:
            raise TooMany("Too many open connections. Close other tabs of this page.")
        self._streams[client] = count + 1
        try:
            yield
        finally:
            self._streams[client] -= 1
            if not self._streams[client]:
                del self._streams[client]


@dataclass
class _Session:
    client: str
    seen: float
    connections: int = 0
    listening: int = 0  # of these, how many bring answers


class Sessions:
    """The open pages. A page draws the name of its session, and nobody else can know it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._sessions: OrderedDict[str, _Session] = OrderedDict()

    def __contains__(self, session: str) -> bool:
        return session in self._sessions

    def use(self, session: str, client: str) -> None:
        """Record that a session is in use. A new one counts towards the limit of its client.

        Raises:
            TooMany: there are too many sessions.
        """
        now = self._clock()
        known = self._sessions.get(session)
        if known is None:
            self._forget(now)
            mine = sum(other.client == client for other in self._sessions.values())
            if len(self._sessions) >= MAX_SESSIONS or mine >= SESSIONS_PER_CLIENT:
                raise TooMany("Too many open pages. Close other tabs of this page.")
            self._sessions[session] = _Session(client, now)
        else:
            known.seen = now
            self._sessions.move_to_end(session)

    def listens(self, session: str) -> bool:
        """Return whether a session has a connection that brings it the answers to its calls."""
        known = self._sessions.get(session)
        return known is not None and known.listening > 0

    @contextmanager
    def connected(self, session: str | None, *, listening: bool = False) -> Iterator[None]:
        """Keep a session as long as one of its connections is open.

        Args:
            listening: the connection brings answers.
        """
        known = self._sessions.get(session or "")
        if known is None:
            yield
            return
        known.connections += 1
        known.listening += listening
        try:
            yield
        finally:
            known.connections -= 1
            known.listening -= listening
            known.seen = self._clock()

    def _forget(self, now: float) -> None:
        old = [
            name
            for name, session in self._sessions.items()
            if not session.connections and now - session.seen > SESSION_SECONDS
        ]
        for name in old:
            del self._sessions[name]
