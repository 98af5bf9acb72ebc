"""Simulated raters with planted preferences, for trying out a study and its statistics.

They are assigned pairs and submit answers through the same code as people. They have pairs of their
own and a mark in every table, enforced by foreign keys, so that none of their answers can enter the
results of people. The report on them must show what was planted.
"""

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from scipy.special import expit
from sqlalchemy import Connection, select
from sqlalchemy.orm import aliased

from human_eval.collection import assignment, submission
from human_eval.collection.assignment import Assignment
from human_eval.collection.pairs import make_pairs
from human_eval.collection.raters import SIMULATED, enter
from human_eval.collection.submission import Answer, Submission
from human_eval.definition.definition import StudyDefinition
from human_eval.errors import StudyError
from human_eval.storage.study_state import check_not_paused, check_open
from human_eval.storage.tables import ClipRow, PairRow
from human_eval.study.queries import read_study_progress
from human_eval.study.store import StudyStore

ASSIGNMENTS_PER_COMMIT = 50
HONEST_SECONDS = (4.0, 25.0)  # to an answer
SPAM_SECONDS = (0.3, 1.5)
RATES = (0.001, 0.999)  # of system A

Progress = Callable[[int, int], None]  # pairs answered so far, pairs in all
Utility = Callable[[Path], float]  # of a clip, from its file, in log-odds


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """The simulated raters and their preferences."""

    raters: int = 60
    win_rate: float = 0.55  # of system A, in (0, 1), for the average prompt and rater
    win_rates: Mapping[str, float] = field(default_factory=dict)  # of comparisons with their own
    # Of pairs with their own, by comparison and prompt, from 0 to 1. Rates nearer to 0 or 1 than
    # `RATES` count as these.
    pair_rates: Mapping[tuple[str, int], float] = field(default_factory=dict)
    tie_share: float = 0.0  # where the question allows ties
    side_bias: float = 0.0  # probability of choosing the left clip unseen, in [0, 1]
    prompt_spread: float = 0.0  # standard deviation between prompts, in log-odds
    rater_spread: float = 0.0  # standard deviation between raters, in log-odds
    spammers: float = 0.0  # share of raters who click fast: half at random, half always left
    abandon: float = 0.02  # share of assignments that expire without answers
    gold_accuracy: float = 0.95  # of honest raters
    seed: int = 0

    def __post_init__(self) -> None:
        bounds = [
            ("raters", self.raters, 1, 100_000),
            ("win_rate", self.win_rate, *RATES),
            *((f"win_rate of {key}", rate, *RATES) for key, rate in self.win_rates.items()),
            *((f"win_rate of {pair}", rate, 0, 1) for pair, rate in self.pair_rates.items()),
            ("tie_share", self.tie_share, 0, 1),
            ("side_bias", self.side_bias, 0, 1),
            ("prompt_spread", self.prompt_spread, 0, 10),
            ("rater_spread", self.rater_spread, 0, 10),
            ("spammers", self.spammers, 0, 1),
            ("abandon", self.abandon, 0, 0.9),
            ("gold_accuracy", self.gold_accuracy, 0, 1),
        ]
        for name, value, low, high in bounds:
            if not low <= value <= high:
                raise StudyError(f"{name} must be between {low} and {high}, not {value}.")


@dataclass
class _Person:
    number: int  # of the rater
    habit: str  # honest, random or left
    leaning: float  # towards system A, in log-odds
    free_at: int = 0  # when they have finished their last pair, by the clock of the simulation


def simulate(
    store: StudyStore,
    crowd: Crowd,
    *,
    max_pairs: int | None = None,
    progress: Progress = lambda done, total: None,
    utility: Utility = lambda clip: 0.0,
) -> int:
    """Let the crowd answer until every pair has its raters or every rater has reached a quota.

    Args:
        utility: how much every rater likes a clip, besides the preferences of the crowd; the
            difference of two clips is added to the log-odds.

    Returns:
        The number of pairs answered.

    Raises:
        StudyError: no pair is left for simulated raters, or the study is closed or paused.
    """
    for key in crowd.win_rates:
        store.definition.comparison(key)
    if max_pairs is not None and max_pairs < 1:
        raise StudyError(f"The number of pairs to answer must be at least 1, not {max_pairs}.")
    rng = random.Random(crowd.seed)
    with store.write() as connection:
        check_open(connection)
        check_not_paused(connection)
        make_pairs(connection, store.definition, rng=store.rng, simulated=True, partial=True)
    pairs = read_study_progress(store, simulated=True).comparisons
    wanted = int(pairs["wanted"].sum() - pairs["taken"].sum()) if len(pairs) else 0
    if max_pairs is not None:
        wanted = min(wanted, max_pairs)
    if wanted <= 0:
        raise StudyError(
            "No pairs are left for simulated raters. Ingest clips, or remove an earlier simulation "
            "with `erase --simulated`."
        )
    people = _assemble(store, crowd, rng)
    time = _Time(store.clock(), store.definition.pay.seconds_per_pair / crowd.raters)
    effects: dict[int, float] = {}
    done = 0
    while people and done < wanted:
        with store.write() as connection:
            for _ in range(min(ASSIGNMENTS_PER_COMMIT, wanted - done)):
                person = rng.choice(people)
                answered = _rate_pair(connection, store, crowd, person, effects, time, rng, utility)
                if answered is None:
                    people.remove(person)
                    if not people:
                        break
                done += bool(answered)
        progress(done, wanted)
    return done


