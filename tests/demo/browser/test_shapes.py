"""The page with the real models of this repository, started as a user starts it."""

import re

import pytest

pytestmark = pytest.mark.browser


@pytest.mark.slow
def test_the_model_draws_in_colour(shapes_server, open_page):
    page = open_page(shapes_server)
    page.get_by_label("Prompt", exact=True).fill("a red star moving left on a black background")

    page.get_by_role("button", name="Generate", exact=True).click()

    page.get_by_text("Done in").wait_for(timeout=60_000)
    page.wait_for_function("document.querySelector('#screen video')?.readyState >= 2")
    red, green, blue = page.evaluate(MEAN_COLOUR_OF_BRIGHT_PIXELS)
    assert red > 1.3 * green and red > 1.3 * blue
    assert page.get_by_text("does not know this prompt").first.is_hidden()


@pytest.mark.slow
def test_teacher_and_student_are_compared(shapes_server, open_page):
    page = open_page(shapes_server)
    page.get_by_role("tab", name="Compare").click()

    page.get_by_role("button", name="Compare", exact=True).click()

    page.locator("#compare-status").get_by_text("times as long").wait_for(timeout=120_000)
    captions = page.locator("#synced-player figure").all_inner_texts()
    calls = [int(re.search(r"(\d+) network calls", caption)[1]) for caption in captions]
    assert calls[:4] == [100, 100, 8, 4]  # both teachers, then few steps


MEAN_COLOUR_OF_BRIGHT_PIXELS = """() => {
  const video = document.querySelector('#screen video');
  const canvas = Object.assign(document.createElement('canvas'), {width: 32, height: 32});
  const context = canvas.getContext('2d');
  context.drawImage(video, 0, 0, 32, 32);
  const data = context.getImageData(0, 0, 32, 32).data;
  const bright = [...Array(1024).keys()].filter(
    (i) => Math.max(...data.slice(4 * i, 4 * i + 3)) > 120);
  return [0, 1, 2].map((k) => bright.reduce((sum, i) => sum + data[4 * i + k], 0));
}"""
