"""The log of a run: one CSV row per step, each step once, even after the run was resumed."""

import csv
import os
from dataclasses import asdict, fields
from io import StringIO
from pathlib import Path

from training.loop import StepStats
from turbo.whole_file import write_whole


class Log:
    """Rows of `StepStats`. The first one added removes those of the same or later steps."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.started = False

    def add(self, stats: StepStats) -> None:
        """Append a row, on disk at once: a checkpoint that follows must not have more steps."""
        if not self.started:
            self._cut(stats.step)
            self.started = True
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow(asdict(stats).values())
            file.flush()
            os.fsync(file.fileno())

    def _cut(self, step: int) -> None:
        """Keep the rows before a step. A killed run may have logged steps that are taken again."""
        names = [field.name for field in fields(StepStats)]
        rows = list(csv.reader(self.path.read_text().splitlines())) if self.path.exists() else []
        kept = [row for row in rows[1:] if len(row) == len(names) and int(row[0]) < step]
        text = StringIO(newline="")
        csv.writer(text).writerows([names, *kept])
        write_whole(self.path, text.getvalue().encode())
