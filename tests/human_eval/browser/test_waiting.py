"""What a rater sees while clips load slowly, when a pair is gone, and when none is free."""

import pytest

from human_eval.collection.submission import give_back
from human_eval.storage.study_state import CLOSED_MESSAGE
from tests.human_eval.browser.rater_page import answer, begin, enter, until, wait_for_pair
from tests.support.studies import claim_pair, enter_rater, set_closed

pytestmark = pytest.mark.browser
# Every clip arrives in ten pieces, until `hurry` is set.
SLOW_LINE = """
const direct = window.fetch;
window.fetch = async (path, options) => {
  const response = await direct(path, options);
  if (!String(path).includes("media/")) return response;
  const content = new Uint8Array(await response.arrayBuffer());
  const step = Math.ceil(content.length / 10);
  let at = 0;
  const pieces = new ReadableStream({async pull(line) {
    if (at && !window.hurry) await new Promise(done => setTimeout(done, 1000));
    if (at < content.length) line.enqueue(content.slice(at, at += step));
    else line.close();
  }});
  return new Response(pieces, {status: response.status, headers: response.headers});
};
"""


@pytest.mark.slow
def test_a_slow_line_shows_progress_and_offers_no_report(study, open_rater):
    page = open_rater(study, "")
    page.add_init_script(SLOW_LINE)
    page.goto(f"{study.url}/rate")
    enter(page)

    until(page, "document.querySelector('#loaded').value > 0.2")
    shown = page.locator("#loading").is_visible(), page.locator("#stall").is_visible()
    page.evaluate("window.hurry = true")
    page.locator("#watch-note.open").wait_for()

    assert shown == (True, False)
    assert page.locator("#loading").is_hidden()


@pytest.mark.slow
def test_a_connection_that_is_back_is_shown_while_the_clips_arrive(study, open_rater):
    page = open_rater(study, "", expect="ERR_FAILED")
    page.add_init_script(SLOW_LINE)
    page.goto(f"{study.url}/rate")
    page.route("**/media/*", lambda route: route.abort())
    enter(page)
    page.locator("#connection").wait_for()
    page.locator("#loading").wait_for()

    page.unroute("**/media/*")
    page.locator("#connection").wait_for(state="hidden")
    still_loading = page.locator("#loading").is_visible()
    page.evaluate("window.hurry = true")
    page.locator("#watch-note.open").wait_for()

    assert still_loading


def test_a_pair_that_was_answered_elsewhere_is_announced_in_sight(study, open_rater):
    page = open_rater(study, expect="409")
    first = begin(page)
    other = page.context.new_page()
    other.goto(f"{study.url}/rate")
    wait_for_pair(other)
    page.bring_to_front()
    answer(page, "111")
    wait_for_pair(page, after=first)
    hidden = page.locator("#notice").is_visible()

    other.bring_to_front()
    answer(other, "222")
    second = wait_for_pair(other, after=first)
    seen = other.locator("#notice").is_visible()
    other.locator("#notice-close").click()
    closed = other.locator("#notice").is_hidden()
    other.locator("#watch-note.open").wait_for()
    answer(other, "222")
    wait_for_pair(other, after=second)
    page.bring_to_front()
    page.keyboard.press("s")
    page.locator("[value='broken/damaged']").check()
    page.locator("#skip-now").click()
    page.locator("#notice").wait_for()  # the other window answered this pair too

    assert (hidden, seen, closed) == (False, True, True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "pairs, sentence", [(1, "Please watch it again."), (4, "The time for the pair was over.")]
)
def test_a_pair_that_expires_is_announced_in_sight(rate_study, open_rater, pairs, sentence):
    own = rate_study(pairs=pairs, frames=8, extra="\n[assignment]\nlease_seconds = 10\n")
    page = open_rater(own)
    begin(page)

    page.locator("#notice").wait_for()

    assert page.locator("#rating").is_visible()
    assert sentence in page.locator("#notice-text").inner_text()


@pytest.mark.slow
def test_a_rater_waits_for_a_pair_that_others_hold(rate_study, open_rater):
    own = rate_study(pairs=1, frames=8)
    others = [enter_rater(own.store, "lab", f"other {number}") for number in range(3)]
    held = [claim_pair(own.store, rater) for rater in others]
    page = open_rater(own)
    enter(page)
    page.locator("#stop-waiting").wait_for()
    waiting = page.locator("#code-box").is_visible()

    with own.store.write() as connection:
        give_back(connection, others[0], held[0].assignment_id, "skipped", now=own.store.clock())

    wait_for_pair(page)
    assert page.locator("#end").is_hidden() and not waiting
    late = open_rater(own)
    enter(late)
    late.locator("#stop-waiting").click()
    late.locator("#code-box").wait_for()
    assert late.locator("#code").inner_text() == "NONE1234"


@pytest.mark.slow
def test_a_study_that_closes_under_a_pair_is_named_as_the_reason(rate_study, open_rater):
    own = rate_study(pairs=2, frames=8)
    page = open_rater(own, expect="410")
    begin(page)
    page.locator("#watch-note.open").wait_for()
    set_closed(own.store, True, author="ada")

    answer(page, "111")

    page.locator("#end").wait_for()
    assert page.locator("#end-title").inner_text() == "The study ends here for you"
    assert page.locator("#end-text").inner_text() == CLOSED_MESSAGE
    assert page.locator("#notice-text").text_content() == CLOSED_MESSAGE
