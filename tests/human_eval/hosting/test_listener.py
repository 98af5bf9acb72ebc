"""A server on its own, in another process."""

import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from urllib.parse import urlsplit

import pytest

SERVER = """
import asyncio
from contextlib import asynccontextmanager

from starlette.routing import Router

from human_eval.hosting.listener import address_of, listen, serve_on


@asynccontextmanager
async def lifespan(app):
    try:
        yield
    finally:
        await asyncio.sleep(0.5)


async def stream(scope, receive, send):
    if scope["type"] == "lifespan":
        await Router(lifespan=lifespan)(scope, receive, send)
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b"more", "more_body": True})
            await asyncio.sleep(0.1)


listener = listen("127.0.0.1", [0])
print(address_of(listener), flush=True)
serve_on(listener, stream, timeout_graceful_shutdown=2)
"""


@pytest.mark.parametrize("interrupts", [1, 2])
def test_an_interrupted_server_ends_without_a_word_about_open_pages(interrupts):
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout
        with urllib.request.urlopen(server.stdout.readline().strip()) as page:
            assert page.read(4) == b"more"
            for _ in range(interrupts):
                server.send_signal(signal.SIGINT)
                time.sleep(0.5)
            assert server.wait(30) == 0
        assert server.communicate() == ("", "")


def test_a_request_whose_headers_do_not_end_is_given_up():
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        address = urlsplit(server.stdout.readline().strip())
        sent = 0
        with socket.create_connection((address.hostname, address.port), 30) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: page\r\n")
            with suppress(ConnectionError):
                while sent < 2**24:
                    sent += connection.send(b"x-a: " + b"a" * 2**16 + b"\r\n")
        server.send_signal(signal.SIGINT)

    assert sent < 2**24
