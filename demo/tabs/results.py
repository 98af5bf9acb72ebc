"""The Results tab: win rates while the study collects votes, and every vote once it is closed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from demo.context import NO_QUEUE, PageContext
from demo.widgets.html import escape
from demo.widgets.player import SYNCED_PLAYBACK, show_playback_controls
from demo.widgets.win_rate_bars import show_stamp, show_table, show_win_rates
from human_eval.errors import StudyError
from human_eval.reporting.answered_pairs import AnsweredPair, list_answered, read_pair
from human_eval.reporting.live_results import LiveResults, Results
from human_eval.server.results_api import find_access
from human_eval.server.study_mount import StudyMount
from human_eval.study.store import StudyStore

PEOPLE, SIMULATED = "People", "A simulation"
REFRESH_SECONDS = 5.0  # while the tab is open
AGREEMENT = {
    "comparison": "Comparison",
    "question": "Question",
    "pairs": "Pairs",
    "raw": "Same answer",
    "alpha": "α",
    "alpha_low": "α low",
    "alpha_high": "α high",
    "ac1": "AC1",
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
NOT_PUBLISHED = "The researcher has not published the results of this study."
NO_VOTES = "There are no votes yet."
LETTERS = (
    "While the study is open, systems have letters instead of names, so that this page does not "
    "influence raters. Names and clips appear when the study is closed."
)


@dataclass(frozen=True)
class _Parts:
    """The components of the tab."""

    votes: gr.Radio
    excluded: gr.Checkbox
    summary: gr.HTML
    win_rates: gr.HTML
    agreement: gr.HTML
    categories: gr.HTML
    downloads: gr.HTML
    pairs: gr.Column
    number: gr.Number
    pair: gr.HTML
    timer: gr.Timer


def build_results_tab(context: PageContext, tab: gr.Tab) -> None:
    """Lay out the tab inside the open `gr.Blocks`."""
    parts, study = _lay_out(), context.study

    def on_refresh(votes: str | None, excluded: bool, request: gr.Request) -> dict[Any, Any]:
        return _refresh(study, parts, votes, excluded is True, dict(request.cookies))

    def on_pair(number: float | None, votes: str | None, request: gr.Request) -> dict[Any, Any]:
        return _show_numbered_pair(study, parts, number, votes, dict(request.cookies))

    gr.on(
        [tab.select, parts.timer.tick, parts.votes.input, parts.excluded.input],
        on_refresh,
        [parts.votes, parts.excluded],
        [
            *(parts.votes, parts.summary, parts.win_rates, parts.agreement, parts.categories),
            *(parts.downloads, parts.pairs, parts.number),
        ],
        **NO_QUEUE,
    )
    gr.on(
        [parts.number.change, parts.votes.change, tab.select],
        on_pair,
        [parts.number, parts.votes],
        [parts.number, parts.pair],
        **NO_QUEUE,
    )
    # Refresh only while the tab is open.
    tab.select(lambda: gr.Timer(active=True), None, parts.timer, **NO_QUEUE)
    tabs = tab.parent
    assert isinstance(tabs, gr.Tabs)

    def pause_unless_selected(event: gr.SelectData) -> gr.Timer:
        return gr.Timer(active=event.value == tab.label)

    tabs.select(pause_unless_selected, None, parts.timer, **NO_QUEUE)


def _lay_out() -> _Parts:
    with gr.Row(elem_classes="results-controls"):
        votes = gr.Radio(
            [PEOPLE, SIMULATED], label="Votes of", min_width=260, elem_id="results-votes"
        )
        excluded = gr.Checkbox(
            False,
            label="Include excluded raters",
            info="Compare the results with and without them",
            min_width=260,
            elem_id="results-excluded",
        )
    summary = gr.HTML(elem_id="results-summary")
    win_rates = gr.HTML(elem_id="results-win-rates", padding=False)
    downloads = gr.HTML(elem_id="results-downloads")
    with gr.Accordion("Agreement between raters", open=False):
        agreement = gr.HTML(elem_id="results-agreement")
    with gr.Accordion("Results by prompt category", open=False):
        categories = gr.HTML(elem_id="results-categories")
    with gr.Column(visible=False, elem_id="results-pairs") as pairs:
        gr.HTML("<h2>Votes by pair</h2>", elem_classes="heading")
        number = gr.Number(
            1, label="Pair", minimum=1, precision=0, step=1, elem_id="results-pair-number"
        )
        pair = gr.HTML(js_on_load=SYNCED_PLAYBACK, elem_id="results-pair", elem_classes="player")
    timer = gr.Timer(REFRESH_SECONDS, active=False)
    return _Parts(
        *(votes, excluded, summary, win_rates, agreement, categories),
        *(downloads, pairs, number, pair, timer),
    )


def _refresh(
    study: StudyMount, parts: _Parts, votes: str | None, excluded: bool, cookies: Mapping[str, str]
) -> dict[Any, Any]:
    if study.store is None or study.live_results is None:
        return _show_nothing(parts, study.note)
    access = find_access(study.store, cookies)
    if not access.may_read:
        return _show_nothing(parts, NOT_PUBLISHED)
    results = _read(study.live_results, votes, named=access.named)
    count = len(list_answered(results)) if results.named and results.answers else 0
    return {
        parts.votes: SIMULATED if results.simulated else PEOPLE,
        parts.summary: _summarise(results),
        parts.win_rates: show_win_rates(results, with_excluded=excluded),
        parts.agreement: show_table(
            results.agreement, AGREEMENT, if_empty=NO_VOTES, label="Agreement between raters"
        ),
        parts.categories: show_table(
            results.categories, CATEGORIES, if_empty=NO_VOTES, label="Results by prompt category"
        ),
        parts.downloads: _link_downloads(results),
        parts.pairs: gr.Column(visible=count > 0),
        parts.number: gr.Number(info=f"1 to {count}"),
    }


def _read(live_results: LiveResults, votes: str | None, *, named: bool) -> Results:
    """Return the selected votes. By default, people's; the simulation if there are none."""
    if votes == SIMULATED:
        return live_results.read(named=named, simulated=True)
    people = live_results.read(named=named)
    if votes == PEOPLE or people.answers:
        return people
    simulated = live_results.read(named=named, simulated=True)
    return simulated if simulated.answers else people


