"""The Rate page as raters use it: by keyboard, mouse and touch; through reloads and outages."""

import base64
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import parse_qsl, urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe

from human_eval.server.sign_in import entry_links
from tests.support.rated_study import FPS, SECRETS, RatedStudy, make_study

pytestmark = pytest.mark.browser

QUOTA = '\n[quotas]\nper_study = 3\n\n[[providers]]\nkey = "prolific"\n'
PATIENCE = 40  # seconds, on a machine that is busy


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Iterator[RatedStudy]:
    """Forty pairs, three of them for each rater."""
    store = make_study(tmp_path_factory.mktemp("rated") / "study", pairs=40, extra=QUOTA)
    study = RatedStudy(store)
    study.start()
    yield study
    study.stop()
    store.close()


@pytest.fixture
def open_rater(chromium) -> Iterator[Callable]:
    """Open the page in a browser of its own; none may write an error to its console."""
    contexts, errors = [], []

    def open_one(study, path="/rate", *, width=1280, height=900, expect="", **options):
        context = chromium.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(1000 * PATIENCE)

        def note(text):
            if not (expect and re.search(expect, text)):
                errors.append(text)

        page.on("console", lambda line: note(line.text) if line.type == "error" else None)
        page.on("pageerror", lambda error: note(str(error)))
        if path:
            page.goto(study.url + path)
            page.locator("main:not([hidden])").wait_for()
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert errors == []


def until(page, script, what=""):
    """Wait for a condition; the page's policy forbids Playwright's own way."""
    for _ in range(20 * PATIENCE):
        if page.evaluate(script):
            return
        time.sleep(0.05)
    raise AssertionError(what or script)


def begin(page):
    page.get_by_label("I have read this").check()
    page.get_by_role("button", name="Begin").click()
    return wait_for_pair(page)


def wait_for_pair(page, after=""):
    """Wait until another pair may be answered; return its prompt."""
    prompt = page.locator("#prompt")
    until(page, f"document.querySelector('#prompt').textContent !== {after!r}")
    page.locator("#watch-note.open").wait_for()
    return prompt.inner_text()


def answer(page, keys="121"):
    for key in keys:
        page.keyboard.press(key)
    page.keyboard.press("Enter")


def chosen(page):
    """Return what is chosen, question by question."""
    script = "[...document.querySelectorAll('#questions fieldset')].map(f => f.querySelector("
    return page.evaluate(script + "':checked')?.value ?? null)")


def shown(votes):
    """Return the newest turn's answers as the rater saw them."""
    newest = votes.loc[votes["answered_at"].idxmax()]
    last = votes[(votes["task_id"] == newest["task_id"]) & (votes["rater"] == newest["rater"])]
    sides = {"a": last["side_a"].iloc[0]}
    sides["b"] = {"left": "right", "right": "left"}[sides["a"]]
    return [sides.get(choice, choice) for choice in last.sort_values("question")["choice"]]


@contextmanager
def more_votes(study, by):
    """Check how many answers the block stores."""
    before = len(study.votes())
    yield
    assert len(study.votes()) - before == by


def test_a_rater_gets_from_consent_to_code_by_keyboard_alone(study, open_rater):
    page = open_rater(study)
    press = page.keyboard.press

    def tab_to(selector):
        for _ in range(30):
            if page.evaluate(f"document.activeElement.matches({selector!r})"):
                return
            press("Tab")
        raise AssertionError(f"the keyboard does not reach {selector}")

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


def test_the_consent_does_not_break_where_the_file_breaks_its_lines(study, open_rater):
    text = study.store.definition.consent.text.strip()
    assert "\n" in text

    page = open_rater(study)

    assert page.locator("#consent-text").text_content() == " ".join(text.split())


def test_a_rater_gets_from_consent_to_code_by_mouse(study, open_rater):
    page = open_rater(study)

    with more_votes(study, by=9):
        prompt = begin(page)
        for number in range(3):
            for question in page.locator("#questions fieldset").all():
                question.get_by_label("Video 2").click()
            page.get_by_role("button", name="Send and go on").click()
            if number < 2:
                prompt = wait_for_pair(page, after=prompt)
        page.locator("#end").wait_for()

    assert page.get_by_text("You have answered 3 pairs").is_visible()
    assert page.locator("#code").inner_text() == "DONE1234"


