"""The whole application with a fake engine and a small study, without a network."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from fastapi import FastAPI

from demo.page import build_page
from demo.web.gradio_internals import Page
from demo.web.limits import Limits, Rate
from demo.web.server import create_page_app
from human_eval.definition.definition import parse_definition
from human_eval.definition.prompts import Prompt
from human_eval.server.accounts import add_account
from human_eval.server.study_mount import PREPARING, StudyMount
from human_eval.study.store import StudyStore, create_study
from tests.support.fake_engine import FakeEngine, create_fake_context
from tests.support.studies import DEFINITION, fill, stored_clips

PASSWORD = "correct horse battery"
# Names that occur nowhere else, so that a leak is found.
NAMES = {'"ours"': '"quokka"', '"theirs"': '"wombat"', '"third"': '"numbat"'}
TITLES = {'"Ours"': '"Quokka 4"', '"Theirs"': '"Wombat 50"', '"Third"': '"Numbat 8"'}
SECRETS = ["quokka", "wombat", "numbat", "Quokka", "Wombat", "Numbat"]
NO_LIMITS = Limits(
    any_request=Rate(1e9, 1e9),
    join=Rate(1e9, 1e9),
    rating=Rate(1e9, 1e9),
    entering=Rate(1e9, 1e9),
    dropping=Rate(1e9, 1e9),
    waiting=10**9,
)


@dataclass(frozen=True)
class PageServer:
    """A running application and its parts."""

    app: FastAPI
    page: Page
    study: StudyMount
    store: StudyStore
    client: httpx.AsyncClient

    def visitor(self, address: str = "127.0.0.1", **settings) -> httpx.AsyncClient:
        """Return the browser of another visitor."""
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False, client=(address, 1))
        return httpx.AsyncClient(transport=transport, base_url="http://page", **settings)


def make_study(folder: Path, num_prompts: int = 6, k: int = 2) -> StudyStore:
    """Create a study with made-up clips, which the tests' clients need not watch."""
    text = DEFINITION.format(k=k, loops=0)
    for old, new in {**NAMES, **TITLES}.items():
        text = text.replace(old, new)
    prompts = [Prompt(index, f"prompt {index}") for index in range(num_prompts)]
    store = create_study(folder, parse_definition(text), prompts)
    fill(store, num_prompts)
    for clip in stored_clips(store):
        (store.media / clip.stored_name).write_bytes(random.Random(clip.sha256).randbytes(1000))
    add_account(folder, "ada", PASSWORD, "admin")
    return store


@asynccontextmanager
async def run_page_server(
    folder: Path, *, limits: Limits = NO_LIMITS, pace: float = 0.0, mcp: bool = False, **study
) -> AsyncIterator[PageServer]:
    """Run the application until the end of the block."""
    store = make_study(folder / "studies" / "test", **study)
    mount = StudyMount(lambda: store)
    context = create_fake_context(FakeEngine(pace).load, folder, mount)
    page = build_page(context)
    app = create_page_app(page, context, limits=limits, mcp=mcp)
    async with app.router.lifespan_context(app):
        async with asyncio.timeout(120):
            while mount.note == PREPARING:
                await asyncio.sleep(0.01)
        assert mount.store is not None, mount.note
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://page") as client:
            yield PageServer(app, page, mount, store, client)


async def enter(client: httpx.AsyncClient) -> None:
    reply = await client.post("/study/api/enter", json={"consent": True})
    assert reply.status_code == 200, reply.text


async def claim(client: httpx.AsyncClient) -> dict:
    return (await client.post("/study/api/claim", json={})).json()


async def vote(client: httpx.AsyncClient, token: str, choice: str = "left", **changes):
    answers = {key: {"choice": choice, "seconds": 2.5} for key in ("Q1", "Q2")}
    body = {"assignment": token, "answers": answers, "loops": 2, **changes}
    return await client.post("/study/api/submit", json=body)


async def sign_in(client: httpx.AsyncClient, name: str = "ada", password: str = PASSWORD):
    return await client.post("/admin/sign-in", data={"name": name, "password": password})
