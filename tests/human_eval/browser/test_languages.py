"""The Rate page in a language that is written from right to left, and with a scale."""

import pytest

from tests.human_eval.browser.rater_page import begin, until

pytestmark = pytest.mark.browser
SCALE = '\n[[questions]]\nkey = "Q4"\nwording = "Wie viel besser?"\nkind = "scale"\n'


def lefts(page, selector) -> list[float]:
    """Return the left edges of elements, in pixels."""
    script = "nodes => nodes.map(node => node.getBoundingClientRect().left)"
    return page.locator(selector).evaluate_all(script)


def press_elsewhere(page, key, code):
    """Press a key of another layout: what it prints, and its place."""
    event = f"new KeyboardEvent('keydown', {{key: '{key}', code: '{code}', bubbles: true}})"
    page.evaluate(f"document.body.dispatchEvent({event})")


def test_an_arabic_page_runs_from_right_to_left_around_videos_that_stay(rate_study, open_rater):
    study = rate_study(pairs=2, language="ar", ties="forced", frames=8)
    page = open_rater(study, width=390, height=844)
    one, two = (".columns section:first-child", "#when-equal")

    assert page.evaluate("getComputedStyle(document.body).direction") == "rtl"
    assert page.locator(f"{one} {two}").is_visible()  # every question is forced
    begin(page)

    assert page.evaluate("getComputedStyle(document.querySelector('#prompt')).direction") == "ltr"
    assert lefts(page, "#left")[0] <= lefts(page, "#right")[0]
    assert lefts(page, ".current .choice") == sorted(lefts(page, ".current .choice"))
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.set_viewport_size({"width": 1280, "height": 800})
    until(
        page,
        "document.querySelector('#left').getBoundingClientRect().left"
        " < document.querySelector('#right').getBoundingClientRect().left",
    )
    press_elsewhere(page, "س", "KeyS")
    assert page.locator("#skip").is_visible()


@pytest.mark.slow
def test_a_scale_is_answered_with_one_key_of_any_layout(rate_study, open_rater):
    study = rate_study(pairs=2, language="de", frames=8, extra="[quotas]\nper_study = 20\n" + SCALE)
    page = open_rater(study)
    assert page.locator("#when-equal").is_hidden()  # two questions take ties
    begin(page)

    for key in "121":
        page.keyboard.press(key)
    press_elsewhere(page, "(", "Digit5")  # French
    page.keyboard.press("Enter")
    until(page, "document.querySelector('#undo-bar').hidden === false")

    page.set_viewport_size({"width": 390, "height": 844})
    until(page, "document.documentElement.scrollWidth <= innerWidth")  # with long words

    votes = study.votes().set_index("question")
    side = {"left": "b", "right": "a"}[votes.loc["Q4", "side_a"]]
    assert list(votes["strength"]) == [0, 0, 0, 2]
    assert votes.loc["Q4", "choice"] == side
