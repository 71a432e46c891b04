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

Shape letters:    T tokens    q tokens of a tile, i and j among them    h heads    p head size    g groups
                  n state size    s parts the heads of a group are split into    k tiles
"""

from __future__ import annotations

import triton
import triton.language as tl

from .ssd_tile import decay, kept, load_skip, load_tile, own_tile, seen_from, store_tile, store_transposed


@triton.jit
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
    P: tl.constexpr,
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
        values = load_tile(x + head * p, start, tokens, x_stride, p, Q, P)
        dout = load_tile(dy + head * p, start, tokens, heads * p, p, Q, P)
        decays = decay(coarse[:, None], fine[:, None], coarse[None, :], fine[None, :])  # (j, i)
        mixed = (product * decays).to(dout.dtype)
        dhead = tl.dot(values, tl.trans(dout), input_precision=PRECISION) * decays
        dproduct += dhead * step[:, None]
        flow = dhead * product  # F without dt[j]
        da = across(flow * step[:, None], dout.dtype == tl.bfloat16, Q)
        dstep = tl.sum(flow, 1) + da * tl.load(A + head)
        tl.store(ddt + start * heads + head + rows * heads, dstep, mask=rows < tokens)
        store_shares(shares + (tile * heads + head) * (1 + SKIP), tl.sum(da * step, 0), values, dout, p, P, SKIP)
        dentered = tl.dot(mixed, dout, input_precision=PRECISION)
        dvalues = dentered * step[:, None] + load_skip(D, head, p, P, SKIP) * dout
        store_tile(dx + head * p, dvalues, start, tokens, heads * p, p, Q, P)
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
def across(flow, BY_PRODUCT: tl.constexpr, Q: tl.constexpr):
    """For every k the sum of flow[j, i] over j < k <= i, (q,)."""
    rows = tl.arange(0, Q)
    if BY_PRODUCT:  # with ones, on the tensor cores: fewer instructions than a running sum
        onward = tl.dot(flow.to(tl.bfloat16), (rows[:, None] >= rows[None, :]).to(tl.bfloat16))  # (j, k)
    else:
        onward = tl.cumsum(flow, 1, reverse=True)
    return tl.sum(tl.where(rows[:, None] < rows[None, :], onward, 0.0), 0)


@triton.jit
def store_shares(shares, dA, values, dout, p: tl.constexpr, P: tl.constexpr, SKIP: tl.constexpr):
    """A tile's share of dA, and of dD if there is one."""
    tl.store(shares, dA)
    if SKIP > 0:
        dskip = tl.sum(values.to(tl.float32) * dout, 0)  # (p,)
        if SKIP == 1:
            tl.store(shares + 1, tl.sum(dskip, 0))
        else:
            columns = tl.arange(0, P)
            tl.store(shares + 1 + columns, dskip, mask=columns < p)
