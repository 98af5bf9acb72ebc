"""A stand-in for the Hugging Face Hub on 127.0.0.1: data sets, Spaces, and the ways it fails."""

import base64
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlparse

TOKEN = "hf_test"
# slow: the reply takes a second; refused: 429; cut: the connection ends before the commit;
# lost: the commit is made, and the connection ends before the reply.
Fault = Literal["", "slow", "refused", "cut", "lost", "forbidden"]


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: int = 0


class FakeHub(ThreadingHTTPServer):
    """Serves until the end of `running()`; `fault` decides about each request."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repositories: dict[str, Repository] = {}
        self.secrets: dict[str, str] = {}
        self.fault: Callable[[str, str], Fault] = lambda method, path: ""
        self.changing = threading.Lock()

    def add_data_set(self, name: str, folder: Path) -> None:
        """Store the files of a folder, as an upload does that leaves the secret out."""
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file() and path.name != "secret"
        }
        self.repositories[f"datasets/{name}"] = Repository(private=True, files=files)

    def handle_error(self, request, client_address) -> None:
        """Say nothing about clients that were killed."""

    @contextmanager
    def running(self) -> Iterator["FakeHub"]:
        thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub

    def do_HEAD(self) -> None:
        self._handle()

    def do_GET(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def log_message(self, *_) -> None:
        pass

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        path = unquote(urlparse(self.path).path)
        fault = self.server.fault(self.command, path)
        if fault == "slow":
            time.sleep(1)
        if fault == "cut":
            self.close_connection = True
            return
        if self.headers.get("authorization") != f"Bearer {TOKEN}":
            return self._reply(401, {"error": "no token"})
        if fault in ("refused", "forbidden"):
            return self._reply(429 if fault == "refused" else 403, {"error": fault})
        with self.server.changing:
            reply = self._answer(path, body)
        if fault == "lost":
            self.close_connection = True
            return
        if isinstance(reply, bytes):
            return self._send(200, reply, {"etag": f'"{_oid(reply)}"', "x-repo-commit": "0" * 40})
        self._reply(*reply)

    def _answer(self, path: str, body: bytes):
        hub, parts = self.server, path.strip("/").split("/")
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(part for part in (asked.get("organization"), asked["name"]) if part)
            name = name if "/" in name else f"me/{name}"
            kind = asked.get("type", "model")
            known = f"{kind}s/{name}" in hub.repositories
            hub.repositories.setdefault(
                f"{kind}s/{name}", Repository(asked["visibility"] == "private")
            )
            return (409 if known else 200), {"url": f"{hub.url}/{kind}s/{name}"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        name = "/".join(parts[1:4] if parts[0] == "api" else parts[:3])
        repository = hub.repositories.get(name)
        if repository is None:
            return 404, {"error": "no such repository", "code": "RepoNotFound"}
        files = repository.files
        if parts[0] != "api":  # DATASETS/owner/name/resolve/main/path
            content = files.get("/".join(parts[5:]))
            return content if content is not None else (404, {"code": "EntryNotFound"})
        match parts[4:]:
            case [] | ["revision", _]:
                about = {"id": "/".join(parts[2:4]), "private": repository.private, "sha": "0" * 40}
                return 200, about | {"siblings": [{"rfilename": path} for path in files]}
            case ["tree", _, *folder]:
                prefix = "".join(f"{part}/" for part in folder)
                found = [
                    {"type": "file", "path": path, "size": len(content), "oid": _oid(content)}
                    for path, content in files.items()
                    if path.startswith(prefix)
                ]
                return (200, found) if found or not folder else (404, {"code": "EntryNotFound"})
            case ["preupload", _]:
                return 200, {
                    "files": [
                        {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                        | {"oid": _oid(files[file["path"]]) if file["path"] in files else None}
                        for file in json.loads(body)["files"]
                    ]
                }
            case ["commit", _]:
                for line in body.splitlines():
                    entry = json.loads(line)
                    if entry["key"] == "file":
                        content = base64.b64decode(entry["value"]["content"])
                        files[entry["value"]["path"]] = content
                    elif entry["key"] == "deletedFile":
                        del files[entry["value"]["path"]]
                repository.commits += 1
                return 200, {"commitUrl": f"{hub.url}/{name}/commit/0", "commitOid": "0" * 40}
            case ["secrets"]:
                hub.secrets.update({json.loads(body)["key"]: json.loads(body)["value"]})
                return 200, {}
        return 404, {"error": path}

    def _reply(self, status: int, content: object) -> None:
        code = content.get("code", "") if isinstance(content, dict) else ""
        headers = {"content-type": "application/json", "x-error-code": code}
        self._send(status, json.dumps(content).encode(), headers)

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
