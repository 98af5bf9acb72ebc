"""Videos, questions and prompt at every size of window: nothing covers a video, Send is in view."""

import pytest

from tests.human_eval.browser.rater_page import enter, until, wait_for_pair
from tests.support.rated_study import RatedStudy, make_study

pytestmark = pytest.mark.browser

CAPTION = (
    "{index} boats rock gently in a quiet harbour town at dawn while gulls circle above the masts "
    "and warm light spills over slate roofs; the camera glides slowly past a baker who opens blue "
    "shutters, a cat that stretches on a wall, and two children who chase a red ball down wet "
    "cobblestones towards the sea, cinematic, shallow depth of field, film grain, a telephoto lens "
    "from a low angle."
)
MORE_QUESTIONS = """
[[questions]]
key = "Q4"
wording = "Which video has smoother, more natural motion?"
ties = "tie_and_both_bad"

[[questions]]
key = "Q5"
wording = "Which video looks more realistic?"
"""
SIZES = [
    *[(1280, 800, 1), (390, 844, 2), (640, 400, 2)],
    *(
        pytest.param(*size, marks=pytest.mark.slow)
        for size in [(1366, 768, 1), (844, 390, 2), (683, 384, 2)]
    ),
]
MEASURE = """() => {
  const box = selector => {
    const {left, top, right, bottom} = document.querySelector(selector).getBoundingClientRect();
    return {left, top, right, bottom,
      inView: left >= -.5 && top >= -.5 && right <= innerWidth + .5 && bottom <= innerHeight + .5};
  };
  return {left: box('#left .screen'), right: box('#right .screen'), send: box('#submit'),
    answers: box('#answers'), aside: document.documentElement.scrollWidth - innerWidth};
}"""


@pytest.fixture(scope="module")
def crowded(tmp_path_factory):
    """A study with five questions, prompts of 380 characters and clips of 256 pixels."""
    folder = tmp_path_factory.mktemp("crowded") / "study"
    shape = {"width": 256, "height": 256, "frames": 8}
    store = make_study(folder, pairs=60, extra=MORE_QUESTIONS, prompt=CAPTION, **shape)
    study = RatedStudy(store)
    study.start()
    yield study
    study.stop()
    store.close()


def overlap(one, other):
    wide = min(one["right"], other["right"]) - max(one["left"], other["left"])
    return wide > 0.5 and min(one["bottom"], other["bottom"]) - max(one["top"], other["top"]) > 0.5


@pytest.mark.parametrize("width, height, dpr", SIZES)
def test_videos_and_send_are_in_view_and_nothing_covers_a_video(
    crowded, open_rater, width, height, dpr
):
    page = open_rater(crowded, width=width, height=height, device_scale_factor=dpr)
    assert len(CAPTION) > 370

    def check():
        found = page.evaluate(MEASURE)
        assert found["left"]["inView"] and found["right"]["inView"] and found["send"]["inView"]
        assert not overlap(found["answers"], found["left"])
        assert not overlap(found["answers"], found["right"])
        assert found["aside"] <= 0
        return found

    enter(page)
    prompt = wait_for_pair(page)
    found = check()
    side = found["left"]["right"] - found["left"]["left"]
    assert side >= 160
    if width > height:
        assert found["right"]["left"] - found["left"]["right"] <= 20  # side by side
    for _ in range(4):  # every question in turn may be the one in view
        page.keyboard.press("1")
        check()
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    wait_for_pair(page, after=prompt)
    check()  # with the button that changes the former answers


def test_a_long_prompt_is_folded_and_can_be_unfolded(crowded, open_rater):
    page = open_rater(crowded, width=640, height=400, device_scale_factor=2)
    enter(page)
    wait_for_pair(page)
    height = "document.querySelector('#prompt').getBoundingClientRect().height"

    folded = page.evaluate(height)
    page.locator("#unfold").click()
    unfolded = page.evaluate(height)
    page.locator("#unfold").click()

    assert folded < 60 < 100 < unfolded
    assert page.evaluate(height) == folded


def test_a_loop_counts_only_while_nothing_covers_a_video(study, open_rater):
    page = open_rater(study)
    page.evaluate(
        """() => { const lid = document.createElement('div'); lid.id = 'lid';
        lid.style.cssText = 'position: fixed; inset: 0 0 60% 0; z-index: 9';
        document.body.append(lid); }"""
    )
    for button in ("#consent", "#begin"):
        page.evaluate(f"document.querySelector('{button}').click()")
    until(page, "performance.getEntriesByName('pair-shown').length === 1")
    note = page.locator("#watch-note")
    told = note.inner_text()

    until(page, f"document.querySelector('#watch-note').textContent !== {told!r}")
    page.wait_for_timeout(1500)  # three loops
    covered = page.locator("#watch-note.open").count()
    page.evaluate("document.querySelector('#lid').remove()")
    page.locator("#watch-note.open").wait_for()

    assert covered == 0


@pytest.mark.slow
def test_small_clips_are_enlarged_by_whole_factors(rate_study, open_rater):
    own = rate_study(pairs=2, width=64, height=64)
    for dpr in (1, 1.5):
        page = open_rater(own, device_scale_factor=dpr)
        enter(page)
        wait_for_pair(page)
        found = page.evaluate(MEASURE)["left"]
        factor = (found["right"] - found["left"]) * dpr / 64
        assert factor >= 4 and factor == pytest.approx(round(factor), abs=0.01)
