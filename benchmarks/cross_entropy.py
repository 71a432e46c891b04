"""How long the loss over a catalogue takes: ours beside torch's own and the plain one, over the products' own time.

    OMP_NUM_THREADS=1 python benchmarks/cross_entropy.py [--rounds=5]

A round runs each once, in turn, forward and backward to the hidden vectors and the item table; the figure is the median
of a round's CPU seconds of one thread over those of three products of the same size by torch.mm. Before that, loss and
gradients are held against float64 on the first targets. Writes benchmarks/results/cross_entropy.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from functools import partial

import torch
import torch.nn.functional as F
from record import SEED, save
from torch import Tensor
from torch.nn import LinearCrossEntropyOptions

from recbole_ssd.ops.cross_entropy import linear_cross_entropy

SIZES = (  # targets, d, items
    (8192, 64, 1683),
    (8192, 256, 1683),
    (4096, 64, 12_102),
    (4096, 256, 12_102),
    (1024, 64, 100_000),
    (1024, 256, 100_000),
    (512, 64, 1_000_000),
)
SPREAD = 3.0  # standard deviation of the logits: some targets are certain, most are not
PLAIN_MB = 500  # of logits that the plain loss may make
CHUNKS = (64, 128, 256)  # rows of torch's own, beside its choice
SLOW_ITEMS = 100_000  # from which on its choice is a row at a time: minutes a step


def own(**options):
    """torch's own fused loss."""
    return partial(F.linear_cross_entropy, options=LinearCrossEntropyOptions(**options))


def plain(h: Tensor, w: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(h @ w.t(), target)


def products(h: Tensor, w: Tensor) -> float:
    """Seconds of the floor: what each of these must multiply, on operands that stay in the cache."""
    part, items = h.detach()[:256], w.detach()[:1000]
    logits, dh, dw = (torch.empty(size) for size in ((len(part), len(items)), part.shape, items.shape))
    repeats = max(1, round(len(h) * len(w) / logits.numel()))
    started = time.process_time()
    for _ in range(repeats):
        torch.mm(part, items.t(), out=logits)
        torch.mm(logits, items, out=dh)
        torch.mm(logits.t(), part, out=dw)
    return (time.process_time() - started) / (repeats * logits.numel()) * len(h) * len(w)


def step(loss, h: Tensor, w: Tensor, target: Tensor) -> float:
    """Seconds of a forward with its backward."""
    started = time.process_time()
    torch.autograd.grad(loss(h, w, target), (h, w))
    return time.process_time() - started


def errors(loss, h: Tensor, w: Tensor, target: Tensor) -> dict:
    """Against float64: the loss relative, a gradient as 1 - cosine and as its largest error over its largest entry."""
    part = slice(0, max(16, 2**25 // len(w)))  # targets that leave room for float64
    truth, found = [], []
    for run, dtype, results in ((plain, torch.float64, truth), (loss, torch.float32, found)):
        leaves = [t.detach().to(dtype).requires_grad_() for t in (h[part], w)]
        value = run(*leaves, target[part])
        results += [t.double() for t in (value.detach(), *torch.autograd.grad(value, leaves))]
    figures = {"loss": ((found[0] - truth[0]).abs() / truth[0]).item()}
    for name, got, want in zip(("hidden", "weight"), found[1:], truth[1:]):
        figures[f"{name} 1-cos"] = 1 - F.cosine_similarity(got.flatten(), want.flatten(), dim=0).item()
        figures[f"{name} largest"] = ((got - want).abs().max() / want.abs().max()).item()
    return figures


def measure(n: int, d: int, v: int, rounds: int) -> dict:
    h, w = torch.randn(n, d).requires_grad_(), (torch.randn(v, d) * SPREAD / d**0.5).requires_grad_()
    target = torch.randint(v, (n,))
    losses = {"ours": linear_cross_entropy, "ours, bfloat16": partial(linear_cross_entropy, precision="bfloat16")}
    losses |= {f"torch's own, {rows} rows": own(batch_chunk_size=rows) for rows in CHUNKS}
    if v < SLOW_ITEMS:
        losses["torch's own"] = own()
    if 4 * n * v < PLAIN_MB * 2**20:
        losses["plain"] = plain
    accuracy = {name: errors(loss, h, w, target) for name, loss in list(losses.items())[:2]}
    assert accuracy["ours"]["loss"] < 1e-6 and accuracy["ours"]["weight 1-cos"] < 1e-9, accuracy
    seconds = {name: [] for name in losses}
    floor = []
    for _ in range(rounds + 1):
        floor.append(products(h, w))
        for name, loss in losses.items():
            seconds[name].append(step(loss, h, w, target))
    floor = statistics.median(floor[1:])  # the first round warms up
    return {
        "products_ms": 1e3 * floor,
        "over the products": {name: statistics.median(s[1:]) / floor for name, s in seconds.items()},
        "error": accuracy,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.manual_seed(SEED)
    figures = {"what": "cross-entropy over all items, forward and backward, float32, over three torch.mm of its size"}
    print(f"{'targets':>8}{'d':>5}{'items':>9}{'products':>11}{'ours':>7}{'bf16':>7}{'own':>7}{'best':>7}{'plain':>7}")
    for n, d, v in SIZES:
        figure = figures[f"{n} targets, d {d}, {v} items"] = measure(n, d, v, rounds)
        over = figure["over the products"]
        own_times = [value for name, value in over.items() if name.startswith("torch's own")]
        others = (over.get("torch's own", float("nan")), min(own_times), over.get("plain", float("nan")))
        row = "".join(f"{value:7.2f}" for value in (over["ours"], over["ours, bfloat16"], *others))
        print(f"{n:8}{d:5}{v:9}{figure['products_ms']:8.1f} ms{row}", flush=True)
    figures["load average"] = os.getloadavg()  # who else was computing
    print(f"written to {save('cross_entropy', figures)}")


if __name__ == "__main__":
    main()
