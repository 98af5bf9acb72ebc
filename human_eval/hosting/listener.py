"""Listen on an address and serve an application there until the process is interrupted."""

import asyncio
import errno
import logging
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from human_eval.errors import StudyError

BACKLOG = 1024  # connections that wait to be accepted
MAX_HEAD = 32_768  # bytes of a request's address and headers


def resolve(host: str) -> tuple[socket.AddressFamily, str]:
    """Return the numeric address of a host, with its family.

    Raises:
        StudyError: it has none.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as failure:
        raise StudyError(
            f"{host!r} is not the name of a host with an address. Use an address of this machine: "
            "127.0.0.1 for this machine only, 0.0.0.0 for the network."
        ) from failure
    family, _, _, _, (address, *_) = found[0]
    return family, str(address)


def listen(host: str, ports: Sequence[int]) -> socket.socket:
    """Listen on the first free port; port 0 is any free one.

    Raises:
        StudyError: none is free, or this machine does not have the address.
    """
    family, address = resolve(host)
    for port in ports:
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address, port))
            listener.listen(BACKLOG)
        except OSError as failure:
            listener.close()
            if failure.errno == errno.EADDRINUSE:
                continue
            message = f"Cannot listen on port {port} of {host}: {failure.strerror}."
            raise StudyError(message) from failure
        return listener
    taken = f"Port {ports[0]} of {host} is not free."
    if len(ports) > 1:
        taken = f"No port of {host} from {ports[0]} to {ports[-1]} is free."
    raise StudyError(f"{taken} Choose another.")


def address_of(listener: socket.socket) -> str:
    """Return the http address for a browser on this machine."""
    host, port, *_ = listener.getsockname()
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve_on(listener: socket.socket, app: ASGIApp, **options: Any) -> None:
    """Serve until interrupted.

    Args:
        options: of `uvicorn.Config`.
    """
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # `BehindProxy` applies them
        http="h11",  # 0.3 ms more a request than httptools, which takes headers of any size
        h11_max_incomplete_event_size=MAX_HEAD,
        timeout_keep_alive=20,
        **options,
    )
    logging.getLogger("uvicorn.error").addFilter(_keep_record)
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run([listener])


def _keep_record(record: logging.LogRecord) -> bool:
    """Return False for uvicorn's tracebacks of what is cancelled when the server ends.

    These are requests of open pages and, after a second Ctrl-C, the application's lifespan.
    """
    failure = record.exc_info[1] if record.exc_info else None
    text = str(record.msg)
    cancels = text.startswith("Cancel %s running task(s)")
    cancelled = isinstance(failure, asyncio.CancelledError) or text.endswith("CancelledError\n")
    return not (cancels or cancelled)
