"""The Rate page from consent to completion code: by keyboard, mouse and touch."""

import base64
import re
from urllib.parse import parse_qsl, urlsplit

import pytest

from human_eval.server.sign_in import entry_links
from tests.human_eval.browser.rater_page import (
    answer,
    begin,
    chosen,
    enter,
    more_votes,
    shown,
    until,
    wait_for_pair,
)
from tests.support.rated_study import FPS, SECRETS
from tests.support.studies import stored_clips

pytestmark = pytest.mark.browser


def test_a_rater_finishes_by_keyboard_only(study, open_rater):
    page = open_rater(study)
    press = page.keyboard.press

    def tab_to(selector):
        for _ in range(30):
            if page.evaluate(f"document.activeElement.matches({selector!r})"):
                return
            press("Tab")
        raise AssertionError(f"Tab does not reach {selector}")

    with more_votes(study, by=9):
        tab_to("#consent")
        press("Space")
        tab_to("#begin")
        press("Enter")
        prompt = wait_for_pair(page)
        answer(page, "121")  # by shortcuts
        prompt = wait_for_pair(page, after=prompt)
        for choice, number in (("left", 0), ("right", 1), ("left", 2)):  # by Tab and arrows
            tab_to(f"[name=question-{number}]")
            press("Space")
            if choice == "right":
                press("ArrowRight")
        assert chosen(page) == ["left", "right", "left"]
        tab_to("#submit")
        press("Enter")
        wait_for_pair(page, after=prompt)
        answer(page, "231")
        page.locator("#end").wait_for()

    assert shown(study.votes()) == ["right", "tie", "left"]
    assert page.locator("#code").inner_text() == "DONE1234"
    assert page.evaluate("document.activeElement.id") == "end-title"


@pytest.mark.slow
def test_a_rater_finishes_by_mouse(study, open_rater):
    page = open_rater(study)

    with more_votes(study, by=9):
        prompt = begin(page)
        for number in range(3):
            for question in page.locator("#questions fieldset").all():
                question.get_by_label("Video 2").click()
            page.locator("#submit").click()
            if number < 2:
                prompt = wait_for_pair(page, after=prompt)
        page.locator("#end").wait_for()

    assert "3" in page.locator("#end-text").inner_text()
    assert page.locator("#code").inner_text() == "DONE1234"


def test_a_rater_finishes_on_a_phone(study, open_rater):
    page = open_rater(study, width=390, height=844, has_touch=True, is_mobile=True)
    wide = "document.documentElement.scrollWidth > innerWidth"

    with more_votes(study, by=9):
        assert not page.evaluate(wide)
        page.locator("#consent").tap()
        page.locator("#begin").tap()
        prompt = wait_for_pair(page)
        for number in range(3):
            fits = page.evaluate(
                "[...document.querySelectorAll('.screen, #submit, fieldset.current')].every("
                "e => e.getBoundingClientRect().bottom <= innerHeight)"
            )
            assert fits and not page.evaluate(wide)
            for _ in range(3):
                page.locator("fieldset.current").get_by_label("Video 1").tap()
            page.locator("#submit").tap()
            if number < 2:
                prompt = wait_for_pair(page, after=prompt)
        page.locator("#end").wait_for()

    assert not page.evaluate(wide)
    small = page.evaluate(
        "[...document.querySelectorAll('button, .choice')].filter(e => e.offsetParent"
        " && e.getBoundingClientRect().height < 43.5).map(e => e.outerHTML)"
    )
    assert small == []


def test_the_questions_do_not_move_when_they_open_on_a_phone(study, open_rater):
    page = open_rater(study, width=390, height=844, has_touch=True, is_mobile=True)
    bottom = "document.querySelector('#answers').getBoundingClientRect().bottom"
    enter(page)
    until(page, "document.querySelector('#prompt').textContent !== ''")
    closed = page.evaluate(bottom)

    page.locator("#watch-note.open").wait_for()

    assert page.evaluate(bottom) == pytest.approx(closed, abs=1)


def test_the_consent_text_ignores_the_line_breaks_of_the_file(study, open_rater):
    text = study.store.definition.consent.text.strip()
    assert "\n" in text

    page = open_rater(study)

    assert page.locator("#consent-text").text_content() == " ".join(text.split())


def test_both_players_show_the_same_frame_when_stepped(study, open_rater):
    page = open_rater(study)
    begin(page)
    page.keyboard.press("Space")
    times = "[...document.querySelectorAll('.screen video')].map(v => v.currentTime)"
    first = int(re.search(r"frame (\d+)", page.locator("#counter").inner_text())[1])

    for key in "...,":
        page.keyboard.press(key)

    frame = (first - 1 + 2) % 8
    assert page.locator("#counter").inner_text() == f"frame {frame + 1} of 8"
    until(page, f"{times}.every(t => Math.abs(t - {(frame + 0.5) / FPS}) < 0.01)")
    page.keyboard.press("r")
    until(page, "document.querySelector('#stage').classList.contains('playing')")
    page.keyboard.press("d")
    rates = page.evaluate("[...document.querySelectorAll('video')].map(v => v.playbackRate)")
    assert rates[0] == 0.5 and abs(rates[1] - 0.5) < 0.1
    page.keyboard.press("f")
    assert page.locator("#stage.large").is_visible()
    page.keyboard.press("Escape")
    assert page.locator("#stage.large").count() == 0


