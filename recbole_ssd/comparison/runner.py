"""Runs what is to run: a process each, so that memory is clean and a crash costs one run; a log file each."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from recbole_ssd.comparison.progress import Progress
from recbole_ssd.comparison.records import DONE, FAILED, INTERRUPTED, read_record
from recbole_ssd.comparison.runs import Run, RunFolder
from recbole_ssd.signals import interruptible_children

PROGRAM = ("-m", "recbole_ssd")  # of a run, for Python
POLL_S = 0.2
PATIENCE_S = 10  # of a run that was asked to stop
_INTERRUPTED_CODES = (130, -signal.SIGINT, -signal.SIGTERM)


def run_all(runs: list[Run], folder: Path, progress: Progress, jobs: int = 1) -> None:
    """Runs what is not done yet. What is done stays; what failed or was interrupted starts again.

    Args:
        runs: in order.
        folder: where each gets a folder of its own.
        progress: is told what happens.
        jobs: runs at a time.

    Raises:
        KeyboardInterrupt: after Ctrl-C, when all runs have stopped.
    """
    waiting = [run for run in runs if read_record(folder, run).state != DONE]
    active: dict[str, tuple[Run, subprocess.Popen]] = {}
    try:
        while waiting or active:
            while waiting and len(active) < jobs:
                run = waiting.pop(0)
                active[run.name] = run, _start(run, folder)
                progress.started(run)
            time.sleep(POLL_S)
            progress.tick()
            for name, (run, process) in list(active.items()):
                if process.poll() is not None:
                    del active[name]
                    _settle(run, folder, process.returncode)
                    progress.ended(read_record(folder, run))
    finally:
        _stop(process for _, process in active.values())


def _start(run: Run, folder: Path) -> subprocess.Popen:
    place = RunFolder(folder, run)
    shutil.rmtree(place.path, ignore_errors=True)  # what an interrupted run left
    place.path.mkdir(parents=True)
    place.write_settings(run)
    # The child sees the modules that this process sees, installed or not.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, *PROGRAM, f"--config_files={place.settings}"]
    with open(place.log, "w", encoding="utf-8") as log, interruptible_children():
        # In a group of its own: Ctrl-C reaches this process alone, which then stops its runs one by one.
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            pass_fds=_locks,
        )


def _settle(run: Run, folder: Path, code: int) -> None:
    """Writes down why a run has no result."""
    place = RunFolder(folder, run)
    if place.result.is_file():  # it is whole, whatever happened after it was written
        return
    state = INTERRUPTED if code in _INTERRUPTED_CODES else FAILED
    text = json.dumps({"state": state, "reason": _reason(place.log, code)}, indent=1)
    place.failure.write_text(text + "\n", encoding="utf-8")


def _reason(log: Path, code: int) -> str:
    """The last line of a log, which is the sentence or the exception that ended the run."""
    if code < 0 and code not in _INTERRUPTED_CODES:
        hint = " (so the system ends what takes too much memory)" if code == -9 else ""
        return f"ended by signal {-code}{hint}"
    if code in _INTERRUPTED_CODES:
        return "interrupted"
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in re.split(r"[\r\n]", text) if line.strip()]
    return lines[-1][:500] if lines else f"ended with status {code} and wrote nothing"


def _stop(processes) -> None:
    """Asks runs to stop, as Ctrl-C does, and ends those that do not."""
    processes = [process for process in processes if process.poll() is None]
    for process in processes:
        process.send_signal(signal.SIGINT if os.name == "posix" else signal.SIGTERM)
    deadline = time.monotonic() + PATIENCE_S
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


_locks: list[int] = []  # file descriptors that runs inherit: the lock of a folder outlives a killed comparison


@contextmanager
def folder_lock(folder: Path):
    """Holds a folder for one comparison.

    Its runs hold it with it: if a comparison is killed, a run of it may go on, and a second one must not start beside
    it.

    Raises:
        ValueError: if somebody else holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(
                f"another comparison, or a run that it left behind, is at work in '{folder}': wait for it or stop it "
                "(its log is the newest run.log there), or choose another folder with --output (or --runs)"
            ) from None
        _locks.append(file.fileno())
        try:
            yield
        finally:
            _locks.remove(file.fileno())
