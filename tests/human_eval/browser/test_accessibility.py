"""The Rate page for everyone: axe rules in both themes, reduced motion, videos in sync."""

import time

import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.human_eval.browser.rater_page import begin, enter, until
from tests.support.rated_study import FPS

pytestmark = pytest.mark.browser


@pytest.mark.parametrize(
    "theme, width",
    [
        ("light", 1280),
        ("dark", 390),
        pytest.param("dark", 1280, marks=pytest.mark.slow),
        pytest.param("light", 390, marks=pytest.mark.slow),
    ],
)
def test_axe_finds_no_violation(study, open_rater, theme, width):
    page = open_rater(study, f"/rate?theme={theme}", width=width)
    found = []

    def check(place):
        for broken in Axe().run(page).response["violations"]:
            nodes = [node["html"][:120] for node in broken["nodes"]]
            found.append((place, broken["id"], broken["help"], nodes))

    check("welcome")
    page.locator("#welcome [data-open=help]").click()
    check("help")
    page.keyboard.press("Escape")
    begin(page)
    check("rating")
    page.keyboard.press("1")
    page.keyboard.press("s")
    check("skip")
    page.keyboard.press("Escape")
    page.locator("[data-open=leave]").click()
    check("leave")
    page.locator("#stop-now").click()
    page.locator("#end").wait_for()
    check("end")

    assert found == []


def test_reduced_motion_starts_no_video(study, open_rater):
    page = open_rater(study, reduced_motion="reduce")
    enter(page)
    until(page, "performance.getEntriesByName('pair-shown').length === 1")
    time.sleep(0.3)  # a video that starts would have moved
    still = page.evaluate("[...document.querySelectorAll('video')].every(v => v.currentTime === 0)")

    page.locator("[data-do=toggle]").click()
    page.locator("#watch-note.open").wait_for()

    assert still
    until(page, "[...document.querySelectorAll('video')].every(v => v.paused)")


DRIFT = """
seconds => new Promise(done => {
  const [a, b] = document.querySelectorAll('.screen video');
  const apart = [], begun = performance.now();
  let jumps = 0;
  b.addEventListener('seeking', () => { if (!a.seeking) jumps += 1; });
  const look = now => {
    if (!(a.paused && b.paused)) apart.push(Math.abs(a.currentTime - b.currentTime));
    if (now - begun < 1000 * seconds) requestAnimationFrame(look);
    else done({apart, jumps});
  };
  requestAnimationFrame(look);
})
"""


@pytest.mark.slow
def test_the_videos_stay_within_half_a_frame_for_thirty_seconds(study, open_rater):
    page = open_rater(study)
    begin(page)

    measured = page.evaluate(DRIFT, 30)

    apart = sorted(measured["apart"])
    assert len(apart) > 100
    print(f"drift: median {1000 * apart[len(apart) // 2]:.1f} ms, most {1000 * apart[-1]:.1f} ms")
    assert apart[-1] <= 0.5 / FPS