class _Time:
    """The clock of the simulation. The raters work in parallel, so each pair adds its share."""

    def __init__(self, start: int, seconds_per_pair: float) -> None:
        self.now = start
        self._step = max(1, round(1000 * seconds_per_pair))

    def advance(self, earliest: int) -> int:
        self.now = max(self.now + self._step, earliest)
        return self.now


def _assemble(store: StudyStore, crowd: Crowd, rng: random.Random) -> list[_Person]:
    people = []
    spammers = round(crowd.spammers * crowd.raters)
    with store.write() as connection:
        for place in range(crowd.raters):
            name = f"{crowd.seed}-{rng.getrandbits(32)}-{place}"
            now = store.clock()
            number = enter(connection, store.keys, SIMULATED, name, now=now, simulated=True)
            habit = "honest" if place >= spammers else ("random", "left")[place % 2]
            people.append(_Person(number, habit, rng.gauss(0, crowd.rater_spread)))
    return people


def _rate_pair(
    connection: Connection,
    store: StudyStore,
    crowd: Crowd,
    person: _Person,
    effects: dict[int, float],
    time: _Time,
    rng: random.Random,
    utility: Utility,
) -> bool | None:
    """Claim a pair and answer it.

    Args:
        effects: what each prompt adds to the log-odds, drawn at its first use.

    Returns:
        None if no pair is left for the rater, False if the assignment was abandoned.
    """
    definition = store.definition
    now = time.advance(person.free_at)
    mine = assignment.claim(connection, definition, person.number, now=now, rng=rng)
    if mine is None:
        return None
    if rng.random() < crowd.abandon:
        # The assignment expires, and the pair goes to another rater.
        time.now += 1000 * definition.assignment.lease_seconds + 1
        return False
    a, b = aliased(ClipRow), aliased(ClipRow)
    pair = connection.execute(
        select(PairRow.comparison, PairRow.prompt_index, PairRow.kind, PairRow.gold_answer)
        .add_columns(a.frames, a.fps, a.stored_name.label("name_a"), b.stored_name.label("name_b"))
        .join(a, a.id == PairRow.clip_a)
        .join(b, b.id == PairRow.clip_b)
        .where(PairRow.id == mine.pair_id)
    ).one()
    effect = effects.setdefault(pair.prompt_index, rng.gauss(0, crowd.prompt_spread))
    rate = crowd.win_rates.get(pair.comparison, crowd.win_rate)
    rate = crowd.pair_rates.get((pair.comparison, pair.prompt_index), rate)
    rate = min(max(rate, RATES[0]), RATES[1])
    log_odds = math.log(rate / (1 - rate)) + effect + person.leaning
    log_odds += utility(store.media / pair.name_a) - utility(store.media / pair.name_b)
    chance = float(expit(log_odds))
    if pair.gold_answer is not None:
        chance = crowd.gold_accuracy if pair.gold_answer == "a" else 1 - crowd.gold_accuracy
    elif pair.kind == "identical":
        chance = 0.5
    # `submit` refuses answers that arrive before the clips can have been watched.
    viewing = definition.viewing
    watched = viewing.min_loops * max(viewing.clip_seconds, pair.frames / pair.fps)
    person.free_at = now + round(1000 * (1 + watched))
    answers = _answer(definition, crowd, person, mine, chance, rng)
    submission.submit(connection, definition, answers, now=person.free_at)
    return True


def _answer(
    definition: StudyDefinition,
    crowd: Crowd,
    person: _Person,
    mine: Assignment,
    chance: float,
    rng: random.Random,
) -> Submission:
    """Answer every question, preferring system A with the given probability."""
    other = "right" if mine.side_a == "left" else "left"
    low, high = HONEST_SECONDS if person.habit == "honest" else SPAM_SECONDS
    answers = {}
    for question in definition.questions:
        if person.habit == "left" or rng.random() < crowd.side_bias:
            shown = "left"
        elif person.habit == "random":
            shown = rng.choice(["left", "right"])
        elif "tie" in question.choices and rng.random() < crowd.tie_share:
            shown = "tie"
        else:
            shown = mine.side_a if rng.random() < chance else other
        strength = 0
        if question.kind == "scale" and shown != "tie":
            # The clearer the planted preference, the more often a rater calls it strong.
            strength = 2 if rng.random() < abs(2 * chance - 1) else 1
        answers[question.key] = Answer(shown, rng.uniform(low, high), strength)
    loops = definition.viewing.min_loops + rng.randrange(3)
    return Submission(mine.assignment_id, mine.attempt, mine.rater_id, answers, loops)
