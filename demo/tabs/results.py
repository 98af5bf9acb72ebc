"""The Results tab: the figure of the study as it grows, and its votes once it is closed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from demo.context import QUIET
from demo.web.study_mount import Desk
from demo.widgets.html import escape
from demo.widgets.player import ONE_CLOCK
from demo.widgets.win_rate_bars import show_figure, show_table
from human_eval.errors import StudyError
from human_eval.reporting.answered_pairs import AnsweredPair, list_answered, read_pair
from human_eval.reporting.live_results import LiveResults, Results
from human_eval.server.results_api import find_access
from human_eval.study.store import StudyStore

PEOPLE, SIMULATED = "People", "A simulation"
FRESH = 5.0  # seconds between two looks while the tab is open
AGREEMENT = {
    "comparison": "Comparison",
    "question": "Question",
    "pairs": "Pairs",
    "raw": "Same answer",
    "alpha": "α",
    "alpha_low": "α low",
    "alpha_high": "α high",
    "note": "Note",
}
CATEGORIES = {
    "comparison": "Comparison",
    "category": "Category",
    "votes": "Votes",
    "rate": "Rate",
    "low": "Low",
    "high": "High",
    "p_discovery": "p (FDR)",
}
PRIVATE = "The researcher has not published the results of this study."
OPEN = (
    "While a study is open, letters stand for its systems: nobody who rates can learn from this "
    "page which is which. Names and clips appear when it is closed."
)


@dataclass(frozen=True)
class _Parts:
    """The components of the tab."""

    votes: gr.Radio
    excluded: gr.Checkbox
    summary: gr.HTML
    figure: gr.HTML
    agreement: gr.HTML
    categories: gr.HTML
    downloads: gr.HTML
    browser: gr.Column
    place: gr.Number
    pair: gr.HTML
    timer: gr.Timer

    def shown(self) -> list[Any]:
        """Return what a refresh fills in."""
        return [
            *(self.votes, self.summary, self.figure, self.agreement, self.categories),
            *(self.downloads, self.browser, self.place),
        ]


def build_results_tab(desk: Desk, tab: gr.Tab, tabs: gr.Tabs) -> None:
    """Lay out the tab inside the `gr.Blocks` that is open."""
    parts = _lay_out()

    def on_refresh(votes: str | None, excluded: bool, request: gr.Request) -> dict[Any, Any]:
        return _refresh(desk, parts, votes, excluded is True, dict(request.cookies))

    def on_pair(place: float | None, votes: str | None, request: gr.Request) -> str:
        return _show_place(desk, place, votes == SIMULATED, dict(request.cookies))

    asked = [parts.votes, parts.excluded]
    gr.on(
        [tab.select, parts.timer.tick, parts.votes.input, parts.excluded.input],
        on_refresh,
        asked,
        parts.shown(),
        **QUIET,
    )
    gr.on(
        [parts.place.change, tab.select], on_pair, [parts.place, parts.votes], parts.pair, **QUIET
    )
    tab.select(lambda: gr.Timer(active=True), None, parts.timer, **QUIET)
    tabs.select(_keep_fresh, None, parts.timer, **QUIET)


def _keep_fresh(event: gr.SelectData) -> gr.Timer:
    """Look again and again only while the tab is seen."""
    return gr.Timer(active=event.value == "Results")


def _lay_out() -> _Parts:
    with gr.Row(elem_classes="results-dials"):
        votes = gr.Radio(
            [PEOPLE, SIMULATED], label="Votes of", min_width=260, elem_id="results-votes"
        )
        excluded = gr.Checkbox(
            False,
            label="Count excluded raters too",
            info="Results stand with and without them",
            min_width=260,
            elem_id="results-excluded",
        )
    summary = gr.HTML(elem_id="results-summary")
    figure = gr.HTML(elem_id="results-figure", padding=False)
    downloads = gr.HTML(elem_id="results-downloads")
    with gr.Accordion("How far raters agree with each other", open=False):
        agreement = gr.HTML(elem_id="results-agreement")
    with gr.Accordion("By category of prompt", open=False):
        categories = gr.HTML(elem_id="results-categories")
    with gr.Column(visible=False, elem_id="results-browser") as browser:
        gr.HTML("<h2>The votes, pair by pair</h2>", elem_classes="heading")
        place = gr.Number(1, label="Pair", minimum=1, precision=0, step=1, elem_id="results-place")
        pair = gr.HTML(js_on_load=ONE_CLOCK, elem_id="results-pair", elem_classes="player")
    timer = gr.Timer(FRESH, active=False)
    return _Parts(
        *(votes, excluded, summary, figure, agreement, categories),
        *(downloads, browser, place, pair, timer),
    )


def _refresh(
    desk: Desk, parts: _Parts, votes: str | None, excluded: bool, cookies: Mapping[str, str]
) -> dict[Any, Any]:
    if desk.store is None or desk.results is None:
        return _nothing(parts, desk.note)
    access = find_access(desk.store, cookies)
    if not access.may_read:
        return _nothing(parts, PRIVATE)
    results = _read(desk.results, votes, named=access.named)
    count = len(list_answered(results)) if results.named and results.answers else 0
    return {
        parts.votes: SIMULATED if results.simulated else PEOPLE,
        parts.summary: _summarise(results),
        parts.figure: show_figure(results, with_excluded=excluded),
        parts.agreement: show_table(
            results.agreement, AGREEMENT, "Nobody has answered yet.", "Agreement of raters"
        ),
        parts.categories: show_table(
            results.categories, CATEGORIES, "Nobody has answered yet.", "Results by category"
        ),
        parts.downloads: _link_downloads(results),
        parts.browser: gr.Column(visible=count > 0),
        parts.place: gr.Number(maximum=max(count, 1), info=f"1 to {count}"),
    }


def _read(live: LiveResults, votes: str | None, *, named: bool) -> Results:
    """Read what was asked for; unasked, people's votes, or the simulation where there are none."""
    if votes == SIMULATED:
        return live.read(named=named, simulated=True)
    people = live.read(named=named)
    if votes == PEOPLE or people.answers:
        return people
    simulated = live.read(named=named, simulated=True)
    return simulated if simulated.answers else people


