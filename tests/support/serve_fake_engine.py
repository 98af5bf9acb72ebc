"""Serve the page on the fake engine, as `app.py` serves it on the real one."""

import argparse
import time
from pathlib import Path

from demo.clip_store import Shelf
from demo.context import Studio
from demo.engine import Engine
from demo.page import build_page
from demo.session import Generate
from demo.starter import open_or_start
from demo.web.server import build_house, serve_house
from demo.web.study_mount import Desk
from tests.support.fake_engine import CONTENDERS, MODELS, FakeEngine


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--seconds-per-step", type=float, default=0.2)
    parser.add_argument("--seconds-to-load", type=float, default=0.0)
    parser.add_argument("--study", type=Path, help="folder; else a starter study is made")
    args = parser.parse_args()
    args.data_dir.mkdir(parents=True, exist_ok=True)
    fake = FakeEngine(args.seconds_per_step, args.data_dir / "engine.log")

    def load(name: str) -> Generate:
        time.sleep(args.seconds_to_load)
        return fake.generate

    engine = Engine(load, MODELS)
    studio = Studio(
        models=MODELS,
        default_model="fake-student",
        contenders=CONTENDERS,
        generate=engine.generate,
        readiness=engine.readiness,
        shelf=Shelf(args.data_dir / "clips"),
    )
    study = args.study or args.data_dir / "studies" / "shapes-demo"
    desk = Desk(lambda: open_or_start(study))
    house = build_house(build_page(studio, desk), studio, desk, when_open=engine.start)
    serve_house(house, port=args.port)


if __name__ == "__main__":
    main()