def _show_nothing(parts: _Parts, note: str) -> dict[Any, Any]:
    text = f'<p class="empty" role="status">{escape(note)}</p>'
    empty = dict.fromkeys((parts.win_rates, parts.agreement, parts.categories, parts.downloads), "")
    return {
        **empty,
        parts.votes: gr.skip(),
        parts.summary: text,
        parts.pairs: gr.Column(visible=False),
        parts.number: gr.skip(),
    }


def _summarise(results: Results) -> str:
    state = "closed" if results.closed else "open"
    excluded = f", {results.excluded:,} votes excluded" if results.excluded else ""
    letters = "" if results.named else f'<p class="quiet">{LETTERS}</p>'
    return (
        f'<p class="facts" role="status"><b>{results.answers:,} votes</b> of {results.raters:,} '
        f"{'simulated ' if results.simulated else ''}raters{excluded}. The study is {state}.</p>"
        f"{letters}"
    )


def _link_downloads(results: Results) -> str:
    if results.rates.empty:
        return ""
    query = "?votes=simulated" if results.simulated else ""
    links = [(f"results/chart.{kind}{query}", kind.upper()) for kind in ("png", "svg", "pdf")]
    links.append((f"results/tables.zip{query}", "all tables as CSV"))
    shown = "".join(f'<a href="{address}" download>{label}</a>' for address, label in links)
    return f'<p class="links">Download the chart {shown}</p>'


def _show_numbered_pair(
    study: StudyMount,
    parts: _Parts,
    number: float | None,
    votes: str | None,
    cookies: Mapping[str, str],
) -> dict[Any, Any]:
    """Show a pair by its number in the list, if this visitor may see it.

    A number beyond the list becomes that of the last pair: the other votes have another list.
    """
    shown: dict[Any, Any] = {parts.pair: ""}
    if study.store is None or study.live_results is None:
        return shown
    access = find_access(study.store, cookies)
    results = _read(study.live_results, votes, named=access.named)
    if not access.may_read or not results.named:
        return shown
    try:
        pairs = list_answered(results)
        if not pairs:
            return shown
        valid = min(max(int(number or 1), 1), len(pairs))
        if number is not None and number > valid:
            shown[parts.number] = valid
        return {**shown, parts.pair: _show_pair(study.store, results, pairs[valid - 1])}
    except StudyError as refusal:
        return {**shown, parts.pair: f'<p class="quiet">{escape(str(refusal))}</p>'}


def _show_pair(store: StudyStore, results: Results, pair_id: int) -> str:
    pair = read_pair(store, results, pair_id)
    tiles = "".join(
        f'<figure class="tile"><figcaption><b>{escape(title)}</b></figcaption><div class="glass">'
        f'<video src="results/clips/{token}" muted playsinline preload="auto" '
        f'aria-label="{escape(title)}: {escape(pair.prompt)}"></video></div></figure>'
        for title, token in ((pair.title_a, pair.clip_a), (pair.title_b, pair.clip_b))
    )
    return (
        f"{show_stamp(results)}"
        f'<p class="prompt"><b>{escape(pair.comparison)}</b> {escape(pair.prompt)}</p>'
        f'<div class="tiles two" data-fps="{pair.fps:g}" data-frames="{pair.frames}">{tiles}</div>'
        f"{show_playback_controls(pair.frames)}{_show_votes(pair)}"
    )


def _show_votes(pair: AnsweredPair) -> str:
    words = {"a": pair.title_a, "b": pair.title_b, "tie": "tie", "both_bad": "both bad"}
    votes = pair.answers.assign(choice=pair.answers["choice"].map(words))
    columns = {
        "question": "Question",
        "choice": "Preferred",
        "rater": "Rater",
        "seconds": "Seconds",
        "side_a": f"Side of {pair.title_a}",
    }
    return show_table(votes, columns, if_empty=NO_VOTES, label="Votes on this pair")
