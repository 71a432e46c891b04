"""SSD's gradients within a tile, which is computed again from the inputs: nothing of size (q, q) was kept.

With M[j, i] = (B[j] . C[i]) e^(c[i] - c[j]), the tile read from j to i, and F[j, i] = (dt[j] x[j] . dy[i]) M[j, i] what
flows along a pair of tokens,

    d(dt x)[j] = sum_{i>=j} M[j, i] dy[i]
    d(dt A)[k] = sum_{j<k} sum_{i>=k} F[j, i]
    dB = E C,  dC = E^T B,    E[j, i] = sum over heads of (dt[j] x[j] . dy[i]) e^(c[i] - c[j])

The sum over the pairs on both sides of k is made as it stands: as a running sum of what each token receives minus what
it sends, it would be a small difference of large numbers. What comes through the states of long segments is added
afterwards (`ssd_states`). A product whose left side is a transposed accumulator is wrong on Hopper in Triton 3.4 to
3.7; so dC is made as (n, i), with E on the right.

Shape letters:    T tokens    q tokens of a tile, i and j among them    h heads    p head size, W channels of it at a
                  time    g groups    n state size    s parts the heads of a group are split into    k tiles
"""

from __future__ import annotations

import triton
import triton.language as tl

from .ssd_tile import decay, kept, load_skip, load_tile, own_tile, seen_from, store_tile, store_transposed


@triton.jit(do_not_specialize=["total"])
def gradients_kernel(
    x,  # (T, h, p)
    A,  # (h,)
    B,  # (T, g, n)
    C,  # (T, g, n)
    D,  # (h, SKIP)
    steps,  # (k, h, 3, Q) of the forward: dt and both parts of c
    dy,  # (T, h, p)
    dx,  # out (T, h, p)
    ddt,  # out (T, h)
    dB,  # out (s, T, g, n)
    dC,  # out (s, T, g, n)
    shares,  # out (k, h, 1 + SKIP): this tile's share of dA and dD
    tiles,  # (k, 4) of the plan
    begins,  # (T,) of the plan
    total,
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
    PRECISION: tl.constexpr,
):
    """A program: one tile, `heads_here` heads of one group."""
    tile, start, tokens, first = own_tile(tiles, heads, heads_here)
    group, width = first // heads_per_group * n, heads // heads_per_group * n
    b = load_tile(B + group, start, tokens, B_stride, n, Q, N)
    c = load_tile(C + group, start, tokens, C_stride, n, Q, N)
    product = tl.dot(b, tl.trans(c), input_precision=PRECISION)  # (j, i)
    product = tl.where(seen_pairs(begins, start, tokens, Q), product, 0.0)
    rows = tl.arange(0, Q)
    dproduct = tl.zeros((Q, Q), dtype=tl.float32)  # E
    for head in range(first, first + heads_here):
        at_step, at_coarse, at_fine = kept(steps, tile, heads, head, Q)
        step, coarse, fine = tl.load(at_step), tl.load(at_coarse), tl.load(at_fine)
        decays = decay(coarse[:, None], fine[:, None], coarse[None, :], fine[None, :])  # (j, i)
        mixed = (product * decays).to(b.dtype)
        place = (tile * heads + head) * (1 + SKIP)
        dhead = pairs(x, dy, shares + place + 1, start, tokens, head, x_stride, heads, p, Q, W, SKIP, PRECISION)
        dhead *= decays
        dproduct += dhead * step[:, None]
        flow = dhead * product  # F without dt[j]
        da = across(flow * step[:, None], b.dtype, b.dtype == tl.bfloat16, Q)
        tl.store(shares + place, tl.sum(da * step, 0))
        dstep = tl.sum(flow, 1) + da * tl.load(A + head)
        tl.store(ddt + start * heads + head + rows * heads, dstep, mask=rows < tokens)
        for at in range(0, p, W):
            dout = load_tile(dy + head * p + at, start, tokens, heads * p, p - at, Q, W)
            dvalues = tl.dot(mixed, dout, input_precision=PRECISION) * step[:, None]
            dvalues += load_skip(D, head, at, p, W, SKIP) * dout
            store_tile(dx + head * p + at, dvalues, start, tokens, heads * p, p - at, Q, W)
    # Read again what the loop had no use for: kept, it would spill.
    tile, start, tokens, first = own_tile(tiles, heads, heads_here)
    b = load_tile(B + group, start, tokens, B_stride, n, Q, N)
    c = load_tile(C + group, start, tokens, C_stride, n, Q, N)
    dproduct = tl.where(seen_pairs(begins, start, tokens, Q), dproduct, 0.0).to(b.dtype)
    part = tl.cast(first % heads_per_group // heads_here, tl.int64) * total * width + group
    store_tile(dB + part, tl.dot(dproduct, c, input_precision=PRECISION), start, tokens, width, n, Q, N)
    dc = tl.dot(tl.trans(b), dproduct, input_precision=PRECISION)  # (n, i)
    store_transposed(dC + part, dc, start, tokens, width, n, Q, N)


@triton.jit
def seen_pairs(begins, start, tokens, Q: tl.constexpr):
    """Whether token i sees token j, (j, i)."""
    rows, begin = tl.arange(0, Q), seen_from(begins, start, tokens, Q)
    return (rows[:, None] <= rows[None, :]) & (rows[:, None] >= begin[None, :])


@triton.jit
def across(flow, dtype: tl.constexpr, BY_PRODUCT: tl.constexpr, Q: tl.constexpr):
    """For every k the sum of flow[j, i] over j < k <= i, (q,)."""
    rows = tl.arange(0, Q)
    if BY_PRODUCT:  # with ones, on the tensor cores: fewer instructions than a running sum
        onward = tl.dot(flow.to(dtype), (rows[:, None] >= rows[None, :]).to(dtype))  # (j, k)
    else:
        onward = tl.cumsum(flow, 1, reverse=True)
    return tl.sum(tl.where(rows[:, None] < rows[None, :], onward, 0.0), 0)


@triton.jit
def pairs(
    x,
    dy,
    dD,
    start,
    tokens,
    head,
    x_stride: tl.constexpr,
    heads: tl.constexpr,
    p: tl.constexpr,
    Q: tl.constexpr,
    W: tl.constexpr,
    SKIP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """x[j] . dy[i] of one head, (j, i); on its way the tile's share of dD, which is stored."""
    products, dskip, columns = tl.zeros((Q, Q), dtype=tl.float32), tl.zeros((W,), dtype=tl.float32), tl.arange(0, W)
    for at in range(0, p, W):
        values = load_tile(x + head * p + at, start, tokens, x_stride, p - at, Q, W)
        dout = load_tile(dy + head * p + at, start, tokens, heads * p, p - at, Q, W)
        products = tl.dot(values, tl.trans(dout), products, input_precision=PRECISION)
        if SKIP > 0:
            dskip += tl.sum(values.to(tl.float32) * dout, 0)
        if SKIP > 1:
            tl.store(dD + at + columns, dskip, mask=at + columns < p)
            dskip = tl.zeros((W,), dtype=tl.float32)
    if SKIP == 1:
        tl.store(dD, tl.sum(dskip, 0))
    return products
