"""Time the Rate page in Chromium: from a key press to the receipt and to the next pair; and drift.

    python -m tests.benchmarks.rate_page [--pairs 40] [--seconds 30]

Server and browser share the machine. `stored` is the receipt for answers that are on disk; `next
pair` is both players standing at the first frame of the following pair, ready to play; `apart` is
how far the two players are from each other, looked at before every repaint. Prints a table for
people and, last, one JSON line for machines.
"""

import argparse
import json
import os
import platform
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from playwright.sync_api import Page, sync_playwright

from tests.human_eval.browser.rater_page import answer, begin, until, wait_for_pair
from tests.human_eval.browser.test_accessibility import DRIFT
from tests.support.browser import BROWSER_FLAGS
from tests.support.chromium import find_chromium
from tests.support.rated_study import RatedStudy, make_study

LISTEN = """
addEventListener('keydown', event => {
  if (event.key === 'Enter') performance.mark('pressed', {startTime: event.timeStamp});
}, true)
"""


def rate(page: Page, pairs: int) -> dict[str, list[float]]:
    """Answer pairs by keyboard; return milliseconds from each press, by what they led to."""
    prompt = begin(page)
    page.evaluate(LISTEN)
    for _ in range(pairs):
        answer(page)
        prompt = wait_for_pair(page, after=prompt)
    marks = {
        name: page.evaluate(f"performance.getEntriesByName('{name}').map(mark => mark.startTime)")
        for name in ("pressed", "pair-stored", "pair-shown")
    }
    pressed, shown = marks["pressed"][-pairs:], marks["pair-shown"][1 : pairs + 1]
    times = {"stored": marks["pair-stored"], "next pair": shown}
    return {
        name: [moment - start for start, moment in zip(pressed, moments, strict=True)]
        for name, moments in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=30, help="of looking at the drift")
    options = parser.parse_args()
    path = find_chromium()
    with TemporaryDirectory() as place, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=BROWSER_FLAGS)
        study = RatedStudy(
            make_study(Path(place) / "study", pairs=options.pairs + 2, width=512, height=320)
        )
        try:
            study.start()
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            began = time.perf_counter()
            page.goto(f"{study.url}/rate")
            until(page, "!document.querySelector('#welcome').hidden")
            opened = 1000 * (time.perf_counter() - began)
            times = rate(page, options.pairs)
            measured = page.evaluate(DRIFT, options.seconds)
        finally:
            study.stop()
            study.store.close()
            browser.close()
    rows = {"page open": [opened], **times, "apart": [1000 * gap for gap in measured["apart"]]}
    print(f"{platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{'ms':>10}{'median':>9}{'p95':>9}{'most':>9}{'n':>8}")
    found = {}
    for name, values in rows.items():
        median, high, most = (round(float(np.percentile(values, q)), 1) for q in (50, 95, 100))
        found[name] = {"median": median, "p95": high, "max": most, "n": len(values)}
        print(f"{name:>10}{median:>9}{high:>9}{most:>9}{len(values):>8}")
    print(f"the second player was set right by a jump {measured['jumps']} times")
    print(json.dumps({"bench": "rate_page", "ms": found, "jumps": measured["jumps"]}))


if __name__ == "__main__":
    main()
