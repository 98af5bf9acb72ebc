"""The Rate and Results tabs of the page, and the administration, in a real browser."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from axe_playwright_python.sync_playwright import Axe

from human_eval.server.accounts import add_account
from human_eval.study.store import open_study
from tests.support.studies import set_closed

pytestmark = pytest.mark.browser
PASSWORD = "correct horse battery"


def wait_for_study(server) -> Path:
    """Return the folder of the starter study once it is served."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            with urlopen(server.url + "/study/rate"):
                return server.data_dir / "studies" / "shapes-demo"
        except HTTPError as preparing:
            assert preparing.code == 503
            time.sleep(0.2)
    raise TimeoutError("the starter study is not there")


@pytest.fixture(scope="module")
def study(fake_server) -> Path:
    """The starter study with a researcher's account."""
    folder = wait_for_study(fake_server)
    add_account(folder, "ada", PASSWORD, "admin")
    return folder


def open_results(page):
    page.get_by_role("tab", name="Results", exact=True).click()
    page.locator(".win-rates").wait_for(timeout=90_000)  # the statistics are imported behind it
    return page


def overflow(page) -> int:
    return page.evaluate("document.documentElement.scrollWidth - innerWidth")


def administration(chromium, server, width=1280, theme="light"):
    size = {"width": width, "height": 900}
    page = chromium.new_context(viewport=size, color_scheme=theme).new_page()
    page.goto(f"{server.url}/admin/")
    page.get_by_label("Name").fill("ada")
    page.get_by_label("Password").fill(PASSWORD)
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Counts").wait_for()
    return page


@pytest.mark.parametrize("width", [390, pytest.param(1280, marks=pytest.mark.slow)])
def test_the_first_start_shows_simulated_results(study, fake_server, open_page, width):
    page = open_results(open_page(fake_server, width=width))

    text = page.locator("#results-win-rates").inner_text()
    assert "SIMULATED VOTES" in text.upper()
    assert "System A" in text and "System B" in text
    assert not re.search("student|teacher", page.locator("#results-summary").inner_text(), re.I)
    assert page.locator(".stack").count() == 3
    assert overflow(page) <= 0


def test_the_figure_can_be_downloaded(study, fake_server, open_page):
    page = open_results(open_page(fake_server))

    with page.expect_download() as download:
        page.get_by_role("link", name="PNG").click()

    assert Path(download.value.path()).read_bytes()[:4] == b"\x89PNG"


def test_the_rate_tab_shows_the_raters_page(study, fake_server, open_page):
    page = open_page(fake_server)
    page.get_by_role("tab", name="Rate", exact=True).click()

    frame = page.frame_locator(".rate-frame")
    frame.get_by_role("button", name="Begin").wait_for()
    assert frame.get_by_role("checkbox").count() == 1


@pytest.fixture
def closed_study(study) -> Iterator[Path]:
    """The starter study, closed during one test."""
    store = open_study(study)
    set_closed(store, True, author="ada")
    yield study
    set_closed(store, False, author="ada")
    store.close()


def test_a_closed_study_shows_names_and_its_votes_pair_by_pair(
    closed_study, fake_server, open_page
):
    page = open_results(open_page(fake_server))
    assert "Student, few steps" in page.locator("#results-win-rates").inner_text()
    page.wait_for_function(
        "[...document.querySelectorAll('#results-pair video')].length === 2 && "
        "[...document.querySelectorAll('#results-pair video')].every(v => v.readyState >= 2)"
    )
    first = page.locator("#results-pair .prompt").inner_text()
    page.locator("#results-pair-number input").fill("2")
    page.locator("#results-pair-number input").press("Enter")
    page.wait_for_function(
        "first => document.querySelector('#results-pair .prompt').innerText !== first", arg=first
    )
    assert page.locator("#results-pair tbody tr").count() == 9
    page.locator("#results-pair .stamp").wait_for()

    with page.expect_response(is_empty_pair):
        page.get_by_label("People").check()
    page.locator("#results-pair").wait_for(state="detached")
    page.get_by_label("A simulation").check()
    page.locator("#results-pair .stamp").wait_for()


def is_empty_pair(response) -> bool:
    """Return whether a handler of the page has replied with no pair, and no other number."""
    return "/gradio_api/run/" in response.url and response.json()["data"][1:] == [""]


@pytest.mark.parametrize("width", [390, pytest.param(1280, marks=pytest.mark.slow)])
def test_a_researcher_pauses_and_resumes_by_keyboard(study, fake_server, chromium, width):
    page = administration(chromium, fake_server, width)

    page.get_by_role("button", name="Pause").focus()
    page.keyboard.press("Enter")
    page.locator(".state.paused").wait_for()
    page.get_by_role("button", name="Resume").focus()
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Pause").wait_for()

    assert overflow(page) <= 0
    page.context.close()


@pytest.mark.parametrize("theme", ["dark", pytest.param("light", marks=pytest.mark.slow)])
def test_axe_finds_no_violation_in_the_administration(study, fake_server, chromium, theme):
    page = administration(chromium, fake_server, theme=theme)

    assert violations(page) == []
    page.get_by_role("button", name="Sign out").click()
    page.get_by_label("Password").wait_for()
    assert violations(page) == []
    page.context.close()


@pytest.mark.parametrize("theme", ["dark", pytest.param("light", marks=pytest.mark.slow)])
def test_axe_finds_no_violation_in_the_figure(study, fake_server, open_page, theme):
    page = open_results(open_page(fake_server, theme=theme))

    assert violations(page, "#results-summary, #results-win-rates, #results-downloads") == []


def violations(page, context: str | None = None) -> list:
    """Return the rules that axe-core finds violated, with their elements."""
    found = Axe().run(page, context).response["violations"]
    return [(broken["id"], [node["html"][:120] for node in broken["nodes"]]) for broken in found]
