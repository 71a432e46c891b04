"""The loss of `ops.cross_entropy` as Triton kernels that never write a logit to memory.

    lse[i] = logsumexp_v(l[i, v]),    l = h @ W.T,    g[i, v] = exp(l[i, v] - lse[i]) - (v == target[i])
    dh = g @ W,    dW = g.T @ h

Three kernels, each with a tile of logits in registers: one walks the items for lse, one walks them again for dh, one
walks the targets for dW. That makes five products where blocks of logits in memory need three, and saves about nine
passes over logits of 4 bytes. On paper, on an H200 (4.8 TB/s), those passes alone cost 7 ps a logit, and all five
products in bfloat16 2 ps at d = 64 and 6 ps at 256. Products of float32 are three of tf32, which keeps the accuracy:
7 ps at d = 64 against 14 for blocks. Wider float32 would gain little and spill registers: refused. None was timed.

A walk is cut into shares while there are fewer programs than a GPU has room for. Torch adds the shares in a fixed
order: no atomics, so the same numbers every time.

The logits of dW are made transposed from transposed loads: Triton up to 3.7 miscompiles the product of a transposed
accumulator on Hopper.

Shape letters:    N targets    d model size    V items    S shares of a walk
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

PROGRAMS = 512  # about four for every multiprocessor of a large GPU
PRODUCTS = tl.constexpr("tf32x3")  # of float32 operands


def linear_cross_entropy_triton(hidden: Tensor, weight: Tensor, target: Tensor, precision: str) -> Tensor:
    """See `ops.cross_entropy.linear_cross_entropy`. The sums are float32."""
    return _LinearCrossEntropy.apply(hidden, weight, target, precision == "bfloat16")


def launch_options(d: int, dtype: torch.dtype) -> dict:
    """Block sizes that spill no register: STILL rows stay where they are, WALKED ones pass by.

    >>> launch_options(50, torch.float32)
    {'D': 64, 'STILL': 128, 'WALKED': 16, 'num_warps': 8, 'num_stages': 2}
    """
    size = max(16, triton.next_power_of_2(d))  # what a product needs at least
    if dtype == torch.float32:
        return {"D": size, "STILL": 128, "WALKED": 16, "num_warps": 8, "num_stages": 2}
    narrow = size <= 128
    return {"D": size, "STILL": 128 if narrow else 64, "WALKED": 64, "num_warps": 8, "num_stages": 3 if narrow else 2}


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, target, in_bfloat16):
        options = launch_options(hidden.shape[1], torch.bfloat16 if in_bfloat16 else hidden.dtype)
        h, w = (_padded(t.bfloat16() if in_bfloat16 else t, options["D"]) for t in (hidden, weight))
        ctx.d, ctx.dtype, ctx.options = hidden.shape[1], hidden.dtype, options
        target = target.contiguous()
        still, share, shares = _shares(len(h), len(w), options)
        lse = h.new_empty(shares, len(h), dtype=torch.float32)
        with torch.cuda.device_of(h):
            lse_kernel[(still, shares)](h, w, lse, len(h), len(w), share, **options)
        lse = lse.logsumexp(0)
        ctx.save_for_backward(h, w, target, lse)
        found = (h.float() * w[target].float()).sum(1)  # of the rounded operands, as lse is
        return (lse - found).mean(dtype=torch.float64).to(hidden.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, dloss):
        h, w, target, lse = ctx.saved_tensors
        scale, grads = dloss / len(h), []
        for kernel, still, walked, wanted in (
            (dhidden_kernel, h, w, ctx.needs_input_grad[0]),
            (dweight_kernel, w, h, ctx.needs_input_grad[1]),
        ):
            if not wanted:
                grads.append(None)
                continue
            programs, share, shares = _shares(len(still), len(walked), ctx.options)
            grad = h.new_empty(shares, *still.shape, dtype=torch.float32)
            with torch.cuda.device_of(h):
                kernel[(programs, shares)](h, w, target, lse, grad, len(h), len(w), share, **ctx.options)
            grads.append((grad.sum(0)[:, : ctx.d] * scale).to(ctx.dtype))
        return *grads, None, None


def _padded(x: Tensor, size: int) -> Tensor:
    """With columns of zeros up to the kernels' size: masks inside would cost them registers."""
    return F.pad(x, (0, size - x.shape[1])) if x.shape[1] < size else x.contiguous()


