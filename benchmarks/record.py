"""A benchmark's figures, written with what is needed to believe and repeat them. Needs no RecBole."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from recbole_ssd.environment import machine, versions

RESULTS = Path(__file__).parent / "results"
SEED = 2020


def commit() -> str:
    """The commit that is measured, marked where the tree differs from it; `unknown` in a copy without its history."""
    if shutil.which("git") is None:
        return "unknown"
    git = ["git", "-C", str(Path(__file__).parent)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True)
    return (head or "unknown") + ("+changes" if changed.stdout.strip() else "")


COMMIT = commit()  # read at the start: a long run may outlast it


def save(
    name: str, figures: dict, command: str | None = None, seed: int = SEED, folder: Path = RESULTS, at: str = COMMIT
) -> Path:
    """Writes NAME.json into a folder.

    Args:
        name: of the file, without its suffix.
        figures: what was measured.
        command: that of this process by default.
        seed: of what was drawn.
        folder: made if it is not there.
        at: the commit, where this process cannot know it.

    Returns:
        The file.
    """
    record = {
        **figures,
        "command": command or "python " + " ".join(["benchmarks/" + Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": at,
        "seed": seed,
        "threads": torch.get_num_threads(),
        "machine": machine(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "versions": versions(),
    }
    path = folder / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return path
