"""What a run needs of its machine and tells about it: folders to write to, memory, versions, processor."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from recbole_ssd.version import __version__

_PACKAGES = ("torch", "numpy", "numba", "pandas", "recbole")


def check_folder(folder: Path | str, what: str) -> None:
    """Makes a folder and tries to write into it, before hours of training rely on it.

    Raises:
        ValueError: if it cannot be made or written.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(
            f"{what} '{folder}' cannot be written ({error.strerror}): choose another or change its rights"
        ) from None


@contextmanager
def whole(path: Path | str) -> Iterator[Path]:
    """Where to write what shall lie at `path` whole or not at all: an interrupted write leaves the older file."""
    part = Path(f"{path}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def is_watched() -> bool:
    """Whether somebody sees a progress bar: on a terminal or in a notebook; a file gets the lines of the log."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def peak_rss_mb() -> float | None:
    """The most memory that this process ever held, in 2**20 bytes; None where the system does not count.

    Linux hands `ru_maxrss` down from the process that started this one, so there VmHWM is read.
    """
    status = Path("/proc/self/status")
    if status.exists():
        peak = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM")), None)
        if peak:
            return int(peak.split()[1]) / 2**10  # kilobytes
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes there, kilobytes elsewhere


def versions() -> dict:
    """Versions of Python and of the packages that make the numbers."""
    found = {"python": platform.python_version(), "recbole_ssd": __version__}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


@cache
def commit() -> str | None:
    """The commit of the checkout that runs; None for an installed package.

    With `+changes` where its files differ, those apart that change no number: texts and results.
    """
    if shutil.which("git") is None:
        return None
    if not _git("ls-files", Path(__file__).name):  # a project that has us in its environment has a commit too
        return None
    counted = ":/", ":(top,exclude)*.md", ":(top,exclude)benchmarks/results"
    changes = "+changes" if _git("status", "--porcelain", "--untracked-files=no", "--", *counted) else ""
    return _git("rev-parse", "--short", "HEAD") + changes


def _git(*words: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *words]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def machine(device: torch.device) -> dict:
    """The processor, its cores, the threads torch uses, and the GPU."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }


def _cpu_name(cpuinfo: Path | str = "/proc/cpuinfo") -> str:
    """With the numbers of its kind: virtual machines call several generations by one name."""
    told = Path(cpuinfo).read_text(encoding="utf-8", errors="replace") if Path(cpuinfo).is_file() else ""
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in told.splitlines())}
    name = facts.get("model name") or platform.processor() or platform.machine()
    return f"{name}, family {facts['cpu family']} model {facts['model']}" if "cpu family" in facts else name