def _shares(still: int, walked: int, options: dict) -> tuple[int, int, int]:
    """Blocks that stand still, rows of a share of the walk, and how many shares."""
    programs, blocks = triton.cdiv(still, options["STILL"]), triton.cdiv(walked, options["WALKED"])
    share = triton.cdiv(blocks, max(1, PROGRAMS // programs)) * options["WALKED"]
    return programs, share, triton.cdiv(walked, share)


@triton.jit
def _rows(pointer, begin, count, ROWS: tl.constexpr, D: tl.constexpr):
    """Rows of a (count, D) matrix from `begin` on, (ROWS, D), with zeros beyond its end."""
    i = tl.arange(0, ROWS)
    block = pointer + tl.cast(begin, tl.int64) * D
    return tl.load(block + i[:, None] * D + tl.arange(0, D)[None, :], mask=(begin + i < count)[:, None], other=0.0)


@triton.jit
def _columns(pointer, begin, count, ROWS: tl.constexpr, D: tl.constexpr):
    """The same rows, loaded as their transpose (D, ROWS)."""
    i = tl.arange(0, ROWS)
    block = pointer + tl.cast(begin, tl.int64) * D
    return tl.load(block + i[None, :] * D + tl.arange(0, D)[:, None], mask=(begin + i < count)[None, :], other=0.0)


@triton.jit
def _store(pointer, block, begin, count, ROWS: tl.constexpr, D: tl.constexpr):
    """Writes a block of a share's rows, into a (S, count, D) tensor."""
    i = tl.arange(0, ROWS)
    pointer += (tl.cast(tl.program_id(1), tl.int64) * count + begin) * D
    tl.store(pointer + i[:, None] * D + tl.arange(0, D)[None, :], block, mask=(begin + i < count)[:, None])


@triton.jit(do_not_specialize=["N"])
def lse_kernel(
    h_pointer, w_pointer, lse_pointer, N, V, share, D: tl.constexpr, STILL: tl.constexpr, WALKED: tl.constexpr
):
    """(S, N): logsumexp of each target's logits over a share of the items."""
    here, first = tl.program_id(0) * STILL, tl.program_id(1) * share
    h = _rows(h_pointer, here, N, STILL, D)
    largest = tl.full((STILL,), float("-inf"), tl.float32)
    total = tl.zeros((STILL,), tl.float32)
    for begin in range(first, tl.minimum(first + share, V), WALKED):
        logits = tl.dot(h, _columns(w_pointer, begin, V, WALKED, D), input_precision=PRODUCTS)
        logits = tl.where((begin + tl.arange(0, WALKED) < V)[None, :], logits, float("-inf"))
        larger = tl.maximum(largest, tl.max(logits, 1))
        total = total * tl.exp(largest - larger) + tl.sum(tl.exp(logits - larger[:, None]), 1)
        largest = larger
    i = here + tl.arange(0, STILL)
    at = tl.cast(tl.program_id(1), tl.int64) * N + i
    tl.store(lse_pointer + at, largest + tl.log(total), mask=i < N)


@triton.jit(do_not_specialize=["N"])
def dhidden_kernel(
    h_pointer, w_pointer, target_pointer, lse_pointer, grad_pointer, N, V, share,
    D: tl.constexpr, STILL: tl.constexpr, WALKED: tl.constexpr,
):  # fmt: skip
    """(S, N, D): g @ W over a share of the items."""
    here, first = tl.program_id(0) * STILL, tl.program_id(1) * share
    h = _rows(h_pointer, here, N, STILL, D)
    i = here + tl.arange(0, STILL)
    lse = tl.load(lse_pointer + i, mask=i < N, other=0.0)
    target = tl.load(target_pointer + i, mask=i < N, other=-1)
    grad = tl.zeros((STILL, D), tl.float32)
    for begin in range(first, tl.minimum(first + share, V), WALKED):
        v = begin + tl.arange(0, WALKED)
        logits = tl.dot(h, _columns(w_pointer, begin, V, WALKED, D), input_precision=PRODUCTS)
        g = tl.exp(logits - lse[:, None]) - tl.where(target[:, None] == v[None, :], 1.0, 0.0)
        g = tl.where((v < V)[None, :], g, 0.0)  # else exp(-lse), which may be infinite
        w = _rows(w_pointer, begin, V, WALKED, D)
        grad = tl.dot(tl.cast(g, w.dtype), w, grad, input_precision=PRODUCTS)
    _store(grad_pointer, grad, here, N, STILL, D)


@triton.jit(do_not_specialize=["N"])
def dweight_kernel(
    h_pointer, w_pointer, target_pointer, lse_pointer, grad_pointer, N, V, share,
    D: tl.constexpr, STILL: tl.constexpr, WALKED: tl.constexpr,
):  # fmt: skip
    """(S, V, D): g.T @ h over a share of the targets. Rows beyond V may overflow, and are not stored."""
    here, first = tl.program_id(0) * STILL, tl.program_id(1) * share
    w = _rows(w_pointer, here, V, STILL, D)
    v = here + tl.arange(0, STILL)
    grad = tl.zeros((STILL, D), tl.float32)
    for begin in range(first, tl.minimum(first + share, N), WALKED):
        i = begin + tl.arange(0, WALKED)
        lse = tl.load(lse_pointer + i, mask=i < N, other=0.0)  # h is 0 there, and g finite
        target = tl.load(target_pointer + i, mask=i < N, other=-1)
        logits = tl.dot(w, _columns(h_pointer, begin, N, WALKED, D), input_precision=PRODUCTS)
        g = tl.exp(logits - lse[None, :]) - tl.where(v[:, None] == target[None, :], 1.0, 0.0)
        h = _rows(h_pointer, begin, N, WALKED, D)
        grad = tl.dot(tl.cast(g, h.dtype), h, grad, input_precision=PRODUCTS)
    _store(grad_pointer, grad, here, V, STILL, D)
