"""Peak memory of one training step against the tokens of its batch: SSD4Rec on generated histories.

    python benchmarks/memory.py

A process for every size, so that no peak hides another. What is counted is the peak above that of a step of 1,000
tokens. The model is small (hidden 32, one layer), so that a million tokens fit into a laptop. Writes
benchmarks/results/memory.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from recbole.data.interaction import Interaction
from record import SEED, save

from recbole_ssd import Config, create_dataset, data_preparation
from recbole_ssd.environment import peak_rss_mb

TOKENS = (1_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
MEDIAN, SPREAD, LONGEST = 20, 1.0, 2_000  # log-normal lengths of histories
SETTINGS = {"hidden_size": 32, "num_layers": 1, "inner_size": 128, "d_state": 32, "headdim": 16, "show_progress": False}


def step(tokens: int) -> dict:
    """Peak memory in 2**20 bytes after one forward and backward over a stream of so many tokens."""
    torch.manual_seed(SEED)
    folder = str(Path(__file__).parents[1] / "dataset")
    config = Config("SSD4Rec", "tiny", config_dict={"data_path": folder, **SETTINGS})
    train_data = data_preparation(config, create_dataset(config))[0]
    model = config.model_class(config, train_data.dataset).train()
    borders = lengths(tokens).cumsum(0)
    items = torch.randint(1, model.n_items, (tokens,))
    batch = {"item_id_list": items, "cu_seqlens": torch.cat([torch.zeros(1, dtype=torch.long), borders]).int()}
    model.calculate_loss(Interaction({**batch, "item_id": items.roll(-1)})).backward()
    return {"tokens": tokens, "segments": len(borders), "peak_mb": peak_rss_mb()}


def lengths(tokens: int) -> torch.Tensor:
    """Lengths of histories that add up to `tokens`."""
    drawn = (torch.randn(tokens) * SPREAD).exp().mul(MEDIAN).round().long().clamp(1, LONGEST)
    chosen = drawn[: int((drawn.cumsum(0) < tokens).sum())]
    return torch.cat([chosen, (tokens - chosen.sum()).view(1)])


def in_a_process(tokens: int) -> dict:
    """`step` in a process of its own, whose peak is that of nobody else."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(Path(__file__).resolve()), str(tokens)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(step(int(sys.argv[1]))))
        return
    rows: list[dict] = []
    in_a_process(TOKENS[0])  # leaves the kernels on the disk: compiling takes memory of its own
    for tokens in TOKENS:
        rows.append(in_a_process(tokens))
        above = rows[-1]["peak_mb"] - rows[0]["peak_mb"]
        rows[-1]["kb_per_token_above_the_first"] = above * 1024 / (tokens - TOKENS[0]) if tokens > TOKENS[0] else None
        print(rows[-1], flush=True)
    print(f"written to {save('memory', {'settings': SETTINGS, 'rows': rows})}")


if __name__ == "__main__":
    main()
