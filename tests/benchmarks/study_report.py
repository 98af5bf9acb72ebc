"""How long the report of a large study takes.

python -m tests.benchmarks.study_report                   # a million votes
python -m tests.benchmarks.study_report --votes 100000
"""

import argparse
import json
import platform
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time

from human_eval.definition.definition import load_definition
from human_eval.reporting.export import write_export
from human_eval.reporting.report import report_from_export, write_report
from tests.support.crowd import make_votes

PROMPTS, RATERS = 700, 500


def main() -> None:
    """Print the seconds of every part, and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--votes", type=int, default=1_000_000)
    wanted = parser.parse_args().votes
    preset = load_definition("t2v-turbo")
    cells = len(preset.comparisons) * len(preset.questions)
    per_pair = -(-wanted // (PROMPTS * cells))
    definition = replace(preset, raters_per_pair=per_pair)
    votes = make_votes(definition, prompts=PROMPTS, raters=RATERS)
    print(f"{len(votes):,} votes, {PROMPTS} prompts, {RATERS} raters; {platform.machine()}")
    parts: list[tuple[str, float, float]] = []

    def note(what: str) -> None:
        parts.append((what, perf_counter(), process_time()))

    with TemporaryDirectory() as folder:
        write_report(votes, definition, Path(folder) / "report", progress=note)
        note("export")
        write_export(votes, definition, Path(folder) / "export")
        note("report of the export")
        report_from_export(Path(folder) / "export", Path(folder) / "again")
        note("end")
    seconds = {}
    print(f"{'part':26} {'seconds':>8} {'CPU':>8}")
    for (what, wall, cpu), (_, next_wall, next_cpu) in zip(parts, parts[1:], strict=False):
        seconds[what] = round(next_wall - wall, 2)
        print(f"{what:26} {next_wall - wall:8.2f} {next_cpu - cpu:8.2f}")
    [end] = [wall for what, wall, _ in parts if what == "export"]
    whole = end - parts[0][1]
    print(f"{'the report in all':26} {whole:8.2f}")
    print(json.dumps({"votes": len(votes), "report_seconds": round(whole, 2), "parts": seconds}))


if __name__ == "__main__":
    main()
