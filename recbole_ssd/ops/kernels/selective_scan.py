"""Mamba-1's selective scan over a packed stream, in Triton.

    h[t] = exp(dt[t] (outer) A) * h[t-1]  +  (dt[t] * x[t]) (outer) B[t],    h = 0 before each segment
    y[t] = h[t] . C[t]  +  D * x[t]

A program walks over one span of tokens for one block of channels, its state (n, i) in registers; where a segment
begins the state is 0. Segments cut into chunks take three steps: every chunk's own end state, those states passed on
from chunk to chunk, then the outputs. The backward mirrors them in time, with g, the gradient of h:

    g[t] = dy[t] (outer) C[t] + exp(dt[t+1] A) * g[t+1]        dB[t] = sum_i g dt x      dC[t] = sum_i h dy
    flow[t] = g[t] * exp(dt[t] A) * h[t-1]                     dA = sum_t flow dt        ddt = sum_n flow A + x g B

It needs h in reverse. The forward keeps the state before every STEPS = 8 tokens, T n i / 8 numbers, 2 T i where n is
16; the backward recomputes 8 states from one, which unrolled stay in registers. (16 of them spill. An associative scan
over a tile (tokens, n, i) would have to make the decays three times, for h before, h and g.) 256 cells of the state
go to a warp, 8 to a thread, four channels side by side: that compiles without spills, and sums over n and over i both
take few shuffles. Nothing of n = 16 crosses a warp. Sizes and strides are a model's, so they are compiled in.

What programs add to a shared gradient lies side by side and is summed afterwards: no atomics, the same bits every time.

Gu and Dao, "Mamba", https://arxiv.org/abs/2312.00752, equation (2), is the recurrence; the schedule is ours.

Shape letters:    T tokens    i inner size, the channels    n state size
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..packing import Segments
from .spans import STEPS, Spans, spans_of

CELLS = 256  # of the state in a warp
WARPS = 8  # a program's most: each thread needs 255 registers
CHANNELS = 16  # of a program where n is 16 to 128: 64 bytes of float32, and dB and dC have i / 16 parts
AHEAD = 4  # chunks whose states are on the way while one is passed on
LOG2_E = tl.constexpr(1.4426950408889634)  # exp2 is what the hardware has
LN_2 = tl.constexpr(0.6931471805599453)


def selective_scan_triton(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, segments: Segments
) -> Tensor:
    """The scan over a stream. Shapes as in `selective_scan_reference`.

    Args:
        x, dt: (T, i).  B, C: (T, n). Float32 or bfloat16.
        A: (i, n).  D: (i,) or None. Float32, as is all arithmetic.
        segments: the borders at which the state starts again from zero.

    Returns:
        y, (T, i), in the dtype of x.
    """
    D = A.new_zeros(len(A)) if D is None else D
    return _SelectiveScan.apply(x, dt, A, B, C, D, segments, torch.is_grad_enabled())


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dt, A, B, C, D, segments, grad_enabled):
        x, dt, B, C = map(_rows, (x, dt, B, C))
        A, spans = A.t().contiguous(), spans_of(segments, x.device)
        keep = grad_enabled and any(ctx.needs_input_grad)
        y, states = _forward(x, dt, A, B, C, D.contiguous(), spans, keep)
        ctx.spans = spans
        ctx.save_for_backward(x, dt, A, B, C, D, states)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        return *_backward(*ctx.saved_tensors, _rows(dy), ctx.spans), None, None


def _rows(t: Tensor) -> Tensor:
    """A matrix whose rows lie anywhere, each in one piece."""
    return t if t.stride(1) == 1 else t.contiguous()


def _tile(n: int, channels: int) -> dict[str, int]:
    """Sizes of a program. Explicit: tuning would choose other roundings on other days."""
    block_n = triton.next_power_of_2(n)
    block_i = CHANNELS if block_n >= CHANNELS else 2 * CHANNELS
    block_i = min(triton.next_power_of_2(channels), block_i, WARPS * CELLS // block_n)
    return {"BLOCK_I": block_i, "BLOCK_N": block_n, "num_warps": max(1, block_i * block_n // CELLS)}


def _forward(x, dt, A, B, C, D, spans: Spans, keep: bool) -> tuple[Tensor, Tensor]:
    """y, and with `keep` the states (blocks, n, i) before every block of STEPS tokens."""
    (n, channels), sizes = A.shape, _tile(*A.shape)
    blocks = triton.cdiv(channels, sizes["BLOCK_I"])
    strides = [t.stride(0) for t in (x, dt, B, C)]
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    states = A.new_empty(spans.blocks if keep else 0, n, channels)
    with torch.cuda.device_of(x):
        carried = _carry(x, dt, A, B, spans, sizes, reverse=False)
        _outputs[(len(spans) * blocks,)](
            *(x, dt, A, B, C, D, y, spans.position, spans.table, carried, states),
            *(channels, n, *strides),
            KEEP=keep,
            STEPS=STEPS,
            **sizes,
        )
    return y, states


def _backward(x, dt, A, B, C, D, states, dy, spans: Spans) -> tuple[Tensor, ...]:
    """dx, ddt, dA, dB, dC, dD."""
    (n, channels), sizes = A.shape, _tile(*A.shape)
    blocks = triton.cdiv(channels, sizes["BLOCK_I"])
    strides = [t.stride(0) for t in (x, dt, B, C, dy)]
    dx, ddt = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, dt))
    dBC = A.new_empty(blocks, len(x), 2 * n)
    dA, dD = A.new_empty(len(spans), n, channels), A.new_empty(len(spans), channels)
    with torch.cuda.device_of(x):
        carried = _carry(dy, dt, A, C, spans, sizes, reverse=True)
        _gradients[(len(spans) * blocks,)](
            *(x, dt, A, B, C, D, dy, spans.position, spans.table, carried, states),
            *(dx, ddt, dA, dBC, dD),
            *(len(x), channels, n, *strides),
            STEPS=STEPS,
            **sizes,
        )
    dB, dC = dBC.sum(0).to(B.dtype).split(n, dim=1)
    return dx, ddt, dA.sum(0).t(), dB, dC.to(C.dtype), dD.sum(0)


def _carry(w, dt, A, v, spans: Spans, sizes: dict[str, int], reverse: bool) -> Tensor:
    """(rows, n, i): h after every chunk of the cut segments, or with `reverse` the gradient of h before it."""
    (n, channels), rows = A.shape, len(spans.chunks)
    carried, time = A.new_empty(rows, n, channels), A.new_empty(rows, channels)
    blocks = triton.cdiv(channels, sizes["BLOCK_I"])
    if rows:
        _chunk_states[(rows * blocks,)](
            *(w, dt, A, v, spans.chunks, carried, time),
            *(channels, n, w.stride(0), dt.stride(0), v.stride(0)),
            REVERSE=reverse,
            STEPS=STEPS,
            **sizes,
        )
        _pass_states[(len(spans.chains) * blocks,)](
            *(A, spans.chains, time, carried, channels, n), REVERSE=reverse, AHEAD=AHEAD, **sizes
        )
    return carried


@triton.jit
def _cells(A, channels: tl.constexpr, n: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_N: tl.constexpr):
    """Which span or row and channels this program has, and A: (row, i, k, masks of both, A / ln 2, place of a cell)."""
    blocks = tl.cdiv(channels, BLOCK_I)
    i = tl.program_id(0) % blocks * BLOCK_I + tl.arange(0, BLOCK_I)
    k = tl.arange(0, BLOCK_N)
    cell = k[:, None] * channels + i[None]
    rate = tl.load(A + cell, (k < n)[:, None] & (i < channels)[None], 0.0) * LOG2_E
    return tl.program_id(0) // blocks, i, k, i < channels, k < n, rate, cell


@triton.jit
def _bounds(span, side: tl.constexpr):
    """First token, end, row carried in (side 2) or back (side 3), and first block, of a span's row of the plan."""
    row, slot = tl.cast(tl.load(span + side), tl.int64), tl.cast(tl.load(span + 4), tl.int64)
    return tl.load(span), tl.load(span + 1), row, slot


