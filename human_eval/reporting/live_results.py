"""Results while they come in: the tables of the Results page, as public as they may be.

While a study is open, systems go by letters, whoever looks; a researcher who has signed in may see
their names, and so may everybody once the study is closed. Raters are never named.
"""

import importlib
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
from sqlalchemy import Connection, func, select

from human_eval.definition.definition import StudyDefinition
from human_eval.reporting.blinding import mask_definition, mask_votes, number_raters
from human_eval.statistics.votes import evidence
from human_eval.storage import events
from human_eval.storage.tables import AssignmentRow, Event, Study, Vote
from human_eval.study.store import StudyStore

PATIENCE = 1.0  # seconds that results may be old while answers come in
SHARE = 0.1  # of one core that computing them anew may take
QUICK = 1.0  # seconds of computing that a reader may wait for
COUNTED = ("exclude", "revoke", "erased", "restored")  # events that change results


@dataclass(frozen=True, kw_only=True)
class Results:
    """What a study says at one moment."""

    title: str
    closed: bool
    simulated: bool  # no person has voted
    named: bool  # systems go by their names, not by letters
    definition: StudyDefinition  # as `named` says
    answers: int  # on real pairs, of raters who are not excluded
    raters: int
    excluded: int  # answers left out
    votes: pd.DataFrame  # those that count, raters being numbers
    rates: pd.DataFrame  # as `human_eval.statistics.win_rates.win_rates`
    rates_with_excluded: pd.DataFrame
    decisions: pd.DataFrame
    agreement: pd.DataFrame
    categories: pd.DataFrame

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return the tables by the name of their file."""
        return {
            "win_rates": self.rates,
            "win_rates_with_excluded": self.rates_with_excluded,
            "decisions": self.decisions,
            "agreement": self.agreement,
            "categories": self.categories,
        }


@dataclass(frozen=True)
class _Kept:
    """Results and what they were made from."""

    state: tuple[object, ...]
    made_at: float  # monotonic seconds
    cost: float  # seconds
    results: Results


class LiveResults:
    """Computes results when they have changed; readers of a large study never wait for that."""

    def __init__(self, store: StudyStore) -> None:
        self._store = store
        self._lock = threading.Lock()  # one computation at a time
        self._kept: dict[tuple[bool, bool], _Kept] = {}
        self._charts: dict[tuple[bool, bool, str], tuple[Results, bytes]] = {}
        self._refreshing: threading.Thread | None = None

    def read(self, *, named: bool = False, simulated: bool = False) -> Results:
        """Return the results, computed now, or some seconds ago while answers come in.

        Where computing takes long it happens behind: the next reader gets what comes of it.

        Args:
            named: the reader may know the systems of an open study.
        """
        kept = self._kept.get((named, simulated))
        with self._store.read() as connection:
            state = _state(connection, simulated)
        if kept is None or kept.state[0] != state[0]:  # closed or opened again: names change
            return self._renew(named, simulated)
        fresh = time.monotonic() - kept.made_at < max(PATIENCE, kept.cost / SHARE)
        if kept.state == state or fresh:
            return kept.results
        if kept.cost < QUICK:
            return self._renew(named, simulated)
        if self._refreshing is None or not self._refreshing.is_alive():
            self._refreshing = threading.Thread(
                target=self._renew, args=(named, simulated), name="results", daemon=True
            )
            self._refreshing.start()
        return kept.results

    def draw(self, kind: str, *, named: bool = False, simulated: bool = False) -> bytes | None:
        """Return the chart as "svg", "png" or "pdf"; None while there is nothing to draw."""
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
            kept = self._kept.get((named, simulated))
            if kept is not None and kept.state == state:
                return kept.results  # somebody else has just done it
            # Takes seconds, once; not a cost of counting.
            importlib.import_module("human_eval.statistics.win_rates")
            began = time.monotonic()
            results = compute_results(self._store, named=named, simulated=simulated)
            now = time.monotonic()
            self._kept[named, simulated] = _Kept(state, now, now - began, results)
            return results


def _state(connection: Connection, simulated: bool) -> tuple[object, ...]:
    """Return what changes whenever results do: closed or not, last answer, last exclusion."""
    closed_at = connection.execute(select(Study.closed_at)).scalar_one()
    last_vote = connection.execute(
        select(func.max(Vote.id))
        .join(AssignmentRow, AssignmentRow.id == Vote.assignment_id)
        .where(AssignmentRow.simulated == simulated)
    ).scalar()
    last_event = connection.execute(
        select(func.max(Event.id)).where(Event.kind.in_(COUNTED))
    ).scalar()
    return closed_at, last_vote, last_event


def compute_results(store: StudyStore, *, named: bool, simulated: bool) -> Results:
    """Tabulate what has been answered so far."""
    # The libraries of statistics take seconds to import, which a page that opens need not wait for.
    from human_eval.statistics.agreement import tabulate_agreement
    from human_eval.statistics.e_values import decisions
    from human_eval.statistics.win_rates import category_rates, win_rates

    definition = store.definition
    votes = store.votes(simulated=simulated)
    with store.read() as connection:
        closed = connection.execute(select(Study.closed_at)).scalar_one() is not None
    named = named or closed
    if named:
        votes = number_raters(votes)
    else:
        votes = mask_votes(votes, definition, store.keys)
        definition = mask_definition(definition, store.keys)
    kept, everything = evidence(votes), evidence(votes, with_excluded=True)
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
        decisions=decisions(kept, definition),
        agreement=tabulate_agreement(kept),
        categories=category_rates(kept, definition),
    )


def _draw(results: Results, kind: str) -> bytes:
    from human_eval.reporting.charts import draw_win_rates, save_chart

    figure = draw_win_rates(results.rates, results.definition, simulated=results.simulated)
    with TemporaryDirectory() as folder:
        [path] = save_chart(figure, Path(folder), "chart", formats=[kind])
        return path.read_bytes()


def table_as_csv(table: pd.DataFrame) -> bytes:
    """Return a table as CSV that a spreadsheet runs no formula of."""
    from human_eval.reporting.export import write_csv

    with TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        write_csv(table, path)
        return path.read_bytes()


def is_published(connection: Connection) -> bool:
    """Tell whether everybody may read the results, as a researcher last said."""
    newest = (
        select(Event.kind)
        .where(Event.kind.in_(["published", "withdrawn"]))
        .order_by(Event.id.desc())
        .limit(1)
    )
    return connection.execute(newest).scalar() == "published"


def set_published(store: StudyStore, published: bool, *, author: str) -> None:
    """Let everybody read the results, or researchers alone."""
    with store.write() as connection:
        kind = "published" if published else "withdrawn"
        events.record(connection, kind, actor=author, subject="study", now=store.clock())