def test_a_rater_gets_from_consent_to_code_on_a_phone(study, open_rater):
    page = open_rater(study, width=390, height=844, has_touch=True, is_mobile=True)
    wide = "document.documentElement.scrollWidth > innerWidth"

    with more_votes(study, by=9):
        assert not page.evaluate(wide)
        page.get_by_text("I have read this").tap()
        page.get_by_role("button", name="Begin").tap()
        prompt = wait_for_pair(page)
        for number in range(3):
            fits = page.evaluate(
                "[...document.querySelectorAll('.screen, #submit, fieldset.current')].every("
                "e => e.getBoundingClientRect().bottom <= innerHeight)"
            )
            assert fits and not page.evaluate(wide)
            for _ in range(3):
                page.locator("fieldset.current").get_by_label("Video 1").tap()
            page.get_by_role("button", name="Send").tap()
            if number < 2:
                prompt = wait_for_pair(page, after=prompt)
        page.locator("#end").wait_for()

    assert not page.evaluate(wide)
    small = page.evaluate(
        "[...document.querySelectorAll('button, .choice')].filter(e => e.offsetParent"
        " && e.getBoundingClientRect().height < 43.5).map(e => e.outerHTML)"
    )
    assert small == []


def test_the_questions_stay_in_their_place_when_they_open_on_a_phone(study, open_rater):
    page = open_rater(study, width=390, height=844, has_touch=True, is_mobile=True)
    bottom = "document.querySelector('#answers').getBoundingClientRect().bottom"
    page.get_by_text("I have read this").tap()
    page.get_by_role("button", name="Begin").tap()
    until(page, "document.querySelector('#prompt').textContent !== ''")
    closed = page.evaluate(bottom)

    page.locator("#watch-note.open").wait_for()

    assert page.evaluate(bottom) == pytest.approx(closed, abs=1)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_no_rule_of_accessibility_is_broken(study, open_rater, theme, width):
    page = open_rater(study, f"/rate?theme={theme}", width=width)
    found = []

    def check(place):
        for broken in Axe().run(page).response["violations"]:
            nodes = [node["html"][:120] for node in broken["nodes"]]
            found.append((place, broken["id"], broken["help"], nodes))

    check("welcome")
    page.get_by_role("button", name="Keyboard shortcuts").click()
    check("help")
    page.keyboard.press("Escape")
    begin(page)
    check("rating")
    page.keyboard.press("1")
    page.keyboard.press("s")
    check("skip")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Stop").click()
    check("leave")
    page.get_by_role("button", name="Stop", exact=True).last.click()
    page.locator("#end").wait_for()
    check("end")

    assert found == []


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
def test_the_players_are_never_half_a_frame_apart_in_thirty_seconds(study, open_rater):
    page = open_rater(study)
    begin(page)

    measured = page.evaluate(DRIFT, 30)

    apart = sorted(measured["apart"])
    assert len(apart) > 100
    print(f"apart: median {1000 * apart[len(apart) // 2]:.1f} ms, most {1000 * apart[-1]:.1f} ms")
    assert apart[-1] <= 0.5 / FPS


def test_both_players_show_the_same_frame_when_stepped(study, open_rater):
    page = open_rater(study)
    begin(page)
    page.keyboard.press("Space")
    times = "[...document.querySelectorAll('.screen video')].map(v => v.currentTime)"
    first = int(re.search(r"frame (\d+)", page.locator("#counter").inner_text())[1])

    for key in "...,":
        page.keyboard.press(key)

    frame = (first - 1 + 2) % 16
    assert page.locator("#counter").inner_text() == f"frame {frame + 1} of 16"
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
    page.get_by_label("I have read this").check()
    page.get_by_role("button", name="Begin").click()
    page.locator("#rating").wait_for()
    until(page, "performance.getEntriesByName('pair-shown').length === 1")
    enabled = "[...document.querySelectorAll('#questions fieldset')].map(f => !f.disabled)"

    locked = page.evaluate(enabled)
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    unanswered = chosen(page)
    page.locator("#watch-note.open").wait_for()
    opened = page.evaluate(enabled)
    page.keyboard.press("1")

    assert locked == [False] * 3 and unanswered == [None] * 3
    assert opened == [True, False, False]
    assert page.evaluate(enabled) == [True, True, False]
    page.keyboard.press("Enter")
    assert page.get_by_text("Answer every question first").is_visible()


def test_an_answer_that_the_server_refuses_is_said_and_can_be_sent_again(study, open_rater):
    page = open_rater(study, expect="422")
    prompt = begin(page)
    page.route("**/api/submit", lambda route: route.fulfill(status=422, json={"error": "Wait."}))

    with more_votes(study, by=3):
        answer(page)
        page.get_by_text("Wait.").wait_for()
        page.unroute("**/api/submit")
        page.keyboard.press("Enter")
        wait_for_pair(page, after=prompt)


