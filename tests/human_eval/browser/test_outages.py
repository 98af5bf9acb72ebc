"""The Rate page without a server, a network or a clip: no answer is lost."""

import time

import pytest

from tests.human_eval.browser.rater_page import (
    answer,
    begin,
    enter,
    more_votes,
    shown,
    until,
    wait_for_pair,
)
from tests.support.studies import find_defects

pytestmark = pytest.mark.browser


def test_a_refused_answer_is_explained_and_can_be_sent_again(study, open_rater):
    page = open_rater(study, expect="422")
    prompt = begin(page)
    page.route("**/api/submit", lambda route: route.fulfill(status=422, json={"error": "Wait."}))

    with more_votes(study, by=3):
        answer(page)
        page.get_by_text("Wait.").wait_for()
        page.unroute("**/api/submit")
        page.keyboard.press("Enter")
        wait_for_pair(page, after=prompt)


def test_a_missing_clip_can_be_reported(study, open_rater):
    page = open_rater(study, expect="404")
    page.route("**/media/*", lambda route: route.fulfill(status=404, json={"error": "None."}))
    enter(page)

    page.locator("#stall button").click()
    page.unroute("**/media/*")
    page.locator("[value='broken/not_playing']").check()
    page.locator("#skip-now").click()

    page.locator("#watch-note.open").wait_for()


def test_an_answer_given_offline_is_stored_when_the_connection_is_back(study, open_rater):
    page = open_rater(study, expect="ERR_INTERNET_DISCONNECTED")
    first = begin(page)

    with more_votes(study, by=3):
        page.context.set_offline(True)
        answer(page, "121")
        page.locator("#connection").wait_for()
        page.context.set_offline(False)
        wait_for_pair(page, after=first)

    assert page.locator("#connection").is_hidden()
    assert shown(study.votes()) == ["left", "right", "left"]


@pytest.mark.slow
def test_a_killed_server_loses_no_answer(rate_study, open_rater):
    own = rate_study(pairs=4)
    page = open_rater(own, expect="ERR_CONNECTION|ERR_EMPTY|ERR_NETWORK")
    first = begin(page)

    own.kill()
    answer(page, "112")
    page.locator("#connection").wait_for()
    own.start()
    second = wait_for_pair(page, after=first)
    answer(page)
    wait_for_pair(page, after=second)

    assert len(own.votes()) == 6
    assert find_defects(own.store) == []


@pytest.mark.slow
def test_an_expired_pair_is_replaced(rate_study, open_rater):
    own = rate_study(pairs=4, extra="\n[assignment]\nlease_seconds = 10\n")
    page = open_rater(own)
    begin(page)
    page.keyboard.press("1")

    page.locator("#notice").wait_for()
    until(page, "!document.querySelector('#questions :checked')")
    for _ in range(5):  # a busy machine may miss the next one too
        page.locator("#watch-note.open").wait_for()
        answer(page)
        if page.evaluate("performance.getEntriesByName('pair-stored').length"):
            break
        time.sleep(1)

    assert 3 <= len(own.votes()) <= 6
    assert find_defects(own.store) == []
