"""What a rater does on the Rate page, as functions for the browser tests."""

import time
from contextlib import contextmanager

PATIENCE = 40  # seconds that a busy machine may take


def until(page, script):
    """Wait for a condition; the page's content policy forbids Playwright's `wait_for_function`."""
    for _ in range(50 * PATIENCE):
        if page.evaluate(script):
            return
        time.sleep(0.02)
    raise AssertionError(script)


def enter(page):
    """Accept the consent text and begin."""
    page.locator("#consent").check()
    page.locator("#begin").click()


def begin(page):
    """Enter and wait for the first pair; return its prompt."""
    enter(page)
    return wait_for_pair(page)


def wait_for_pair(page, after=""):
    """Wait until a pair other than `after` can be answered; return its prompt."""
    prompt = page.locator("#prompt")
    until(page, f"document.querySelector('#prompt').textContent !== {after!r}")
    page.locator("#watch-note.open").wait_for()
    return prompt.inner_text()


def answer(page, keys="121"):
    """Answer by shortcuts and send."""
    for key in keys:
        page.keyboard.press(key)
    page.keyboard.press("Enter")


def chosen(page):
    """Return the selected choice of each question."""
    script = "[...document.querySelectorAll('#questions fieldset')].map(f => f.querySelector("
    return page.evaluate(script + "':checked')?.value ?? null)")


def shown(votes):
    """Return the answers of the newest assignment in terms of the sides that the rater saw."""
    newest = votes.loc[votes["answered_at"].idxmax()]
    last = votes[(votes["task_id"] == newest["task_id"]) & (votes["rater"] == newest["rater"])]
    sides = {"a": last["side_a"].iloc[0]}
    sides["b"] = {"left": "right", "right": "left"}[sides["a"]]
    return [sides.get(choice, choice) for choice in last.sort_values("question")["choice"]]


@contextmanager
def more_votes(study, by):
    """Check that the block stores this many votes."""
    before = len(study.votes())
    yield
    assert len(study.votes()) - before == by
