"""Raters on raw sockets: a client so light that a load test measures the server only."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


@dataclass
class Load:
    """What the raters saw."""

    claims: list[float] = field(default_factory=list)  # milliseconds
    media: list[float] = field(default_factory=list)
    submits: list[float] = field(default_factory=list)
    receipts: dict[str, dict[str, str]] = field(default_factory=dict)  # by token of the assignment
    failures: list[str] = field(default_factory=list)
    retries: int = 0


class VoteServer:
    """A process that serves a study (`vote_server.py`); tests kill and restart it."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.servers.vote_server", folder],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.port = self._read()
        self.child = 0

    def _read(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def start(self) -> None:
        """Start a server; requests wait in the socket until it is ready."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self.child = self._read()

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        """Kill the server."""
        os.kill(self.child, how)

    def close(self) -> None:
        """Stop the last server and the process that starts them."""
        if self.child:
            self.kill()
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


class Browser:
    """One rater's connection, kept open like a browser's."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.cookie = ""
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def request(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        """Send a request and return status and body.

        Raises:
            ConnectionError: the server is gone.
        """
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        assert self.reader is not None
        content = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nhost: test\r\ncontent-length: {len(content)}\r\n"
        head += f"content-type: application/json\r\ncookie: {self.cookie}\r\n\r\n"
        try:
            self.writer.write(head.encode() + content)
            await self.writer.drain()
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {line.partition(":")[0].lower(): line.partition(":")[2] for line in lines}
            received = await self.reader.readexactly(int(headers.get("content-length", "0")))
        except (asyncio.IncompleteReadError, OSError) as error:
            await self.close()
            raise ConnectionError("the server is gone") from error
        if "set-cookie" in headers:
            self.cookie = headers["set-cookie"].strip().partition(";")[0]
        return int(lines[0].split()[1]), received

    async def close(self) -> None:
        writer, self.reader, self.writer = self.writer, None, None
        if writer is not None:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


async def patiently(browser: Browser, load: Load, *request: Any) -> tuple[int, bytes]:
    """Repeat a request until it is answered, as the page does."""
    while True:
        try:
            status, body = await browser.request(*request)
        except ConnectionError:
            load.retries += 1
            await asyncio.sleep(0.02)
            continue
        if status not in (503, 507):
            return status, body
        load.retries += 1
        await asyncio.sleep(0.1)


async def rate(
    port: int,
    load: Load,
    rng: random.Random,
    going: Callable[[], bool],
    *,
    think: float = 0.0,
    watch: bool = True,
) -> None:
    """Enter, then claim, watch and answer until no pair is left or `going` returns False.

    Args:
        think: mean seconds between a receipt and the next claim, exponentially distributed.
        watch: load both clips of each pair.
    """
    browser = Browser(port)
    try:
        await _work(browser, load, rng, going, think, watch)
    finally:
        await browser.close()


async def _work(
    browser: Browser,
    load: Load,
    rng: random.Random,
    going: Callable[[], bool],
    think: float,
    watch: bool,
) -> None:
    status, body = await patiently(browser, load, "POST", "/api/enter", {"consent": True})
    questions = [question["key"] for question in json.loads(body)["study"]["questions"]]
    await asyncio.sleep(rng.random() * think)
    while going():
        started = time.perf_counter()
        status, body = await patiently(browser, load, "POST", "/api/claim", {})
        load.claims.append(1000 * (time.perf_counter() - started))
        if status != 200:
            load.failures.append(f"claim: {status} {body!r}")
            return
        pair = json.loads(body)
        if pair["assignment"] is None:
            return
        for side in ("left", "right") if watch else ():
            started = time.perf_counter()
            status, _ = await patiently(browser, load, "GET", "/" + pair[side])
            load.media.append(1000 * (time.perf_counter() - started))
            if status != 200:
                load.failures.append(f"media: {status}")
        if think:
            await asyncio.sleep(rng.expovariate(1 / think))
        side = rng.choice(["left", "right"])
        answers = {key: {"choice": side, "seconds": 3.0} for key in questions}
        body = {"assignment": pair["assignment"], "answers": answers, "loops": 2}
        started = time.perf_counter()
        status, body = await patiently(browser, load, "POST", "/api/submit", body)
        load.submits.append(1000 * (time.perf_counter() - started))
        if status == 200:
            load.receipts[pair["assignment"]] = json.loads(body)["answers"]
        else:
            load.failures.append(f"submit: {status} {body!r}")


def lost_receipts(store: Any, load: Load) -> list[str]:
    """Return the assignments whose receipts do not match the stored votes."""
    with store.read() as connection:
        rows = connection.exec_driver_sql(
            "SELECT v.assignment_id, v.question, v.choice, a.side_a FROM vote v "
            "JOIN assignment a ON a.id = v.assignment_id"
        ).all()
    other = {"left": "right", "right": "left"}
    stored = {
        (number, question): side if choice == "a" else other[side]
        for number, question, choice, side in rows
    }
    lost = []
    for token, answers in load.receipts.items():
        number, _ = store.keys.read("assignment", token)
        if any(stored.get((number, question)) != shown for question, shown in answers.items()):
            lost.append(token)
    return lost