def test_questions_open_after_the_loops_and_one_after_the_other(study, open_rater):
    page = open_rater(study)
    page.route("**/media/*", lambda route: None)  # hold the clips back
    enter(page)
    until(page, "document.querySelector('#prompt').textContent !== ''")
    enabled = "[...document.querySelectorAll('#questions fieldset')].map(f => !f.disabled)"

    locked = page.evaluate(enabled)
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    unanswered = chosen(page)
    page.unroute("**/media/*")
    page.locator("#watch-note.open").wait_for()
    opened = page.evaluate(enabled)
    page.keyboard.press("1")

    assert locked == [False] * 3 and unanswered == [None] * 3
    assert opened == [True, False, False]
    assert page.evaluate(enabled) == [True, True, False]
    page.keyboard.press("Enter")
    assert page.locator("#answers-problem").inner_text()


def test_a_participant_of_a_platform_returns_with_the_code(study, open_rater):
    url = entry_links(study.store, "/rate")["prolific"]
    for name, value in {"PROLIFIC_PID": "ab" * 12, "STUDY_ID": "5" * 24, "SESSION_ID": "6"}.items():
        url = url.replace(f"{{{{%{name}%}}}}", value)
    page = open_rater(study, url)

    prompt = begin(page)
    address = page.url
    for number in range(3):
        answer(page)
        if number < 2:
            prompt = wait_for_pair(page, after=prompt)
    page.locator("#end").wait_for()

    assert "ab" * 12 not in address
    finish = page.locator("#finish").get_attribute("href")
    assert finish == "https://app.prolific.com/submissions/complete?cc=DONE1234"
    assert page.locator("#code").inner_text() == "DONE1234"
    page.locator("#stay").click()
    assert page.locator("#return").is_hidden()
    assert page.evaluate("document.activeElement.id") == "end-title"

    page.clock.install()
    page.reload()
    page.locator("#return").wait_for()
    page.clock.fast_forward(10_000)
    assert page.locator("#end").is_visible()
    page.route("https://app.prolific.com/**", lambda route: route.fulfill(body="Thank you."))
    page.clock.fast_forward(10_000)
    page.wait_for_url(finish)

    frame = '<iframe src="rate"></iframe>'
    page.route("**/framed", lambda route: route.fulfill(body=frame, content_type="text/html"))
    page.goto(f"{study.url}/framed")
    link = page.frame_locator("iframe").locator("#finish")
    link.wait_for()
    assert link.get_attribute("target") == "_top"
    assert page.frame_locator("iframe").locator("#return").is_hidden()
    assert set(study.votes().query("provider == 'prolific'")["task_id"].value_counts()) == {3}


def test_nothing_that_reaches_the_browser_names_a_system(study, open_rater):
    page = open_rater(study, "")
    seen: list[bytes] = []
    media: dict[str, int] = {}

    def keep(response):
        seen.append(response.url.encode() + str(response.all_headers()).encode())
        if response.status == 200:
            body = response.body()
            seen.append(body)
            if "/media/" in response.url:
                media[response.url] = len(body)

    page.on("response", keep)
    page.goto(f"{study.url}/rate")
    prompt = begin(page)
    for number in range(3):
        seen.append(page.content().encode())
        answer(page)
        if number < 2:
            prompt = wait_for_pair(page, after=prompt)
    page.locator("#end").wait_for()
    seen.append(page.content().encode())
    for cookie in page.context.cookies():
        seen.append(cookie["value"].encode())
        seen.append(base64.urlsafe_b64decode(cookie["value"].split(".")[0] + "==="))
    for url in media:
        seen.append(base64.urlsafe_b64decode(url.rpartition("/")[2].split(".")[0] + "==="))

    everything = b"\n".join(seen).lower()
    definition = study.store.definition
    telling = [*SECRETS, "birds-of-prey", "4 steps", "50 steps", definition.name, definition.hash]
    telling += [definition.title, str(study.store.folder), "/tmp/", "x264", "lavf"]
    for clip in stored_clips(study.store):
        telling += [clip.stored_name, clip.sha256, clip.stored_name.removesuffix(".mp4")]
    assert [word for word in telling if word.lower().encode() in everything] == []
    assert len(media) >= 6 and len(set(media.values())) == 1  # no side weighs more
    assert [name for name, _ in parse_qsl(urlsplit(page.url).query)] == []
