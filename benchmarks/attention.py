"""How long a step of attention takes: ours beside scaled_dot_product_attention in buckets, in one run.

    OMP_NUM_THREADS=1 python benchmarks/attention.py [--rounds=5]

A round times one forward and one forward with its backward of each, in turn, on four streams of 8,192 tokens with and
without dropout; a ratio (ours over theirs) is the median of the rounds' ratios. Theirs pads whole segments to the
widths that `aligned_chunks` gives. Writes benchmarks/results/attention.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time

import torch
import torch.nn.functional as F
from record import SEED, save
from torch import Tensor

from recbole_ssd.ops.attention import attention
from recbole_ssd.ops.chunking import aligned_chunks
from recbole_ssd.ops.packing import Segments

TOKENS, HEADS, HEAD_SIZE = 8192, 2, 32
DROPOUT = (0.0, 0.5)


def histories() -> list[int]:
    """Lengths drawn log-normally: 3 to 485 tokens, half of them at most 23."""
    generator, lengths = torch.Generator().manual_seed(SEED), []
    while sum(lengths) < TOKENS:
        length = torch.empty(1).log_normal_(math.log(21), 1.4, generator=generator).clamp(3, 700)
        lengths.append(min(int(length), TOKENS - sum(lengths)))
    return lengths


STREAMS = {"histories": histories(), "8 x 1024": [1024] * 8, "4 x 2048": [2048] * 4, "1 x 8192": [8192]}


def ours(q: Tensor, k: Tensor, v: Tensor, segments: Segments, dropout_p: float) -> Tensor:
    return attention(q[None], k[None], v[None], cu_seqlens=segments, dropout_p=dropout_p)[0]


def theirs(q: Tensor, k: Tensor, v: Tensor, segments: Segments, dropout_p: float) -> Tensor:
    """scaled_dot_product_attention on whole segments, padded to a few widths."""
    y = q.new_zeros(len(q) + 1, *q.shape[1:])
    for chunks in aligned_chunks(segments, size=TOKENS, short=TOKENS):
        rows = (chunks.gather(t).transpose(1, 2) for t in (q, k, v))
        part = F.scaled_dot_product_attention(*rows, is_causal=True, dropout_p=dropout_p)
        y = y.index_copy(0, chunks.target, part.transpose(1, 2).flatten(0, 1))
    return y[:-1]


def jagged(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> str:
    """What torch says to the same question asked with jagged nested tensors."""
    nested = (torch.nested.nested_tensor_from_jagged(t, segments.cu_seqlens).transpose(1, 2) for t in (q, k, v))
    try:
        F.scaled_dot_product_attention(*nested, is_causal=True)
    except RuntimeError as refusal:
        return str(refusal)
    return "accepted"


def step(op, qkv: list[Tensor], segments: Segments, dropout_p: float) -> tuple[float, float]:
    """Seconds of a forward, and of it with its backward."""
    started = time.perf_counter()
    y = op(*qkv, segments, dropout_p)
    forward = time.perf_counter() - started
    torch.autograd.grad(y, qkv, torch.ones_like(y))
    return forward, time.perf_counter() - started


def errors(qkv: list[Tensor], segments: Segments) -> dict:
    """Largest error of each against the definition in float64, as a share of the largest entry."""
    truth = attention(*(t.detach().double()[None] for t in qkv), cu_seqlens=segments, backend="reference")[0]
    found = {}
    for op in (ours, theirs):
        found[op.__name__] = ((op(*qkv, segments, 0.0) - truth).abs().max() / truth.abs().max()).item()
        assert found[op.__name__] < 2e-6, found
    return found


def measure(lengths: list[int], rounds: int) -> dict:
    segments = Segments(torch.tensor([0, *lengths]).cumsum(0))
    qkv = [torch.randn(TOKENS, HEADS, HEAD_SIZE).requires_grad_() for _ in range(3)]
    figures = {"segments": len(lengths), "error": errors(qkv, segments)}
    for dropout_p in DROPOUT:
        for op in (ours, theirs):
            step(op, qkv, segments, dropout_p)  # warm up
        forward, both = [], []
        for _ in range(rounds):
            (a, b), (c, d) = (step(op, qkv, segments, dropout_p) for op in (ours, theirs))
            forward.append(a / c)
            both.append(b / d)
        figures[f"dropout {dropout_p}"] = {
            "forward, ours / theirs": statistics.median(forward),
            "forward and backward, ours / theirs": statistics.median(both),
            "rounds of the latter": both,
        }
    figures["jagged nested tensors"] = jagged(*qkv, segments)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rounds", type=int, default=5, help="rounds of a stream with long segments; 5 times as many else"
    )
    rounds = parser.parse_args().rounds
    torch.manual_seed(SEED)
    figures = {
        "what": f"causal attention, {TOKENS} tokens, {HEADS} heads of {HEAD_SIZE}, float32: ours over theirs",
        "theirs": "scaled_dot_product_attention, segments in buckets of a few widths",
    }
    for name, lengths in STREAMS.items():
        figures[name] = measure(lengths, 5 * rounds if len(lengths) > 4 else rounds)
        print(name, json.dumps(figures[name], indent=1), flush=True)
    figures["load average"] = os.getloadavg()  # of the machine: who else was computing
    print(f"written to {save('attention', figures)}")


if __name__ == "__main__":
    main()