def test_a_clip_that_is_missing_can_be_reported(study, open_rater):
    page = open_rater(study, expect="404")
    page.route("**/media/*", lambda route: route.fulfill(status=404, json={"error": "None."}))
    page.get_by_label("I have read this").check()
    page.get_by_role("button", name="Begin").click()

    page.get_by_role("button", name="Report it").click()
    page.unroute("**/media/*")
    page.get_by_label("A video does not play").check()
    page.get_by_role("button", name="Skip the pair").click()

    page.locator("#watch-note.open").wait_for()


def test_nothing_moves_by_itself_where_motion_is_unwanted(study, open_rater):
    page = open_rater(study, reduced_motion="reduce")
    page.get_by_label("I have read this").check()
    page.get_by_role("button", name="Begin").click()
    until(page, "performance.getEntriesByName('pair-shown').length === 1")
    time.sleep(0.5)
    still = page.evaluate("[...document.querySelectorAll('video')].every(v => v.currentTime === 0)")

    page.get_by_role("button", name="Play", exact=True).click()
    page.locator("#watch-note.open").wait_for()

    assert still
    until(page, "[...document.querySelectorAll('video')].every(v => v.paused)")


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


def test_the_last_answers_can_be_changed_too(study, open_rater):
    page = open_rater(study)
    prompt = begin(page)
    for number in range(3):
        answer(page, "111")
        if number < 2:
            prompt = wait_for_pair(page, after=prompt)
    page.locator("#end").wait_for()

    page.get_by_role("button", name="Change the last answers").click()
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
        page.get_by_label("A video is damaged").check()
        page.get_by_role("button", name="Skip the pair").click()
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


def test_the_back_button_leads_back_to_the_open_pair(study, open_rater):
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


def test_two_windows_of_one_rater_store_each_pair_once(study, open_rater):
    page = open_rater(study)
    first = begin(page)
    other = page.context.new_page()
    other.set_default_timeout(1000 * PATIENCE)
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


def test_an_answer_given_without_a_network_is_stored_when_it_is_back(study, open_rater):
    page = open_rater(study, expect="ERR_INTERNET_DISCONNECTED")
    first = begin(page)

    with more_votes(study, by=3):
        page.context.set_offline(True)
        answer(page, "121")
        page.get_by_text("The connection is lost").wait_for()
        time.sleep(1)
        page.context.set_offline(False)
        wait_for_pair(page, after=first)

    assert page.get_by_text("The connection is lost").is_hidden()
    assert shown(study.votes()) == ["left", "right", "left"]


@pytest.mark.slow
def test_a_server_killed_in_mid_pair_costs_nothing(rate_study, open_rater):
    own = rate_study(pairs=4)
    page = open_rater(own, expect="ERR_CONNECTION|ERR_EMPTY|ERR_NETWORK")
    first = begin(page)

    own.kill()
    answer(page, "112")
    page.get_by_text("The connection is lost").wait_for()
    own.start()
    second = wait_for_pair(page, after=first)
    answer(page)
    wait_for_pair(page, after=second)

    assert len(own.votes()) == 6
    assert own.store.list_defects() == []


@pytest.mark.slow
def test_a_pair_whose_time_is_over_is_replaced(rate_study, open_rater):
    own = rate_study(pairs=4, extra="\n[assignment]\nlease_seconds = 10\n")
    page = open_rater(own)
    begin(page)
    page.keyboard.press("1")

    until(page, "document.querySelector('#announce').textContent.includes('time for this pair')")
    until(page, "!document.querySelector('#questions :checked')")
    for _ in range(5):  # a busy machine may miss the next one too
        page.locator("#watch-note.open").wait_for()
        answer(page)
        if page.evaluate("performance.getEntriesByName('pair-stored').length"):
            break
        time.sleep(1)

    assert 3 <= len(own.votes()) <= 6
    assert own.store.list_defects() == []


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
    assert set(study.votes().query("provider == 'prolific'")["task_id"].value_counts()) == {3}


def test_nothing_that_reaches_the_browser_tells_a_system(study, open_rater):
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
    for clip in study.store.clips():
        telling += [clip.stored_name, clip.sha256, clip.stored_name.removesuffix(".mp4")]
    assert [word for word in telling if word.lower().encode() in everything] == []
    assert len(media) >= 6 and len(set(media.values())) == 1  # no side weighs more
    assert [name for name, _ in parse_qsl(urlsplit(page.url).query)] == []
