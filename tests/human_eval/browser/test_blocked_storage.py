"""Browsers that keep nothing of a site: no cookies, or no storage of scripts."""

import json

import pytest

from tests.human_eval.browser.rater_page import PATIENCE, answer, begin, enter
from tests.support.browser import BROWSER_FLAGS

pytestmark = pytest.mark.browser

BLOCKED = """
for (const kind of ["localStorage", "sessionStorage"]) {
  Object.defineProperty(window, kind, { get() { throw new DOMException("", "SecurityError"); } });
}
"""


def test_a_rater_whose_browser_blocks_storage_can_answer(study, open_rater):
    page = open_rater(study, path="")
    page.add_init_script(BLOCKED)
    page.goto(study.url + "/rate")
    page.locator("main:not([hidden])").wait_for()

    first = begin(page)
    answer(page)

    page.locator("#prompt").filter(has_not_text=first).wait_for()


def test_a_rater_whose_browser_blocks_cookies_is_told_so(study, chromium, chromium_path, tmp_path):
    settings = {"profile": {"default_content_setting_values": {"cookies": 2}}}
    (tmp_path / "Default").mkdir()
    (tmp_path / "Default" / "Preferences").write_text(json.dumps(settings))
    browser = chromium.browser_type.launch_persistent_context(
        tmp_path, executable_path=chromium_path, args=BROWSER_FLAGS
    )
    browser.set_default_timeout(1000 * PATIENCE)
    page = browser.new_page()
    page.goto(study.url + "/rate")
    page.locator("#welcome:not([hidden])").wait_for()

    enter(page)

    page.locator("#entry-problem").filter(has_text="blocks the cookies").wait_for()
    assert page.locator("#begin").is_enabled() and page.locator("#welcome").is_visible()
    browser.close()
