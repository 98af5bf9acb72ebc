"""Serve a study repeatedly: a process that has imported everything forks the servers.

    python -m tests.support.servers.vote_server STUDY [PORT]

Prints the port. For each line it reads, it waits until the previous server has ended, starts a new
one on the same socket, and prints its process number. Raters' connections wait in the socket.
"""

import gc
import os
import socket
import sys
from pathlib import Path

import uvicorn

from human_eval.server.vote_api import create_app
from human_eval.study.store import open_study


def serve(folder: Path, listener: socket.socket) -> None:
    config = uvicorn.Config(
        create_app(open_study(folder)), log_level="warning", access_log=False, http="h11"
    )
    uvicorn.Server(config).run([listener])


def main() -> None:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", int(sys.argv[2]) if len(sys.argv) > 2 else 0))
    listener.listen(1024)
    listener.set_inheritable(True)
    print(listener.getsockname()[1], flush=True)
    server = None
    gc.freeze()
    for _ in sys.stdin:
        if server is not None:
            os.waitpid(server, 0)
        server = os.fork()
        if server == 0:
            serve(Path(sys.argv[1]), listener)
            os._exit(0)
        print(server, flush=True)


if __name__ == "__main__":
    main()
