"""One served study for all tests of a worker, and a browser context for each rater."""

import re
from collections.abc import Callable, Iterator

import pytest

from tests.human_eval.browser.rater_page import PATIENCE
from tests.support.rated_study import RatedStudy, make_study

QUOTA = '\n[quotas]\nper_study = 3\n\n[[providers]]\nkey = "prolific"\n'


@pytest.fixture(scope="session")
def study(tmp_path_factory) -> Iterator[RatedStudy]:
    """Serve sixty pairs with clips of half a second; each rater answers three pairs."""
    folder = tmp_path_factory.mktemp("rated") / "study"
    store = make_study(folder, pairs=60, frames=8, extra=QUOTA)
    study = RatedStudy(store)
    study.start()
    yield study
    study.stop()
    store.close()


@pytest.fixture
def open_rater(chromium) -> Iterator[Callable]:
    """Open the page as a new rater; it must not write an unexpected error to its console."""
    contexts, errors = [], []

    def open_one(study, path="/rate", *, width=1280, height=900, expect="", **options):
        context = chromium.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        context.set_default_timeout(1000 * PATIENCE)
        page = context.new_page()

        def note(text):
            if not (expect and re.search(expect, text)):
                errors.append(text)

        page.on("console", lambda line: note(line.text) if line.type == "error" else None)
        page.on("pageerror", lambda error: note(str(error)))
        if path:
            page.goto(study.url + path)
            page.locator("main:not([hidden])").wait_for()
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert errors == []
