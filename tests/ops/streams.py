"""Streams for the op tests: ugly lengths, and Mamba-2's ranges of dt and A."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from recbole_ssd.ops.packing import Segments
from recbole_ssd.ops.seen import Seen

LENGTHS = (1, 2, 3, 4, 5, 31, 32, 33, 63, 64, 65, 200)
ORDERS = {
    "rising": LENGTHS,
    "falling": LENGTHS[::-1],
    "mixed": (64, 1, 200, 3, 33, 65, 2, 63, 5, 31, 4, 32),
}


def borders(lengths) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def ssd_inputs(length, heads=4, headdim=8, groups=1, state=16, decay=16.0, dt_max=0.1, seed=0):
    """x, dt, A, B, C, D in float64."""
    g = torch.Generator().manual_seed(seed)
    f64 = {"dtype": torch.float64, "generator": g}
    return [
        torch.randn(1, length, heads, headdim, **f64),
        torch.rand(1, length, heads, **f64) * (dt_max - dt_max / 100) + dt_max / 100,
        -1 - torch.rand(heads, **f64) * (decay - 1),
        torch.randn(1, length, groups, state, **f64),
        torch.randn(1, length, groups, state, **f64),
        torch.randn(heads, **f64),
    ]


def run(op, inputs, dy, dtype=torch.float64):
    """[y, gradient of every input], of `op` computed in `dtype`, as float64."""
    leaves = [t.detach().to(dtype).requires_grad_() for t in inputs]
    y = op(*leaves)
    y.backward(dy.to(dtype))
    grads = [torch.zeros_like(t) if t.grad is None else t.grad for t in leaves]  # one token: A has no part in it
    return [y.detach().double()] + [grad.double() for grad in grads]


def assert_threads_change_no_bit(op, inputs, dy):
    """numba's kernels give the same in float32 on one thread and on two."""
    if pytest.importorskip("numba").config.NUMBA_NUM_THREADS < 2:
        pytest.skip("this process may use one core only")
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(run(op, inputs, dy, torch.float32))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def run_alone(op, inputs, dy, cu):
    """What `run` should give: each segment by itself, its tokens (1, T, ...) joined, gradients of the rest summed."""
    alone = []
    for begin, end in zip(cu, cu[1:]):
        part = [t[:, begin:end] if t.dim() > 2 else t for t in inputs]
        alone.append(run(op, part, dy[:, begin:end]))
    return [torch.cat(parts, dim=1) if parts[0].dim() > 2 else sum(parts) for parts in zip(*alone)]


def error(got, truth) -> float:
    """Largest error, as a share of the largest entry."""
    return ((got - truth).abs().max() / truth.abs().max().clamp(min=1e-300)).item()


def seen_by(lengths, items, whole=False):
    """A stream of random items, its Seen, and the same as ones and zeros (N, V)."""
    stream = torch.randint(items, (sum(lengths),), generator=torch.Generator().manual_seed(3))
    segments = Segments(torch.tensor([0, *lengths]).cumsum(0))
    histories = [part[: n + 1] for part in stream.split(lengths) for n in range(len(part))]
    mask = torch.stack(
        [F.one_hot(history, items).amax(0) for history in (stream.split(lengths) if whole else histories)]
    )
    return Seen(stream, segments, items, whole), mask.double()
