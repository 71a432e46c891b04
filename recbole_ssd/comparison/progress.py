"""Lines about all runs: what started, how it ended, and about how long the rest takes."""

from __future__ import annotations

import re
import statistics
import sys
import time
from pathlib import Path

from recbole_ssd.comparison.records import DONE, Record, read_record
from recbole_ssd.comparison.runs import Run, RunFolder

START_S = 5  # of a process, beside training and evaluation
TICK_S = 1
_EPOCH = re.compile(rb"epoch (\d+) training")


class Progress:
    """Counts the runs of a comparison and estimates the time left from those that are done.

    Args:
        runs: all of them, also those that are done.
        folder: where they lie.
        jobs: runs at a time.
        out: where lines go.
    """

    def __init__(self, runs: list[Run], folder: Path, jobs: int, out=None):
        self.runs, self.folder, self.jobs = runs, folder, jobs
        self.out = out or sys.stdout
        self.began: dict[str, float] = {}
        self.shown = 0.0
        self.took: dict[str, list[float]] = {}  # seconds of finished runs by label
        self.open = {run.name: run for run in runs}
        done = [record for run in runs if (record := read_record(folder, run)).state == DONE]
        for record in done:
            self._count(record, record.seconds + START_S)
        if done:
            self._line(f"{len(done)} of {len(runs)} runs are done already, in {folder}")

    def started(self, run: Run) -> None:
        self.began[run.name] = time.monotonic()
        self._line(f"{self._number(run)} {run}: started{self._left()}")

    def ended(self, record: Record) -> None:
        run = record.run
        seconds = time.monotonic() - self.began.pop(run.name)
        self.open.pop(run.name, None)
        if record.state == DONE:
            self._count(record, seconds)
            valid = (record.result["best_valid_result"] or {}).get(record.run.metric)
            told = "" if valid is None else f", validation {record.run.metric} {valid:.4f}"
            cut = ", cut by max_train_s" if record.cut else ""
            self._line(f"{self._number(run)} {run}: done in {duration(seconds)}{cut}{told}{self._left()}")
        else:
            self._line(f"{self._number(run)} {run}: {record.state}: {record.reason} (log: {record.folder.log})")

    def tick(self) -> None:
        """On a terminal, a line that tells the epochs of the runs at work, every second."""
        if not self.out.isatty() or time.monotonic() - self.shown < TICK_S:
            return
        self.shown = time.monotonic()
        at_work = ", ".join(
            f"{self.open[name]} {_epoch(RunFolder(self.folder, self.open[name]).log)}{duration(self.shown - began)}"
            for name, began in self.began.items()
        )
        self.out.write(f"\r\033[K{at_work}{self._left()}\r")
        self.out.flush()

    def seconds_left(self) -> float | None:
        """An estimate; None before any run is done."""
        if not self.took:
            return None
        means = {label: statistics.fmean(seconds) for label, seconds in self.took.items()}
        other = statistics.fmean(means.values())
        now, left = time.monotonic(), 0.0
        for name, run in self.open.items():
            spent = now - self.began[name] if name in self.began else 0.0
            left += max(0.0, means.get(run.label, other) - spent)
        return left / min(self.jobs, max(1, len(self.open)))

    def _count(self, record: Record, seconds: float) -> None:
        self.open.pop(record.run.name, None)
        self.took.setdefault(record.run.label, []).append(seconds)

    def _left(self) -> str:
        left = self.seconds_left()
        return (
            ""
            if left is None or not self.open
            else f"; about {duration(left)} left for {len(self.open)} run{'s' * (len(self.open) > 1)}"
        )

    def _number(self, run: Run) -> str:
        width = len(str(len(self.runs)))
        place = [other.name for other in self.runs].index(run.name) + 1
        return f"[{place:>{width}}/{len(self.runs)}]"

    def _line(self, text: str) -> None:
        clear = "\r\033[K" if self.out.isatty() else ""
        print(f"{clear}{text}", file=self.out, flush=True)


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> duration(42), duration(150), duration(4000)
    ('42 s', '2.5 min', '1.1 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def _epoch(log: Path) -> str:
    """The last epoch that a log tells of."""
    with open(log, "rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - 4096))
        found = _EPOCH.findall(file.read())
    return f"epoch {int(found[-1])}, " if found else ""
