"""How long the report of a large study takes.

python -m tests.benchmarks.study_report                   # a million votes
python -m tests.benchmarks.study_report --votes 100000
python -m tests.benchmarks.study_report --many            # 927 comparisons of 59 systems, as LLMFAO
"""

import argparse
import json
import platform
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time

import numpy as np
import pandas as pd
from scipy.special import expit

from human_eval.definition.definition import StudyDefinition, load_definition
from human_eval.reporting.export import write_export
from human_eval.reporting.foreign_study import define_study, make_frame
from human_eval.reporting.foreign_votes import load_mapping, read_foreign_votes
from human_eval.reporting.report import report_from_export, write_report
from tests.support.crowd import make_votes

PROMPTS, RATERS = 700, 500


def battle(folder: Path) -> tuple[pd.DataFrame, StudyDefinition]:
    """Return votes of the size and shape of LLMFAO's, drawn anew, with uneven raters."""
    rng = np.random.default_rng(1)
    strengths = rng.normal(size=59)
    pairs = rng.permutation(np.column_stack(np.triu_indices(59, 1)))[:927]
    first, second = pairs[np.arange(8_931) % len(pairs)].T
    won = rng.random(len(first)) < expit(strengths[first] - strengths[second])
    winner = np.where(won, "model_a", "model_b")
    rater = rng.choice(124, len(first), p=rng.dirichlet(np.full(124, 0.7)))
    table = pd.DataFrame(
        {
            "model_a": [f"s{number:02}" for number in first],
            "model_b": [f"s{number:02}" for number in second],
            "winner": np.where(rng.random(len(first)) < 0.25, "tie", winner),
            "judge": [f"w{number}" for number in rater],
            "prompt": [f"prompt {number}" for number in rng.integers(13, size=len(first))],
            "tstamp": 1.7e9 + 10 * np.arange(len(first)),
        }
    )
    table.to_csv(folder / "battles.csv", index=False)
    votes = read_foreign_votes(folder / "battles.csv", load_mapping("arena"))
    definition = define_study(votes, title="battles")
    return make_frame(votes, definition), definition


def main() -> None:
    """Print the seconds of every part, and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--votes", type=int, default=1_000_000)
    parser.add_argument("--many", action="store_true", help="8,931 votes on 927 comparisons")
    options = parser.parse_args()
    preset = load_definition("t2v-turbo")
    cells = len(preset.comparisons) * len(preset.questions)
    per_pair = -(-options.votes // (PROMPTS * cells))
    definition = replace(preset, raters_per_pair=per_pair)
    if options.many:
        with TemporaryDirectory() as folder:
            votes, definition = battle(Path(folder))
    else:
        votes = make_votes(definition, prompts=PROMPTS, raters=RATERS)
    print(f"{len(votes):,} votes, {len(definition.comparisons)} comparisons; {platform.machine()}")
    print(f"{'part':26} {'seconds':>8} {'CPU':>8}")
    parts: dict[str, float] = {}
    whole, last = [perf_counter(), process_time()], ("", perf_counter(), process_time())

    def note(what: str) -> None:
        nonlocal last
        part, wall, cpu = last
        last = (what, perf_counter(), process_time())
        if part:
            parts[part] = round(last[1] - wall, 2)
            print(f"{part:26} {last[1] - wall:8.2f} {last[2] - cpu:8.2f}", flush=True)

    with TemporaryDirectory() as folder:
        write_report(votes, definition, Path(folder) / "report", progress=note)
        note("export")
        whole = [last[1] - whole[0], last[2] - whole[1]]
        print(f"{'the report in all':26} {whole[0]:8.2f} {whole[1]:8.2f}", flush=True)
        write_export(votes, definition, Path(folder) / "export")
        note("report of the export")
        report_from_export(Path(folder) / "export", Path(folder) / "again")
        note("end")
    seconds, cpu = (round(value, 2) for value in whole)
    found = {"votes": len(votes), "report_seconds": seconds, "report_cpu_seconds": cpu}
    print(json.dumps({**found, "parts": parts}))


if __name__ == "__main__":
    main()
