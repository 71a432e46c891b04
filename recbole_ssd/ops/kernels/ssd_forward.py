"""SSD's output, tile by tile of at most 64 tokens, with C B^T made once for all heads of a program.

    y[i] = sum_{j<=i} (C[i] . B[j]) e^(c[i] - c[j]) dt[j] x[j]  +  e^(c[i]) C[i] . S  +  D x[i]

S is the state that enters the tile: none, where the tile holds whole segments (see `ssd_plan`).

Section 6 of Dao and Gu, ICML 2024, https://arxiv.org/abs/2405.21060.

Shape letters:    T tokens    i, j tokens of a tile    h heads    p head size, W channels of it at a time
                  g groups    n state size    k tiles
"""

from __future__ import annotations

import triton
import triton.language as tl

from .ssd_tile import (
    decay,
    kept,
    load_skip,
    load_state,
    load_steps,
    load_tile,
    log_decay,
    own_tile,
    seen_from,
    store_tile,
)


@triton.jit
def outputs_kernel(
    x,  # (T, h, p)
    dt,  # (T, h)
    A,  # (h,)
    B,  # (T, g, n)
    C,  # (T, g, n)
    D,  # (h, SKIP)
    y,  # out (T, h, p)
    steps,  # out (k, h, 3, Q): dt and both parts of c, laid out for the backward
    states,  # (k, h, n, p): what enters every chunk
    tiles,  # (k, 4) of the plan
    begins,  # (T,) of the plan
    heads_here,
    x_stride: tl.constexpr,
    B_stride: tl.constexpr,
    C_stride: tl.constexpr,
    heads: tl.constexpr,
    heads_per_group: tl.constexpr,
    p: tl.constexpr,
    n: tl.constexpr,
    Q: tl.constexpr,
    W: tl.constexpr,
    N: tl.constexpr,
    SKIP: tl.constexpr,  # numbers of D a head has: 0, 1 or p
    CHAINED: tl.constexpr,  # the tiles are chunks of long segments
    PRECISION: tl.constexpr,
):
    """A program: one tile, `heads_here` heads of one group."""
    tile, start, tokens, first = own_tile(tiles, heads, heads_here)
    group = first // heads_per_group * n
    b = load_tile(B + group, start, tokens, B_stride, n, Q, N)
    c = load_tile(C + group, start, tokens, C_stride, n, Q, N)
    rows = tl.arange(0, Q)
    begin = seen_from(begins, start, tokens, Q)
    seen = (rows[None, :] <= rows[:, None]) & (rows[None, :] >= begin[:, None])
    product = tl.where(seen, tl.dot(c, tl.trans(b), input_precision=PRECISION), 0.0)  # (i, j)
    for head in range(first, first + heads_here):
        step = load_steps(dt, start, tokens, heads, head, Q)
        coarse, fine = log_decay(step, tl.load(A + head))
        for_step, for_coarse, for_fine = kept(steps, tile, heads, head, Q)
        tl.store(for_step, step)
        tl.store(for_coarse, coarse)
        tl.store(for_fine, fine)
        mixed = product * decay(coarse[None, :], fine[None, :], coarse[:, None], fine[:, None])
        mixed = mixed.to(b.dtype)
        for at in range(0, p, W):
            values = load_tile(x + head * p + at, start, tokens, x_stride, p - at, Q, W)
            out = tl.dot(mixed, (values * step[:, None]).to(b.dtype), input_precision=PRECISION)
            if CHAINED:
                state = load_state(states, tile, head, heads, tl.load(tiles + tile * 4 + 2), at, n, p, N, W)
                out += tl.exp2(coarse + fine)[:, None] * tl.dot(c, state.to(c.dtype), input_precision=PRECISION)
            out += load_skip(D, head, at, p, W, SKIP) * values
            store_tile(y + head * p + at, out, start, tokens, heads * p, p - at, Q, W)
