"""What the states between the chunks of long segments add to the gradients that `ssd_backward` left there.

With S the state that enters a chunk, G the gradient of the one that leaves it, and a = dt A,

    dC[i]      += sum over heads of e^(c[i]) dy[i] . S
    dB[j]      += sum over heads of e^(c[last] - c[j]) dt[j] x[j] . G
    d(dt x)[j] += e^(c[last] - c[j]) B[j] . G
    da[k]      += what flows from S to tokens from k on, from tokens before k to G, and from S to G

One kernel for S, one for G: together they would need more registers than there are.

Shape letters:    T tokens    q tokens of a chunk    h heads    p head size, W channels of it at a time    g groups
                  n state size    k chunks    s parts the heads of a group are split into
"""

from __future__ import annotations

import triton
import triton.language as tl

from .ssd_tile import add_tile, kept, load_state, load_tile, own_tile, until_end


@triton.jit(do_not_specialize=["total"])
def from_entering_kernel(
    A,  # (h,)
    C,  # (T, g, n)
    steps,  # (k, h, 3, Q) of the forward: dt and both parts of c
    dy,  # (T, h, p)
    ddt,  # in and out (T, h)
    dC,  # in and out (s, T, g, n)
    shares,  # out (k, h, 1 + SKIP): the first is this chunk's share of dA
    states,  # (k, h, n, p): S
    dstates,  # (k, h, n, p): G
    chunks,  # (k, 4) of the plan
    total,
    heads_here,
    C_stride: tl.constexpr,
    heads: tl.constexpr,
    heads_per_group: tl.constexpr,
    p: tl.constexpr,
    n: tl.constexpr,
    Q: tl.constexpr,
    W: tl.constexpr,
    N: tl.constexpr,
    SKIP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A program: one chunk, `heads_here` heads of one group."""
    chunk, start, tokens, first = own_tile(chunks, heads, heads_here)
    group, width = first // heads_per_group * n, heads // heads_per_group * n
    c = load_tile(C + group, start, tokens, C_stride, n, Q, N)
    enters, leaves = tl.load(chunks + chunk * 4 + 2), tl.load(chunks + chunk * 4 + 3)
    dc = tl.zeros((Q, N), dtype=tl.float32)
    for head in range(first, first + heads_here):
        at_step, at_coarse, at_fine = kept(steps, chunk, heads, head, Q)
        step, coarse, fine = tl.load(at_step), tl.load(at_coarse), tl.load(at_fine)
        since = tl.exp2(coarse + fine)
        until, whole = until_end(coarse, fine, Q)
        received, through = tl.zeros((Q,), dtype=tl.float32), tl.zeros((W,), dtype=tl.float32)
        for at in range(0, p, W):
            state = load_state(states, chunk, head, heads, enters, at, n, p, N, W)
            through += tl.sum(state * load_state(dstates, chunk, head, heads, enters * leaves, at, n, p, N, W), 0)
            state = state.to(c.dtype)
            late = load_tile(dy + head * p + at, start, tokens, heads * p, p - at, Q, W) * since[:, None]
            received += tl.sum(late * tl.dot(c, state, input_precision=PRECISION), 1)
            dc += tl.dot(late.to(c.dtype), tl.trans(state), input_precision=PRECISION)
        da = tl.cumsum(received, 0, reverse=True) + whole * tl.sum(through, 0)
        add_tile(ddt + head, (da * tl.load(A + head))[:, None], start, tokens, heads, 1, Q, 1)
        tl.store(shares + (chunk * heads + head) * (1 + SKIP), tl.sum(da * step, 0))
    part = tl.cast(first % heads_per_group // heads_here, tl.int64) * total * width
    add_tile(dC + part + group, dc, start, tokens, width, n, Q, N)


@triton.jit(do_not_specialize=["total"])
def from_leaving_kernel(
    x,  # (T, h, p)
    A,  # (h,)
    B,  # (T, g, n)
    steps,  # (k, h, 3, Q) of the forward: dt and both parts of c
    dx,  # in and out (T, h, p)
    ddt,  # in and out (T, h)
    dB,  # in and out (s, T, g, n)
    shares,  # out (k, h, 1 + SKIP): the first is this chunk's share of dA
    dstates,  # (k, h, n, p): G
    chunks,  # (k, 4) of the plan
    total,
    heads_here,
    x_stride: tl.constexpr,
    B_stride: tl.constexpr,
    heads: tl.constexpr,
    heads_per_group: tl.constexpr,
    p: tl.constexpr,
    n: tl.constexpr,
    Q: tl.constexpr,
    W: tl.constexpr,
    N: tl.constexpr,
    SKIP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A program: one chunk, `heads_here` heads of one group."""
    chunk, start, tokens, first = own_tile(chunks, heads, heads_here)
    group, width = first // heads_per_group * n, heads // heads_per_group * n
    b = load_tile(B + group, start, tokens, B_stride, n, Q, N)
    leaves = tl.load(chunks + chunk * 4 + 3)
    db = tl.zeros((Q, N), dtype=tl.float32)
    for head in range(first, first + heads_here):
        at_step, at_coarse, at_fine = kept(steps, chunk, heads, head, Q)
        step = tl.load(at_step)
        until, whole = until_end(tl.load(at_coarse), tl.load(at_fine), Q)
        weight, sent = step * until, tl.zeros((Q,), dtype=tl.float32)
        for at in range(0, p, W):
            dstate = load_state(dstates, chunk, head, heads, leaves, at, n, p, N, W).to(b.dtype)
            values = load_tile(x + head * p + at, start, tokens, x_stride, p - at, Q, W)
            db += tl.dot((values * weight[:, None]).to(b.dtype), tl.trans(dstate), input_precision=PRECISION)
            dentered = tl.dot(b, dstate, input_precision=PRECISION) * until[:, None]
            sent += tl.sum(dentered * values, 1)
            add_tile(dx + head * p + at, dentered * step[:, None], start, tokens, heads * p, p - at, Q, W)
        flow = sent * step
        da = tl.cumsum(flow, 0) - flow
        add_tile(ddt + head, (sent + da * tl.load(A + head))[:, None], start, tokens, heads, 1, Q, 1)
        tl.store(shares + (chunk * heads + head) * (1 + SKIP), tl.sum(da * step, 0))
    part = tl.cast(first % heads_per_group // heads_here, tl.int64) * total * width
    add_tile(dB + part + group, db, start, tokens, width, n, Q, N)
