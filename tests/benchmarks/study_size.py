"""Fill a study with a million votes; time the next pair, the results, all votes and the report.

    python -m tests.benchmarks.study_size [--votes 1000000] [--report]

Rows are inserted directly, with every constraint of the tables in force. Prints a table for people
and, last, one JSON line for machines.
"""

import argparse
import json
import os
import platform
import random
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from sqlalchemy import insert, select, update

from human_eval.clips.ingest import Clip
from human_eval.collection.submission import Answer, Submission
from human_eval.definition.definition import load_definition
from human_eval.definition.prompts import Prompt
from human_eval.reporting.live_results import LiveResults
from human_eval.storage.tables import AssignmentRow, PairRow, Rater, Vote
from human_eval.study.queries import count_answers, read_study_progress, read_votes
from human_eval.study.store import StudyStore, create_study
from tests.support.studies import add_clips, claim_pair, submit_answers

ROOT = Path(__file__).parents[2]
RATERS = 400
CLAIMS = 300
BATCH = 20_000


def fill(folder: Path, votes: int) -> StudyStore:
    """Make a study of which all but a twentieth of the pairs are full."""
    definition = load_definition("shapes-demo")
    per_turn, k = len(definition.questions), definition.raters_per_pair
    turns = votes // per_turn
    num_prompts = round(turns / k * 20 / 19)
    prompts = [Prompt(index, f"prompt {index // 2}") for index in range(num_prompts)]
    store = create_study(folder, definition, prompts)
    about = {"prompt": "", "seed": 0, "source_sha256": "", "sha256": "", "width": 32, "height": 32}
    add_clips(
        store,
        [
            Clip(
                system=system.key,
                prompt_index=index,
                stored_name=f"{system.key}-{index}.mp4",
                **about,
            )
            for system in definition.systems
            for index in range(num_prompts)
        ],
    )
    rng = random.Random(0)
    with store.write() as connection:
        people = [
            {"provider": "bench", "pseudonym": str(n), "simulated": False, "created_at": 0}
            for n in range(RATERS)
        ]
        connection.execute(insert(Rater), people)
        raters = connection.execute(select(Rater.id)).scalars().all()
        pairs = connection.execute(select(PairRow.id).where(PairRow.kind == "real")).scalars().all()
    ordinals = dict.fromkeys(raters, 0)
    start = store.clock() - 10**10
    plan = [(pair, rater) for pair in pairs for rater in rng.sample(raters, k)][:turns]
    for first in range(0, len(plan), BATCH):
        rows, answers = [], []
        for number, (pair, rater) in enumerate(plan[first : first + BATCH], first + 1):
            at = start + 1000 * number
            turn = {"id": number, "pair_id": pair, "rater_id": rater, "comparison": "C1"}
            turn |= {"simulated": False, "ordinal": ordinals[rater], "slot": 0, "attempt": 1}
            turn |= {"state": "submitted", "side_a": rng.choice(["left", "right"])}
            rows.append(turn | {"assigned_at": at, "expires_at": at, "submitted_at": at})
            ordinals[rater] += 1
            for question in definition.questions:
                answer = {"assignment_id": number, "question": question.key, "revision": 0}
                answer |= {"choice": rng.choice("aab"), "answered_at": at, "loops": 2}
                answers.append(answer | {"seconds": 5.0, "definition_hash": definition.hash})
        with store.write() as connection:
            connection.execute(insert(AssignmentRow), rows)
            connection.execute(insert(Vote), answers)
    full = [pair for pair, _ in plan[k - 1 :: k]]
    with store.write() as connection:
        for pair in full:
            connection.execute(update(PairRow).where(PairRow.id == pair).values(taken=k))
    return store


def time_turns(store: StudyStore, claims: int = CLAIMS) -> tuple[list[float], list[float]]:
    """Return milliseconds of claims and of submits by raters who have answered thousands."""
    claimed, submits = [], []
    with store.read() as connection:
        raters = connection.execute(select(Rater.id)).scalars().all()
    for rater in raters[:claims]:
        began = time.perf_counter()
        lease = claim_pair(store, rater)
        claimed.append(1000 * (time.perf_counter() - began))
        assert lease is not None
        answers = {question.key: Answer("left", 1.0) for question in store.definition.questions}
        ballot = Submission(lease.assignment_id, lease.attempt, rater, answers, loops=2)
        began = time.perf_counter()
        submit_answers(store, ballot)
        submits.append(1000 * (time.perf_counter() - began))
    return claimed, submits


def clock(action, *arguments, **options) -> tuple[float, float]:  # type: ignore[no-untyped-def]
    """Return seconds of wall and of processor."""
    wall, work = time.perf_counter(), time.process_time()
    action(*arguments, **options)
    return time.perf_counter() - wall, time.process_time() - work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--votes", type=int, default=1_000_000)
    parser.add_argument("--report", action="store_true", help="also write the report")
    options = parser.parse_args()
    with TemporaryDirectory(dir=ROOT) as place:
        began = time.perf_counter()
        store = fill(Path(place) / "study", options.votes)
        numbers = {"votes": options.votes, "fill_s": time.perf_counter() - began}
        work = time.process_time()
        claims, submits = time_turns(store)
        numbers["turn_cpu_ms"] = 1000 * (time.process_time() - work) / len(claims)
        numbers["next_pair_p50_ms"] = float(np.percentile(claims, 50))
        numbers["next_pair_p95_ms"] = float(np.percentile(claims, 95))
        numbers["submit_p95_ms"] = float(np.percentile(submits, 95))
        numbers["tally_s"], numbers["tally_cpu_s"] = clock(lambda: count_answers(store))
        live = LiveResults(store)
        numbers["results_first_s"], numbers["results_first_cpu_s"] = clock(live.read)
        numbers["results_again_s"], numbers["results_again_cpu_s"] = clock(live.read)
        time_turns(store, claims=1)  # an answer comes in
        numbers["results_changed_s"], _ = clock(live.read)
        numbers["progress_s"], numbers["progress_cpu_s"] = clock(lambda: read_study_progress(store))
        numbers["frame_s"], numbers["frame_cpu_s"] = clock(lambda: read_votes(store))
        if options.report:
            from human_eval.reporting.report import write_report

            votes = read_votes(store)
            numbers["report_s"], numbers["report_cpu_s"] = clock(
                write_report, votes, store.definition, Path(place) / "report"
            )
        numbers["file_mb"] = (store.folder / "study.db").stat().st_size / 1e6
        store.close()
    print(f"{platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for name, value in numbers.items():
        print(f"{name:>20} {value:>14,.2f}")
    rounded = {name: round(value, 3) for name, value in numbers.items()}
    print(json.dumps({"bench": "study_size", **rounded}))


if __name__ == "__main__":
    main()
