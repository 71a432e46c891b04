"""SSD's gradients within a tile, which is computed again from the inputs: nothing of size (q, q) was kept.

With M[j, i] = (B[j] . C[i]) e^(c[i] - c[j]), the tile read from j to i, and F[j, i] = (dt[j] x[j] . dy[i]) M[j, i] what
flows along a pair of tokens,

    d(dt x)[j] = sum_{i>=j} M[j, i] dy[i]
    d(dt A)[k] = sum_{j<k} sum_{i>=k} F[j, i]
    dB = E C,  dC = E^T B,    E[j, i] = sum over heads of (dt[j] x[j] . dy[i]) e^(c[i] - c[j])

The sum over pairs on both sides of k is made as it stands; as a running sum of what each token receives minus what it
sends, it would be a small difference of large numbers. The like goes through the state S that enters, and the
one that leaves, whose gradient is G. A product whose left side is a transposed accumulator is wrong on Hopper in Triton 3.4 to 3.7; so dC is made as (n, i), with E on the right.

Shape letters:    T tokens    q tokens of a tile, i and j among them    h heads    p head size    g groups    n state size
                  s parts the heads of a group are split into    k tiles
"""

from __future__ import annotations

import triton
import triton.language as tl

from .ssd_tile import (
    load_skip,
    load_state,
    load_steps,
    load_tile,
    log_decay,
    own_tile,
    seen_from,
    store_tile,
    store_transposed,
    until_end,
)


