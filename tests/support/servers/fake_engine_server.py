"""Serve the page with the fake engine, as `app.py` serves it with the real one."""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from demo.models import Request
from demo.page import build_page
from demo.session import Updates
from demo.starter import open_or_create
from demo.web.server import create_page_app, serve
from human_eval.hosting.deployment import read_deployment
from human_eval.hosting.listener import listen
from human_eval.server.study_mount import StudyMount
from tests.support.fake_engine import FakeEngine, create_fake_context


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--seconds-per-step", type=float, default=0.2)
    parser.add_argument("--load-when", type=Path, help="load models when this file exists")
    parser.add_argument("--study", type=Path, help="folder; default: a new starter study")
    parser.add_argument("--mcp", action="store_true")
    args = parser.parse_args()
    args.data_dir.mkdir(parents=True, exist_ok=True)
    fake = FakeEngine(args.seconds_per_step, args.data_dir / "engine.log")

    def load(name: str) -> Callable[[Request, Path], Updates]:
        while args.load_when and not args.load_when.exists():
            time.sleep(0.05)
        return fake.load(name)

    study = args.study or args.data_dir / "studies" / "shapes-demo"
    deployment = read_deployment(None, None)
    mount = StudyMount(partial(open_or_create, study), frames=deployment.frames)
    context = create_fake_context(load, args.data_dir, mount)
    app = create_page_app(build_page(context), context, deployment=deployment, mcp=args.mcp)
    serve(app, listen("127.0.0.1", [args.port]))


if __name__ == "__main__":
    main()