def _nothing(parts: _Parts, note: str) -> dict[Any, Any]:
    text = f'<p class="empty" role="status">{escape(note)}</p>'
    empty = dict.fromkeys((parts.figure, parts.agreement, parts.categories, parts.downloads), "")
    return {
        **empty,
        parts.votes: gr.skip(),
        parts.summary: text,
        parts.browser: gr.Column(visible=False),
        parts.place: gr.skip(),
    }


def _summarise(results: Results) -> str:
    state = "closed" if results.closed else "open"
    excluded = f", {results.excluded:,} answers excluded" if results.excluded else ""
    masked = "" if results.named else f'<p class="quiet">{OPEN}</p>'
    return (
        f'<p class="facts" role="status"><b>{results.answers:,} answers</b> of {results.raters:,} '
        f"{'simulated ' if results.simulated else ''}raters{excluded}; the study is {state}.</p>"
        f"{masked}"
    )


def _link_downloads(results: Results) -> str:
    if results.rates.empty:
        return ""
    query = "?votes=simulated" if results.simulated else ""
    links = [(f"results/chart.{kind}{query}", kind.upper()) for kind in ("png", "svg", "pdf")]
    links.append((f"results/tables.zip{query}", "every table as CSV"))
    shown = "".join(f'<a href="{address}" download>{label}</a>' for address, label in links)
    return f'<p class="links">Download the figure {shown}</p>'


def _show_place(
    desk: Desk, place: float | None, simulated: bool, cookies: Mapping[str, str]
) -> str:
    """Show the pair at a place of the list, if this visitor may see it."""
    if desk.store is None or desk.results is None:
        return ""
    access = find_access(desk.store, cookies)
    results = desk.results.read(named=access.named, simulated=simulated)
    if not access.may_read or not results.named:
        return ""
    try:
        pairs = list_answered(results)
        if not pairs:
            return ""
        number = min(max(int(place or 1), 1), len(pairs))
        return _show_pair(desk.store, results, pairs[number - 1])
    except StudyError as refusal:
        return f'<p class="quiet">{escape(str(refusal))}</p>'


def _show_pair(store: StudyStore, results: Results, task_id: int) -> str:
    pair = read_pair(store, results, task_id)
    tiles = "".join(
        f'<figure class="tile"><figcaption><b>{escape(title)}</b></figcaption><div class="glass">'
        f'<video src="results/clips/{token}" muted playsinline preload="auto" '
        f'aria-label="{escape(title)}: {escape(pair.prompt)}"></video></div></figure>'
        for title, token in ((pair.title_a, pair.clip_a), (pair.title_b, pair.clip_b))
    )
    return (
        f'<p class="prompt"><b>{escape(pair.comparison)}</b> {escape(pair.prompt)}</p>'
        f'<div class="tiles two" data-fps="{pair.fps:g}" data-frames="{pair.frames}">{tiles}</div>'
        '<div class="transport" role="group" aria-label="Playback of both videos">'
        '<button type="button" data-do="back" aria-label="One frame back">◂</button>'
        '<button type="button" data-do="play" aria-label="Pause">❚❚</button>'
        '<button type="button" data-do="next" aria-label="One frame on">▸</button>'
        f'<span class="counter">frame 1 of {pair.frames}</span></div>{_show_answers(pair)}'
    )


def _show_answers(pair: AnsweredPair) -> str:
    words = {"a": pair.title_a, "b": pair.title_b, "tie": "tie", "both_bad": "both bad"}
    answers = pair.answers.assign(choice=pair.answers["choice"].map(words))
    columns = {
        "question": "Question",
        "choice": "Preferred",
        "rater": "By",
        "seconds": "Seconds",
        "side_a": f"{pair.title_a} stood",
    }
    return show_table(answers, columns, "", "Answers about this pair")
