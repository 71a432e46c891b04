"""The Triton kernels of the loss, interpreted on the CPU, and compiled for GPUs that are not here."""

import pytest
import torch

from recbole_ssd.ops.kernels import cross_entropy
from recbole_ssd.ops.kernels.cross_entropy import launch_options
from tests.ops.streams import error, run
from tests.ops.test_cross_entropy import ONE, inputs_of, ours, plain

from .compiler import SHARED_LIMIT, usages

SIZES = ((1, 2, 16), (5, 2, 33), (37, 301, 7), (127, 128, 64), (65, 5000, 50), (129, 300, 20), (300, 17, 64))


@pytest.fixture
def few_programs(monkeypatch):
    """Walks in one share, as on a GPU that is busy enough."""
    monkeypatch.setattr(cross_entropy, "PROGRAMS", 1)


@pytest.mark.parametrize("targets, items, size", SIZES)
def test_equals_plain(targets, items, size):
    inputs, target = inputs_of(targets, items, size, scale=0.3)
    dy = torch.tensor(1.7, dtype=torch.float64)
    truth, theirs = run(plain(target), inputs, dy), run(plain(target), inputs, dy, torch.float32)
    mine = run(ours(target, backend="triton"), inputs, dy, torch.float32)
    for got, other, want in zip(mine, theirs, truth):
        assert error(got, want) <= max(2 * error(other, want), 2e-6)


def test_one_share_equals_plain(few_programs):
    inputs, target = inputs_of(200, 1000, 32)
    for got, want in zip(
        run(ours(target, backend="triton"), inputs, ONE, torch.float32), run(plain(target), inputs, ONE)
    ):
        assert error(got, want) < 5e-6


@pytest.mark.parametrize("offset", [-200, 200])
def test_logits_far_from_zero_neither_overflow_nor_vanish(offset):
    (hidden, weight), target = inputs_of(70, 130, scale=0.3)
    hidden[40:, 0], weight[:, 0] = offset, 1
    truth = run(plain(target), [hidden, weight], ONE)
    for got, want in zip(run(ours(target, backend="triton"), [hidden, weight], ONE, torch.float32), truth):
        assert error(got, want) < 1e-4


def test_no_gradient_is_made_where_none_is_asked_for():
    (hidden, weight), target = inputs_of()
    hidden, weight = hidden.float().requires_grad_(), weight.float()
    ours(target, backend="triton")(hidden, weight).backward()
    assert hidden.grad is not None and weight.grad is None


def cases():
    for size in (16, 64, 128, 256):
        for dtype, name in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
            if size > 64 and dtype == torch.float32:
                continue  # refused
            options = launch_options(size, dtype)
            shared = {"N": "i32", "V": "i32", "share": "i32", **{k: v for k, v in options.items() if k.isupper()}}
            pointers = {"h_pointer": f"*{name}", "w_pointer": f"*{name}", "lse_pointer": "*fp32"}
            backward = {"target_pointer": "*i64", "grad_pointer": "*fp32"}
            for kernel in ("lse_kernel", "dhidden_kernel", "dweight_kernel"):
                yield {
                    "module": "recbole_ssd.ops.kernels.cross_entropy",
                    "kernel": kernel,
                    "arguments": {**pointers, **shared, **({} if kernel == "lse_kernel" else backward)},
                    **{key: options[key] for key in ("num_warps", "num_stages")},
                }


def test_compiles_without_spills():
    for usage in usages(list(cases())):
        assert usage.stack == 0, usage
        assert usage.shared <= SHARED_LIMIT[usage.capability], usage