@triton.jit
def gradients_kernel(
    x,  # (T, h, p)
    dt,  # (T, h)
    A,  # (h,)
    B,  # (T, g, n)
    C,  # (T, g, n)
    D,  # (h, SKIP)
    dy,  # (T, h, p)
    dx,  # out (T, h, p)
    ddt,  # out (T, h)
    dB,  # out (s, T, g, n)
    dC,  # out (s, T, g, n)
    shares,  # out (k, h, 1 + SKIP): this tile's share of dA and dD
    states,  # (k, h, n, p): what enters every chunk
    dstates,  # (k, h, n, p): the gradient of what leaves it
    tiles,  # (k, 4) of the plan
    begins,  # (T,) of the plan
    x_stride,
    B_stride,
    C_stride,
    total,
    heads,
    heads_per_group,
    heads_here,
    p,
    n,
    Q: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    SKIP: tl.constexpr,  # numbers of D a head has: 0, 1 or p
    CHAINED: tl.constexpr,  # the tiles are chunks of long segments
    PRECISION: tl.constexpr,
):
    """A program: one tile, `heads_here` heads of one group."""
    tile, start, tokens, first = own_tile(tiles, heads, heads_here)
    group, width = first // heads_per_group * n, heads // heads_per_group * n
    b = load_tile(B + group, start, tokens, B_stride, n, Q, N)
    c = load_tile(C + group, start, tokens, C_stride, n, Q, N)
    product = tl.dot(b, tl.trans(c), input_precision=PRECISION)  # (j, i)
    rows = tl.arange(0, Q)
    begin = seen_from(begins, start, tokens, Q, CHAINED)
    seen = (rows[:, None] <= rows[None, :]) & (rows[:, None] >= begin[None, :])
    dproduct = tl.zeros((Q, Q), dtype=tl.float32)  # E
    db, dc = tl.zeros((Q, N), dtype=tl.float32), tl.zeros((N, Q), dtype=tl.float32)  # what comes through states
    for head in range(first, first + heads_here):
        rate, step = tl.load(A + head), load_steps(dt, start, tokens, heads, head, Q)
        coarse, fine = log_decay(step, rate)
        values = load_tile(x + head * p, start, tokens, x_stride, p, Q, P)
        dout = load_tile(dy + head * p, start, tokens, heads * p, p, Q, P)
        entered = values * step[:, None]
        dentered, da, dhead = within_tile(product, seen, coarse, fine, entered, dout, Q, PRECISION)
        dproduct += dhead
        if CHAINED:
            state = load_state(states, tile, head, heads, tl.load(tiles + tile * 4 + 2), n, p, N, P)
            dstate = load_state(dstates, tile, head, heads, tl.load(tiles + tile * 4 + 3), n, p, N, P)
            late = through_states(b, c, state, dstate, coarse, fine, entered, dout, Q, PRECISION)
            db, dc, dentered, da = db + late[0], dc + late[1], dentered + late[2], da + late[3]
        dstep = tl.sum(dentered * values, 1) + da * rate
        tl.store(ddt + (start + rows) * heads + head, dstep, mask=rows < tokens)
        dvalues = dentered * step[:, None] + load_skip(D, head, p, P, SKIP) * dout
        store_tile(dx + head * p, dvalues, start, tokens, heads * p, p, Q, P)
        store_shares(shares + (tile * heads + head) * (1 + SKIP), tl.sum(da * step, 0), values, dout, p, P, SKIP)
    db += tl.dot(dproduct.to(c.dtype), c, input_precision=PRECISION)
    dc += tl.dot(tl.trans(b), dproduct.to(b.dtype), input_precision=PRECISION)
    part = tl.cast(first % heads_per_group // heads_here, tl.int64) * total * width + group
    store_tile(dB + part, db, start, tokens, width, n, Q, N)
    store_transposed(dC + part, dc, start, tokens, width, n, Q, N)


@triton.jit
def within_tile(product, seen, coarse, fine, entered, dout, Q: tl.constexpr, PRECISION: tl.constexpr):
    """d(dt x) (q, p), d(dt A) (q,) and the head's part of E (q, q), as far as they come from pairs of the tile."""
    gap = (coarse[None, :] - coarse[:, None]) + (fine[None, :] - fine[:, None])
    decay = tl.exp2(tl.where(seen, gap, float("-inf")))  # (j, i)
    mixed = product * decay
    dmixed = tl.dot(entered.to(dout.dtype), tl.trans(dout), input_precision=PRECISION)
    dentered = tl.dot(mixed.to(dout.dtype), dout, input_precision=PRECISION)
    onward = tl.cumsum(dmixed * mixed, 1, reverse=True)  # (j, k): what flows from j to k and beyond
    rows = tl.arange(0, Q)
    da = tl.sum(tl.where(rows[:, None] < rows[None, :], onward, 0.0), 0)
    return dentered, da, dmixed * decay


@triton.jit
def through_states(b, c, state, dstate, coarse, fine, entered, dout, Q: tl.constexpr, PRECISION: tl.constexpr):
    """dB (q, n), dC (n, q), d(dt x) (q, p) and d(dt A) (q,) of a chunk, as far as they come from S and G."""
    since = tl.exp2(coarse + fine)
    until, whole = until_end(coarse, fine, Q)
    late = dout * since[:, None]
    dc = tl.dot(state.to(c.dtype), tl.trans(late.to(c.dtype)), input_precision=PRECISION)
    db = tl.dot((entered * until[:, None]).to(b.dtype), tl.trans(dstate.to(b.dtype)), input_precision=PRECISION)
    dentered = tl.dot(b, dstate.to(b.dtype), input_precision=PRECISION) * until[:, None]
    received = tl.sum(late * tl.dot(c, state.to(c.dtype), input_precision=PRECISION), 1)  # from S
    sent = tl.sum(dentered * entered, 1)  # to G
    through = whole * tl.sum(tl.sum(state * dstate, 1), 0)  # from S to G, past every token
    return db, dc, dentered, tl.cumsum(received, 0, reverse=True) + (tl.cumsum(sent, 0) - sent) + through


@triton.jit
def store_shares(shares, dA, values, dout, p, P: tl.constexpr, SKIP: tl.constexpr):
    tl.store(shares, dA)
    dskip = tl.sum(values.to(tl.float32) * dout, 0)  # (p,)
    if SKIP == 1:
        tl.store(shares + 1, tl.sum(dskip, 0))
    elif SKIP > 1:
        columns = tl.arange(0, P)
        tl.store(shares + 1 + columns, dskip, mask=columns < p)