@triton.jit
def _chunk_states(
    w, dt, A, v, chunks, carried, time, channels: tl.constexpr, n: tl.constexpr,
    w_row: tl.constexpr, dt_row: tl.constexpr, v_row: tl.constexpr,
    REVERSE: tl.constexpr, STEPS: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A chunk by itself, from state 0: its last h from w = x and v = B, in reverse its first from w = dy and v = C."""
    row, i, k, real_i, real_k, rate, cell = _cells(A, channels, n, BLOCK_I, BLOCK_N)
    begin, end = tl.load(chunks + row * 2), tl.load(chunks + row * 2 + 1)
    h = tl.zeros((BLOCK_N, BLOCK_I), tl.float32)
    passed = tl.zeros((BLOCK_I,), tl.float32)
    for block in range(0, end - begin, STEPS):
        for s in tl.static_range(STEPS):
            live = block + s < end - begin
            t = tl.cast(end - 1 - block - s if REVERSE else begin + block + s, tl.int64)
            step = tl.load(dt + t * dt_row + i, real_i & live, 0.0).to(tl.float32)
            wt = tl.load(w + t * w_row + i, real_i & live, 0.0).to(tl.float32)
            vt = tl.load(v + t * v_row + k, real_k & live, 0.0).to(tl.float32)
            decay = tl.exp2(step[None] * rate)
            h = decay * (h + wt[None] * vt[:, None]) if REVERSE else tl.fma(decay, h, (step * wt)[None] * vt[:, None])
            passed += step
    here = tl.cast(row, tl.int64) * channels
    tl.store(carried + here * n + cell, h, real_k[:, None] & real_i[None])
    tl.store(time + here + i, passed, real_i)


@triton.jit
def _pass_states(
    A, chains, time, carried, channels: tl.constexpr, n: tl.constexpr,
    REVERSE: tl.constexpr, AHEAD: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Adds to every chunk's state what decayed on the way from the chunk before it, in time or in reverse."""
    chain, i, k, real_i, real_k, rate, cell = _cells(A, channels, n, BLOCK_I, BLOCK_N)
    real = real_k[:, None] & real_i[None]
    first, count = tl.load(chains + chain * 2), tl.load(chains + chain * 2 + 1)
    h = tl.zeros((BLOCK_N, BLOCK_I), tl.float32)
    for begin in range(0, count, AHEAD):
        places, alone, passed = (), (), ()
        for s in tl.static_range(AHEAD):
            live = begin + s < count
            row = tl.cast(first + (count - 1 - begin - s if REVERSE else begin + s), tl.int64) * channels
            places = places + (carried + row * n + cell,)
            alone = alone + (tl.load(carried + row * n + cell, real & live, 0.0),)
            passed = passed + (tl.load(time + row + i, real_i & live, 0.0),)
        for s in tl.static_range(AHEAD):
            h = tl.fma(tl.exp2(passed[s][None] * rate), h, alone[s])
            tl.store(places[s], h, real & (begin + s < count))


@triton.jit
def _outputs(
    x, dt, A, B, C, D, y, position, spans, carried, states, channels: tl.constexpr, n: tl.constexpr,
    x_row: tl.constexpr, dt_row: tl.constexpr, B_row: tl.constexpr, C_row: tl.constexpr,
    KEEP: tl.constexpr, STEPS: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """y of a span, and with KEEP the state before every block of STEPS tokens."""
    span, i, k, real_i, real_k, rate, cell = _cells(A, channels, n, BLOCK_I, BLOCK_N)
    real = real_k[:, None] & real_i[None]
    skip = tl.load(D + i, real_i, 0.0)
    begin, end, enters, slot = _bounds(spans + span * 5, 2)
    h = tl.load(carried + enters * n * channels + cell, real & (enters >= 0), 0.0)
    for block in range(begin, end, STEPS):
        if KEEP:
            tl.store(states + slot * n * channels + cell, h, real)
            slot += 1
        t = tl.cast(block, tl.int64)
        xs, steps, Bs, Cs, places = (), (), (), (), ()
        for s in tl.static_range(STEPS):  # no store stands between these loads, so all are under way at once
            live = block + s < end
            xs = xs + (tl.load(x + t * x_row + i + s * x_row, real_i & live, 0.0).to(tl.float32),)
            steps = steps + (tl.load(dt + t * dt_row + i + s * dt_row, real_i & live, 0.0).to(tl.float32),)
            Bs = Bs + (tl.load(B + t * B_row + k + s * B_row, real_k & live, 0.0).to(tl.float32),)
            Cs = Cs + (tl.load(C + t * C_row + k + s * C_row, real_k & live, 0.0).to(tl.float32),)
            places = places + (tl.load(position + t + s, live, 1),)
        for s in tl.static_range(STEPS):
            h = tl.where(places[s] == 0, 0.0, h)
            h = tl.fma(tl.exp2(steps[s][None] * rate), h, (steps[s] * xs[s])[None] * Bs[s][:, None])
            out = tl.sum(h * Cs[s][:, None], 0) + skip * xs[s]
            tl.store(y + t * channels + i + s * channels, out.to(y.dtype.element_ty), real_i & (block + s < end))


@triton.jit
def _before(
    h, rate, at_x, at_dt, at_B, place, left, real_i, real_k,
    x_row: tl.constexpr, dt_row: tl.constexpr, B_row: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """The states before each token of a block, from the one before the first; and where the next block would begin."""
    before = ()
    for s in tl.static_range(STEPS):
        live = s < left
        step = tl.load(at_dt, real_i & live, 0.0).to(tl.float32)
        u = step * tl.load(at_x, real_i & live, 0.0).to(tl.float32)
        Bt = tl.load(at_B, real_k & live, 0.0).to(tl.float32)
        h = tl.where(tl.load(place + s, live, 1) == 0, 0.0, h)
        before = before + (h,)
        h = tl.fma(tl.exp2(step[None] * rate), h, u[None] * Bt[:, None])
        at_x, at_dt, at_B = at_x + x_row, at_dt + dt_row, at_B + B_row
    return before, at_x, at_dt, at_B


@triton.jit(do_not_specialize=["T"])
def _gradients(
    x, dt, A, B, C, D, dy, position, spans, carried, states, dx, ddt, dA, dBC, dD,
    T, channels: tl.constexpr, n: tl.constexpr,
    x_row: tl.constexpr, dt_row: tl.constexpr, B_row: tl.constexpr, C_row: tl.constexpr, dy_row: tl.constexpr,
    STEPS: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """All gradients of a span, backwards in time; those of A, B, C and D as this program's part of the sum.

    Pointers walk, which takes fewer registers than an address for every token.
    """
    span, i, k, real_i, real_k, rate, cell = _cells(A, channels, n, BLOCK_I, BLOCK_N)
    real, skip = real_k[:, None] & real_i[None], tl.load(D + i, real_i, 0.0)
    begin, end, leaves, slot = _bounds(spans + span * 5, 3)
    g = tl.load(carried + leaves * n * channels + cell, real & (leaves >= 0), 0.0)
    dA_part, dD_part = tl.zeros((BLOCK_N, BLOCK_I), tl.float32), tl.zeros((BLOCK_I,), tl.float32)
    parts = dBC + tl.program_id(0) % tl.cdiv(channels, BLOCK_I) * tl.cast(T, tl.int64) * 2 * n + k
    for block in range(tl.cdiv(end - begin, STEPS) - 1, -1, -1):
        t = tl.cast(begin + block * STEPS, tl.int64)
        left = end - begin - block * STEPS  # tokens from t on
        h = tl.load(states + (slot + block) * n * channels + cell, real, 0.0)
        at_x, at_dt, at_B, place = x + t * x_row + i, dt + t * dt_row + i, B + t * B_row + k, position + t
        before, at_x, at_dt, at_B = _before(
            h, rate, at_x, at_dt, at_B, place, left, real_i, real_k, x_row, dt_row, B_row, STEPS
        )
        t += STEPS
        at_dy, at_C, at_dBC = dy + t * dy_row + i, C + t * C_row + k, parts + t * 2 * n
        out = t * channels + i
        for s in tl.static_range(STEPS - 1, -1, -1):
            live_i, live_k = real_i & (s < left), real_k & (s < left)
            at_x, at_dt, at_dy, at_B, at_C = at_x - x_row, at_dt - dt_row, at_dy - dy_row, at_B - B_row, at_C - C_row
            out, at_dBC = out - channels, at_dBC - 2 * n
            xt, step = tl.load(at_x, live_i, 0.0).to(tl.float32), tl.load(at_dt, live_i, 0.0).to(tl.float32)
            dyt = tl.load(at_dy, live_i, 0.0).to(tl.float32)
            Bt, Ct = tl.load(at_B, live_k, 0.0).to(tl.float32), tl.load(at_C, live_k, 0.0).to(tl.float32)
            decay, u = tl.exp2(step[None] * rate), step * xt
            kept = decay * before[s]
            g += dyt[None] * Ct[:, None]
            tl.store(at_dBC + n, tl.sum(dyt[None] * (kept + u[None] * Bt[:, None]), 1), live_k)
            tl.store(at_dBC, tl.sum(g * u[None], 1), live_k)
            du, flow = tl.sum(g * Bt[:, None], 0), g * kept
            dA_part, dD_part = dA_part + flow * step[None], dD_part + dyt * xt
            tl.store(dx + out, (du * step + dyt * skip).to(dx.dtype.element_ty), live_i)
            tl.store(ddt + out, (du * xt + tl.sum(flow * rate, 0) * LN_2).to(ddt.dtype.element_ty), live_i)
            g = tl.where(tl.load(place + s, s < left, 1) == 0, 0.0, g * decay)
    tl.store(dA + tl.cast(span, tl.int64) * n * channels + cell, dA_part, real)
    tl.store(dD + tl.cast(span, tl.int64) * channels + i, dD_part, real_i)
