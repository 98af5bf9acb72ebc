"""A ZeroGPU Space: the real package `spaces`, a platform on 127.0.0.1, and no GPU."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from turbo.pipeline import load_pipeline
from turbo.provenance import compare_clips

# The forked process skips the steps that need a GPU: initialising it, and moving tensors onto it.
SPACE = """
import json, os, sys
import spaces
from spaces.zero import torch as zero
zero.init = zero.move = lambda *args, **kwargs: None
from dataclasses import replace
from pathlib import Path
from demo.clip_store import ClipStore
from demo.compute.engine import Engine
from demo.models import load_model, read_request, describe_models
from demo.session import EngineError
from demo.compute.zero_gpu import load_in_fork
from turbo.models.registry import MODELS

for name in ("shapes-turbo", "shapes-vcm", "shapes-teacher"):
    MODELS[name] = replace(MODELS[name], cpu_threads=None)

def fail(request, path):
    raise RuntimeError(f"no kernel for {request.prompt}")

def load(name):
    if name == "shapes-vcm":
        raise MemoryError("It needs 90 GB. Choose another GPU.")
    return fail if name == "shapes-teacher" else load_model(name)

names = ["shapes-turbo", "shapes-vcm", "shapes-teacher"]
engine = Engine(load_in_fork(load, 7860), names, ClipStore(Path(sys.argv[1])))
engine.start()
for name in [*names, "shapes-turbo"]:
    request = read_request(describe_models(), name, "a red star moving left", seed=3)
    stages, run = [], engine.run(name, request, lambda update: update.stage)
    try:
        while True:
            stages.append(next(run))
    except StopIteration as end:
        print(json.dumps({"clip": str(end.value.path), "stages": stages, "pid": os.getpid()}))
    except EngineError as refusal:
        print(json.dumps({"refusal": str(refusal)}))
"""


class Platform(ThreadingHTTPServer):
    """Stands for ZeroGPU's API: lends a GPU for three videos, and refuses one for the fourth."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.calls = []

    def scheduled(self):
        return [values for path, values in self.calls if path == "/schedule"]


class Handler(BaseHTTPRequestHandler):
    def answer(self):
        url = urlsplit(self.path)
        self.server.calls.append((url.path, parse_qs(url.query)))
        lent = {"idle": True, "nvidiaIndex": 0, "nvidiaUUID": "x", "allowToken": "x"}
        body = json.dumps(lent if url.path == "/schedule" else {}).encode()
        busy = url.path == "/schedule" and len(self.server.scheduled()) > 3
        self.send_response(503 if busy else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = answer

    def log_message(self, *args):
        pass


@pytest.fixture
def platform():
    server = Platform()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_a_video_is_made_in_a_process_with_a_gpu_and_a_refusal_reaches_the_visitor(
    platform, tmp_path
):
    done = subprocess.run(
        [sys.executable, "-c", SPACE, str(tmp_path)],
        env=os.environ
        | {
            "SPACES_ZERO_GPU": "true",
            "SPACES_ZERO_DEVICE_API_URL": f"http://127.0.0.1:{platform.server_port}",
            "OMP_NUM_THREADS": "1",
            "HOME": str(tmp_path),
        },
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    made, short, failed, refused = (
        json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")
    )
    assert short["refusal"] == "It needs 90 GB. Choose another GPU."
    assert "RuntimeError" in failed["refusal"] and "a red star" not in failed["refusal"]
    assert "a red star" not in done.stderr  # prompts are not logged

    [reported, *_] = platform.calls
    assert reported == ("/startup-report", {})
    asked = platform.scheduled()[0]
    allowed = next(values for path, values in platform.calls if path == "/allow")
    assert allowed["pid"] != [str(made["pid"])]  # another process may use the GPU
    assert int(asked["durationSeconds"][0]) > 10
    assert {"load", "text", "denoise", "decode", "encode"} <= set(made["stages"])
    pipeline = load_pipeline("shapes-turbo")
    here = pipeline("a red star moving left", seed=3).save(
        tmp_path / "here.mp4", enlarge=pipeline.card.enlarge
    )
    assert compare_clips(Path(made["clip"]), here).kind == "file"
    assert "GPU" in refused["refusal"]
