"""A benchmark's figures, written with what is needed to believe and repeat them. Needs no RecBole."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from recbole_ssd.environment import commit, machine, versions

RESULTS = Path(__file__).parent / "results"
SEED = 2020


COMMIT = commit() or "unknown"  # in a copy without its history; read at the start: a long run may outlast it


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
