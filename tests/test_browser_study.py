"""Rate and Results on the page, and Administration beside it, in a real browser."""

import re
import urllib.request
from pathlib import Path

import pytest

from human_eval.staff import add_account
from human_eval.store import open_study

pytestmark = pytest.mark.browser
PASSWORD = "correct horse battery"


@pytest.fixture(scope="module")
def study(fake_server):
    """The folder of the starter study, once it is served."""
    for _ in range(600):
        with urllib.request.urlopen(fake_server.url + "/study/rate") as reply:
            if "html" in reply.read().decode():
                break
    folder = fake_server.data_dir / "studies" / "shapes-demo"
    add_account(folder, "ada", PASSWORD, "admin")
    return folder


def open_results(page):
    page.get_by_role("tab", name="Results", exact=True).click()
    page.locator(".figure3").wait_for()
    return page


def sideways(page) -> int:
    return page.evaluate("document.documentElement.scrollWidth - innerWidth")


def administration(chromium, server, width=1280):
    page = chromium.new_context(viewport={"width": width, "height": 900}).new_page()
    page.goto(f"{server.url}/admin/")
    page.get_by_label("Name").fill("ada")
    page.get_by_label("Password").fill(PASSWORD)
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Counts").wait_for()
    return page


@pytest.mark.parametrize("width", [1280, 390])
def test_the_first_start_offers_a_result_to_see(study, fake_server, open_page, width):
    page = open_results(open_page(fake_server, width=width))

    text = page.locator("#results-figure").inner_text()
    assert "SIMULATED VOTES" in text.upper()
    assert "System A" in text and "System B" in text
    assert not re.search("student|teacher", page.locator("#results-summary").inner_text(), re.I)
    assert page.locator(".stack").count() == 3
    assert sideways(page) <= 0


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


def test_a_closed_study_shows_names_and_its_votes_pair_by_pair(study, serve, chromium, open_page):
    server = serve("-m", "tests.serve_fake_engine")
    folder = server.data_dir / "studies" / "shapes-demo"
    with urllib.request.urlopen(server.url + "/study/rate"):
        pass
    store = open_study(folder)
    store.set_closed(True, author="ada")
    store.close()

    page = open_results(open_page(server))
    assert "Student, few steps" in page.locator("#results-figure").inner_text()
    page.wait_for_function(
        "[...document.querySelectorAll('#results-pair video')].length === 2 && "
        "[...document.querySelectorAll('#results-pair video')].every(v => v.readyState >= 2)"
    )
    first = page.locator("#results-pair .prompt").inner_text()
    page.locator("#results-place input").fill("2")
    page.locator("#results-place input").press("Enter")
    page.wait_for_function(
        "first => document.querySelector('#results-pair .prompt').innerText !== first", arg=first
    )
    assert page.locator("#results-pair tbody tr").count() == 9


@pytest.mark.parametrize("width", [1280, 390])
def test_a_researcher_pauses_and_resumes_by_keyboard(study, fake_server, chromium, width):
    page = administration(chromium, fake_server, width)

    page.get_by_role("button", name="Pause").focus()
    page.keyboard.press("Enter")
    page.get_by_text("paused", exact=True).wait_for()
    page.get_by_role("button", name="Resume").focus()
    page.keyboard.press("Enter")
    page.get_by_text("open", exact=True).wait_for()

    assert sideways(page) <= 0
    page.context.close()
