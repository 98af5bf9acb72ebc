"""Raters with a planted truth, who go through the same assignment and vote path as people.

They have pairs of their own and are marked in every table, by foreign keys: nothing that they say
can reach the results of people. What a study reports on them must be what was planted.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection, select

from human_eval.collection import assignment, submission
from human_eval.collection.assignment import Assignment
from human_eval.collection.submission import Answer, Submission
from human_eval.definition.definition import StudyDefinition
from human_eval.errors import StudyError
from human_eval.storage.tables import PairRow
from human_eval.study.store import SIMULATED, StudyStore, enter

TURNS_PER_COMMIT = 50
HUMAN_SECONDS = (4.0, 25.0)  # to an answer
SPAM_SECONDS = (0.3, 1.5)

Progress = Callable[[int, int], None]  # turns done, turns in all


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """Who answers, and what they believe."""

    raters: int = 60
    win_rate: float = 0.55  # of A, in (0, 1), for the average prompt and rater
    tie_share: float = 0.0  # where the question allows ties
    side_bias: float = 0.0  # chance of taking the left clip without looking, in [0, 1]
    prompt_spread: float = 0.0  # standard deviation between prompts, in log-odds
    rater_spread: float = 0.0  # the same between raters
    spammers: float = 0.0  # share of raters who click fast: half at random, half always left
    abandon: float = 0.02  # share of pairs that are left unanswered
    gold_accuracy: float = 0.95  # of those who look
    seed: int = 0

    def __post_init__(self) -> None:
        bounds = [
            ("raters", self.raters, 1, 100_000),
            ("win_rate", self.win_rate, 0.001, 0.999),
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
                raise StudyError(f"Expected {name} between {low} and {high}, got {value}.")


@dataclass(frozen=True)
class _Person:
    number: int  # of the rater
    habit: str  # honest, random or left
    leaning: float  # log-odds


def simulate(
    store: StudyStore,
    crowd: Crowd,
    *,
    max_turns: int | None = None,
    progress: Progress = lambda done, total: None,
) -> int:
    """Let the crowd answer until every pair is full or nobody may answer more.

    Returns:
        The number of pairs answered.

    Raises:
        StudyError: there is no pair left for simulated raters, or the study takes no answers.
    """
    if max_turns is not None and max_turns < 1:
        raise StudyError(f"Expected at least one pair to answer, got {max_turns}. Ask for more.")
    with store.read() as connection:
        assignment.check_open(connection)
        assignment.check_running(connection)
    rng = random.Random(crowd.seed)
    store.make_pairs(simulated=True, partial=True)
    wanted = _wanted(store)
    if max_turns is not None:
        wanted = min(wanted, max_turns)
    if wanted <= 0:
        raise StudyError(
            "Expected pairs that simulated raters have not answered, got none. Ingest clips, or "
            "remove an earlier simulation with `erase --simulated`."
        )
    people = _assemble(store, crowd, rng)
    time = _Time(store.clock(), store.definition.pay.seconds_per_pair / crowd.raters)
    beliefs: dict[int, float] = {}
    done = 0
    while people and done < wanted:
        with store.write() as connection:
            for _ in range(min(TURNS_PER_COMMIT, wanted - done)):
                person = rng.choice(people)
                answered = _take_turn(connection, store, crowd, person, beliefs, time, rng)
                if answered is None:
                    people.remove(person)
                    if not people:
                        break
                done += bool(answered)
        progress(done, wanted)
    return done


class _Time:
    """The simulation's clock: the crowd works in parallel, so a turn takes a share of its time."""

    def __init__(self, start: int, seconds_per_turn: float) -> None:
        self.now = start
        self._step = max(1, round(1000 * seconds_per_turn))

    def next_turn(self) -> int:
        self.now += self._step
        return self.now


def _wanted(store: StudyStore) -> int:
    pairs = store.progress(simulated=True)["comparisons"]
    return int(pairs["wanted"].sum() - pairs["taken"].sum()) if len(pairs) else 0


def _assemble(store: StudyStore, crowd: Crowd, rng: random.Random) -> list[_Person]:
    people = []
    spammers = round(crowd.spammers * crowd.raters)
    with store.write() as connection:
        for place in range(crowd.raters):
            number = enter(
                connection,
                store.keys,
                SIMULATED,
                f"{crowd.seed}-{rng.getrandbits(32)}-{place}",
                store.clock(),
                simulated=True,
            )
            habit = "honest" if place >= spammers else ("random", "left")[place % 2]
            people.append(_Person(number, habit, rng.gauss(0, crowd.rater_spread)))
    return people


def _take_turn(
    connection: Connection,
    store: StudyStore,
    crowd: Crowd,
    person: _Person,
    beliefs: dict[int, float],
    time: _Time,
    rng: random.Random,
) -> bool | None:
    """Claim a pair and answer it; None if nothing is left, False if it was abandoned."""
    definition = store.definition
    now = time.next_turn()
    assigned = assignment.claim(connection, definition, person.number, now=now, rng=rng)
    if assigned is None:
        return None
    if rng.random() < crowd.abandon:
        # Let the assigned run out: to the others this is a pair that comes back.
        time.now += 1000 * definition.assignment.lease_seconds + 1
        return False
    pair = connection.execute(
        select(PairRow.prompt_index, PairRow.kind, PairRow.gold_answer).where(
            PairRow.id == assigned.pair_id
        )
    ).one()
    spread = beliefs.setdefault(pair.prompt_index, rng.gauss(0, crowd.prompt_spread))
    chance = _chance(math.log(crowd.win_rate / (1 - crowd.win_rate)) + spread + person.leaning)
    if pair.gold_answer is not None:
        right = crowd.gold_accuracy
        chance = right if pair.gold_answer == "a" else 1 - right
    elif pair.kind == "identical":
        chance = 0.5
    ballot = _fill(definition, crowd, person, assigned, chance, rng)
    # Nobody answers before having watched: the server checks that on the same clock.
    viewing = definition.viewing
    watched = now + round(1000 * (1 + viewing.min_loops * viewing.clip_seconds))
    submission.submit(connection, definition, ballot, now=watched)
    return True


def _fill(
    definition: StudyDefinition,
    crowd: Crowd,
    person: _Person,
    assigned: Assignment,
    chance: float,
    rng: random.Random,
) -> Submission:
    other = "right" if assigned.side_a == "left" else "left"
    low, high = HUMAN_SECONDS if person.habit == "honest" else SPAM_SECONDS
    answers = {}
    for question in definition.questions:
        if person.habit == "left" or rng.random() < crowd.side_bias:
            shown = "left"
        elif person.habit == "random":
            shown = rng.choice(["left", "right"])
        elif "tie" in question.choices and rng.random() < crowd.tie_share:
            shown = "tie"
        else:
            shown = assigned.side_a if rng.random() < chance else other
        answers[question.key] = Answer(shown, rng.uniform(low, high))
    loops = definition.viewing.min_loops + rng.randrange(3)
    return Submission(assigned.assignment_id, assigned.attempt, assigned.rater_id, answers, loops)


def _chance(log_odds: float) -> float:
    return 1 / (1 + math.exp(-log_odds))
