"""Live results: the tables and charts of the Results page while votes come in.

While a study is open, systems are shown as letters, except to researchers who have signed in. Once
it is closed, everybody sees their names. Raters are always numbers.

The libraries of statistics and charts take seconds to import, so the functions that need them
import them: the page opens without waiting.
"""

import threading
import time
from dataclasses import dataclass
from io import BytesIO

import pandas as pd
from sqlalchemy import Connection, func, select

from human_eval.definition.definition import StudyDefinition
from human_eval.reporting.blinding import mask_definition, mask_votes, number_raters
from human_eval.statistics.votes import counted_votes
from human_eval.storage import events
from human_eval.storage.study_state import is_closed
from human_eval.storage.tables import AssignmentRow, Event, Vote
from human_eval.study.queries import read_votes
from human_eval.study.store import StudyStore

MAX_AGE = 1.0  # seconds that results may be old while votes come in
MAX_LOAD = 0.1  # share of one core that computing results may take
MAX_WAIT = 1.0  # seconds of computing that a reader may wait for
CHANGES = ("exclude", "revoke", "erased", "restored")  # events that change results


@dataclass(frozen=True, kw_only=True)
class Results:
    """The results of a study at one moment."""

    title: str
    closed: bool
    simulated: bool  # all votes are simulated
    named: bool  # systems have their names, not letters
    definition: StudyDefinition  # masked unless `named`
    answers: int  # votes that count
    raters: int
    excluded: int  # votes of excluded raters, on real pairs
    votes: pd.DataFrame  # those that count; raters are numbers
    rates: pd.DataFrame  # of `human_eval.statistics.win_rates.win_rates`
    rates_with_excluded: pd.DataFrame
    decisions: pd.DataFrame  # of `human_eval.statistics.e_values.tabulate_decisions`
    agreement: pd.DataFrame  # of `human_eval.statistics.agreement.tabulate_agreement`
    categories: pd.DataFrame  # of `human_eval.statistics.win_rates.category_rates`
    seconds: float = 0.0  # that computing the tables took

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return the tables by the names of their CSV files."""
        return {
            "win_rates": self.rates,
            "win_rates_with_excluded": self.rates_with_excluded,
            "decisions": self.decisions,
            "agreement": self.agreement,
            "categories": self.categories,
        }


@dataclass(frozen=True)
class _Cached:
    """Results, and the state of the study that they were computed from."""

    state: tuple[object, ...]
    made_at: float  # monotonic seconds
    results: Results


class LiveResults:
    """Computes results when the study has changed, in the background if that takes long."""

    def __init__(self, store: StudyStore) -> None:
        self._store = store
        self._lock = threading.Lock()  # one computation at a time
        self._cached: dict[tuple[bool, bool], _Cached] = {}
        self._charts: dict[tuple[bool, bool, str], tuple[Results, bytes]] = {}
        self._refreshing: threading.Thread | None = None

    def read(self, *, named: bool = False, simulated: bool = False) -> Results:
        """Return the results, at most some seconds old while votes come in.

        If computing takes longer than MAX_WAIT, a thread does it, and this call returns the
        results computed before.

        Args:
            named: the reader may know the systems of an open study.
            simulated: of the simulated votes instead of people's.
        """
        cached = self._cached.get((named, simulated))
        with self._store.read() as connection:
            state = _state(connection, simulated)
        if cached is None or cached.state[0] != state[0]:  # closed or reopened: names change
            return self._renew(named, simulated)
        took = cached.results.seconds
        fresh = time.monotonic() - cached.made_at < max(MAX_AGE, took / MAX_LOAD)
        if cached.state == state or fresh:
            return cached.results
        if took < MAX_WAIT:
            return self._renew(named, simulated)
        if self._refreshing is None or not self._refreshing.is_alive():
            self._refreshing = threading.Thread(
                target=self._renew, args=(named, simulated), name="results", daemon=True
            )
            self._refreshing.start()
        return cached.results

    def draw(self, kind: str, *, named: bool = False, simulated: bool = False) -> bytes | None:
        """Return the chart as "svg", "png" or "pdf"; None while there are no votes."""
        results = self.read(named=named, simulated=simulated)
        if results.rates.empty:
            return None
        key = (named, simulated, kind)
        with self._lock:
            drawn = self._charts.get(key)
            if drawn is None or drawn[0] is not results:
                drawn = self._charts[key] = (results, _draw(results, kind))
            return drawn[1]

    def _renew(self, named: bool, simulated: bool) -> Results:
        with self._lock:
            with self._store.read() as connection:
                state = _state(connection, simulated)
            cached = self._cached.get((named, simulated))
            if cached is not None and cached.state == state:
                return cached.results  # computed by another thread meanwhile
            results = compute_results(self._store, named=named, simulated=simulated)
            self._cached[named, simulated] = _Cached(state, time.monotonic(), results)
            return results


def _state(connection: Connection, simulated: bool) -> tuple[object, ...]:
    """Return values that change whenever results do: closed or not, last vote, last event."""
    last_vote = connection.execute(
        select(func.max(Vote.id))
        .join(AssignmentRow, AssignmentRow.id == Vote.assignment_id)
        .where(AssignmentRow.simulated == simulated)
    ).scalar()
    last_event = connection.execute(
        select(func.max(Event.id)).where(Event.kind.in_(CHANGES))
    ).scalar()
    return is_closed(connection), last_vote, last_event


def compute_results(store: StudyStore, *, named: bool, simulated: bool) -> Results:
    """Compute the results of all votes so far.

    Args:
        named: use the names of systems even if the study is open.
    """
    from human_eval.statistics.agreement import tabulate_agreement
    from human_eval.statistics.e_values import tabulate_decisions
    from human_eval.statistics.win_rates import category_rates, win_rates

    began = time.monotonic()
    definition = store.definition
    votes = read_votes(store, simulated=simulated)
    with store.read() as connection:
        closed = is_closed(connection)
    named = named or closed
    if named:
        votes = number_raters(votes)
    else:
        votes = mask_votes(votes, definition, store.keys)
        definition = mask_definition(definition, store.keys)
    kept, everything = counted_votes(votes), counted_votes(votes, with_excluded=True)
    rates = win_rates(kept, definition)
    return Results(
        title=definition.title or definition.name,
        closed=closed,
        simulated=simulated,
        named=named,
        definition=definition,
        answers=len(kept),
        raters=kept["rater"].nunique(),
        excluded=len(everything) - len(kept),
        votes=kept,
        rates=rates,
        rates_with_excluded=(
            rates if len(kept) == len(everything) else win_rates(everything, definition)
        ),
        decisions=tabulate_decisions(kept, definition),
        agreement=tabulate_agreement(kept, definition),
        categories=category_rates(kept, definition),
        seconds=time.monotonic() - began,
    )


def _draw(results: Results, kind: str) -> bytes:
    from human_eval.reporting.charts import draw_win_rates, render_chart

    figure = draw_win_rates(results.rates, results.definition, simulated=results.simulated)
    return render_chart(figure, kind)


def table_as_csv(table: pd.DataFrame) -> bytes:
    """Return a table as CSV in which no cell is a formula to a spreadsheet."""
    from human_eval.reporting.export import write_csv

    content = BytesIO()
    write_csv(table, content)
    return content.getvalue()


def is_published(connection: Connection) -> bool:
    """Return whether the results are public, by the newest decision of a researcher."""
    newest = (
        select(Event.kind)
        .where(Event.kind.in_(["published", "withdrawn"]))
        .order_by(Event.id.desc())
        .limit(1)
    )
    return connection.execute(newest).scalar() == "published"


def set_published(store: StudyStore, published: bool, *, author: str) -> None:
    """Make the results public, or restrict them to researchers."""
    with store.write() as connection:
        kind = "published" if published else "withdrawn"
        events.record(connection, kind, actor=author, subject="study", now=store.clock())
