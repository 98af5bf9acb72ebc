"""Raters change their mind: corrected answers, skipped pairs, reloads, a second window."""

import pytest

from tests.human_eval.browser.rater_page import (
    answer,
    begin,
    chosen,
    more_votes,
    shown,
    until,
    wait_for_pair,
)

pytestmark = pytest.mark.browser


def test_an_answer_can_be_changed_for_a_while(study, open_rater):
    page = open_rater(study)
    first = begin(page)
    answer(page, "111")
    second = wait_for_pair(page, after=first)

    page.keyboard.press("u")
    until(page, f"document.querySelector('#prompt').textContent === {first.strip('“”')!r}")
    before = chosen(page)
    page.locator("#watch-note.open").wait_for()
    page.keyboard.press("2")
    page.keyboard.press("Enter")
    back = wait_for_pair(page, after=first)

    assert before == ["left", "left", "left"]
    assert back == second
    assert shown(study.votes()) == ["left", "left", "right"]


@pytest.mark.slow
def test_the_last_answers_can_be_changed_too(study, open_rater):
    page = open_rater(study)
    prompt = begin(page)
    for number in range(3):
        answer(page, "111")
        if number < 2:
            prompt = wait_for_pair(page, after=prompt)
    page.locator("#end").wait_for()

    page.locator("#undo-last").click()
    page.locator("#watch-note.open").wait_for()
    page.keyboard.press("2")
    page.keyboard.press("Enter")
    page.locator("#end").wait_for()

    assert page.locator("#code").inner_text() == "DONE1234"
    assert shown(study.votes()) == ["left", "left", "right"]


def test_a_skipped_pair_is_replaced_and_its_reason_kept(study, open_rater):
    page = open_rater(study)
    first = begin(page)

    with more_votes(study, by=0):
        page.keyboard.press("s")
        page.locator("[value='broken/damaged']").check()
        page.locator("#skip-now").click()
        second = wait_for_pair(page, after=first)

    assert second != first
    with study.store.read() as connection:
        rows = connection.exec_driver_sql("SELECT kind, payload FROM event").all()
    assert ("broken", '{"detail": "damaged"}') in [tuple(row) for row in rows]


def test_a_reload_keeps_the_pair_and_what_was_answered(study, open_rater):
    page = open_rater(study)
    prompt = begin(page)
    page.keyboard.press("2")
    page.keyboard.press("1")

    page.reload()
    again = wait_for_pair(page)

    assert again == prompt
    assert chosen(page) == ["right", "left", None]
    with more_votes(study, by=3):
        answer(page, "2")
        wait_for_pair(page, after=prompt)
    assert shown(study.votes()) == ["right", "left", "right"]


@pytest.mark.slow
def test_the_back_button_returns_to_the_open_pair(study, open_rater):
    page = open_rater(study, expect="404")  # the picture that browsers want of every site
    first = begin(page)
    answer(page)
    second = wait_for_pair(page, after=first)

    page.goto(f"{study.url}/healthz")
    page.go_back()
    page.locator("#rating").wait_for()

    with more_votes(study, by=3):
        assert wait_for_pair(page) == second
        answer(page)
        wait_for_pair(page, after=second)


@pytest.mark.slow
def test_two_windows_of_one_rater_store_each_pair_once(study, open_rater):
    page = open_rater(study)
    first = begin(page)
    other = page.context.new_page()
    other.goto(f"{study.url}/rate")
    assert wait_for_pair(other) == first

    with more_votes(study, by=6):
        page.bring_to_front()
        answer(page, "111")
        second = wait_for_pair(page, after=first)
        other.bring_to_front()
        answer(other, "222")
        assert wait_for_pair(other, after=first) == second
        answer(other, "222")
        wait_for_pair(other, after=second)

    assert shown(study.votes()) == ["right", "right", "right"]


@pytest.mark.slow
def test_a_rater_without_the_cookie_reads_why_the_page_begins_anew(study, open_rater):
    page = open_rater(study, expect="403")
    begin(page)
    page.locator("#watch-note.open").wait_for()
    page.context.clear_cookies()

    answer(page, "111")

    page.locator("#welcome").wait_for()
    until(page, "document.querySelector('#entry-problem').textContent !== ''")
    page.reload()
    page.locator("#welcome").wait_for()
    assert page.locator("#entry-problem").inner_text() == ""


@pytest.mark.slow
def test_a_rater_who_gets_no_pair_on_arrival_reads_why(study, open_rater):
    page = open_rater(study, expect="403")
    begin(page)
    refusal = {"status": 403, "json": {"error": "Open the link again."}}
    page.route("**/api/claim", lambda route: route.fulfill(**refusal))

    page.reload()

    page.locator("#welcome").wait_for()
    page.wait_for_timeout(500)
    assert page.locator("#entry-problem").inner_text() == "Open the link again."
