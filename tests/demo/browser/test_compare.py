import re
import time

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

TIMES = "[...document.querySelectorAll('#synced-player video')].map(v => v.currentTime)"
READY = f"{TIMES}.length === 3 && [...document.querySelectorAll('#synced-player video')]" + (
    ".every(v => v.readyState >= 2)"
)


@pytest.fixture
def compared(fake_server, open_page):
    """The Compare tab after a comparison."""
    page = open_page(fake_server)
    page.get_by_role("tab", name="Compare").click()
    page.get_by_label("Prompt to compare").fill("a blue heart jumping on a white background")
    page.get_by_label("Seed to compare").fill("7")
    page.get_by_role("button", name="Compare", exact=True).click()
    page.get_by_text(re.compile(r"Teacher · 12 steps · Denoising: step \d+ of 12")).wait_for()
    page.wait_for_function(READY, timeout=30_000)
    return page


def test_every_row_shows_its_video_time_and_network_calls(compared):
    captions = compared.locator("#synced-player figure").all_inner_texts()

    assert [caption.split("\n")[0] for caption in captions] == [
        "Teacher · 12 steps",
        "Teacher · 4 steps",
        "Student · 4 steps",
    ]
    calls = [re.search(r"(\d+) network calls", caption)[1] for caption in captions]
    assert calls == ["24", "8", "4"]
    assert all(re.search(r"\d\.\d\d s", caption) for caption in captions)
    check_clock(compared)


def check_clock(compared):
    """One clock drives all videos until it is paused."""
    counter = compared.locator("#synced-player .counter")
    before = counter.inner_text()
    compared.wait_for_function(
        "before => document.querySelector('#synced-player .counter').innerText !== before",
        arg=before,
    )

    compared.get_by_role("button", name="Pause").click()
    paused = counter.inner_text()
    time.sleep(0.3)  # more than two frames at 8 fps

    assert counter.inner_text() == paused
    assert compared.get_by_role("button", name="Play", exact=True).is_visible()
    for _ in range(3):
        compared.get_by_role("button", name="One frame forward").click()
    compared.get_by_role("button", name="One frame back").click()
    frame = (int(re.search(r"frame (\d+)", paused)[1]) - 1 + 2) % 16
    assert counter.inner_text() == f"frame {frame + 1} of 16"
    compared.wait_for_function(f"{TIMES}.every(t => Math.abs(t - {(frame + 0.5) / 8}) < 0.03)")


def test_stop_ends_the_comparison_within_a_step(fake_server, open_page):
    page = open_page(fake_server, width=390)
    page.get_by_role("tab", name="Compare").click()
    page.get_by_role("button", name="Compare", exact=True).click()
    page.get_by_text(re.compile(r"step \d+ of 12")).wait_for()

    page.locator("#compare-stop").click()
    page.locator("#compare-status").get_by_text("Stopped.").wait_for()

    assert fake_server.steps_until_stopped() <= 2


def test_an_empty_prompt_is_refused(fake_server, open_page):
    page = open_page(fake_server)
    page.get_by_role("tab", name="Compare").click()
    page.get_by_label("Prompt to compare").fill("")

    page.get_by_role("button", name="Compare", exact=True).click()

    expect(page.locator("#compare-status")).to_contain_text("The prompt is empty", timeout=20_000)
    assert page.get_by_role("button", name="Compare", exact=True).is_enabled()
