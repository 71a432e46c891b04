"""What every SSD kernel shares: a program's place in the stream, its loads and stores, and the decays in a tile.

The decay from token j to token i is 2^(c[i] - c[j]), with c the sum of dt * A * log2(e) so far. Two float32 sums would
differ by their own rounding, far more than an ulp of the small difference. So every summand is split into two numbers
on a fixed grid, a coarse and a fine one, of so few bits that up to 64 of them add up exactly. Then

    c[i] - c[j] = (coarse[i] - coarse[j]) + (fine[i] - fine[j])

is right to a rounding of the difference itself. Exact sums do not depend on where they began: tokens of another
segment in the same tile cancel to the last bit, and the cumulative sum need not start again at a border.

Shape letters:    q tokens of a tile, at most 64    h heads    p head size    n state size    k tiles
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
STEEPEST = tl.constexpr(256.0)  # 2^-256 is 0 in float32: a decay that is steeper makes no difference
COARSE = tl.constexpr(2.0**-10)  # the grid: 64 * 256 is 2^24 times as much, which is exact in float32
FINE = tl.constexpr(2.0**-29)  # 64 * 2^-11 is 2^24 times as much


@triton.jit
def own_tile(tiles, heads, heads_here):
    """(number, first token, tokens, first head) of what this program works on: one tile, some heads of one group."""
    splits = heads // heads_here
    tile = tl.program_id(0) // splits
    start, tokens = tl.load(tiles + tile * 4), tl.load(tiles + tile * 4 + 1)
    return tile, start.to(tl.int64), tokens, (tl.program_id(0) % splits) * heads_here


@triton.jit
def load_steps(dt, start, tokens, heads, head, Q: tl.constexpr):
    """dt of one head, (Q,); 0 in padding: nothing enters, nothing decays."""
    rows = tl.arange(0, Q)
    return tl.load(dt + start * heads + head + rows * heads, mask=rows < tokens, other=0.0)


@triton.jit
def seen_from(begins, start, tokens, Q: tl.constexpr):
    """(Q,) the first row of the tile that each row may see."""
    rows = tl.arange(0, Q)
    return tl.load(begins + start + rows, mask=rows < tokens, other=Q).to(tl.int32)


@triton.jit
def log_decay(step, rate):
    """(coarse, fine): the two parts of c, inclusive of a token's own decay. step (q,), rate a number."""
    c = step.to(tl.float64) * (rate.to(tl.float64) * LOG2E)
    c = tl.minimum(tl.maximum(c, -STEEPEST), STEEPEST)
    coarse = tl.floor(c * (1 / COARSE) + 0.5) * COARSE
    fine = tl.floor((c - coarse) * (1 / FINE) + 0.5) * FINE
    return tl.cumsum(coarse.to(tl.float32), 0), tl.cumsum(fine.to(tl.float32), 0)


@triton.jit
def kept(steps, tile, heads, head, Q: tl.constexpr):
    """Where (k, h, 3, Q) keeps dt, coarse and fine of one head in one tile."""
    rows = tl.arange(0, Q)
    place = steps + tl.cast(tile * heads + head, tl.int64) * (3 * Q) + rows
    return place, place + Q, place + 2 * Q


@triton.jit
def decay(coarse_j, fine_j, coarse_i, fine_i):
    """From token j to token i. Where i comes before j it means nothing, but its product with 0 is 0, not NaN."""
    return tl.exp2(tl.minimum((coarse_i - coarse_j) + (fine_i - fine_j), 100.0))


@triton.jit
def until_end(coarse, fine, Q: tl.constexpr):
    """(decay from every token to the tile's last (q,), decay over the whole tile)."""
    is_last = tl.arange(0, Q) == Q - 1
    last_coarse = tl.sum(tl.where(is_last, coarse, 0.0), 0)
    last_fine = tl.sum(tl.where(is_last, fine, 0.0), 0)
    return tl.exp2((last_coarse - coarse) + (last_fine - fine)), tl.exp2(last_coarse + last_fine)


@triton.jit
def load_tile(base, start, tokens, stride, width, Q: tl.constexpr, W: tl.constexpr):
    """(Q, W) of the stream from token `start` on, zeros beyond `tokens` and `width`."""
    rows, columns = tl.arange(0, Q)[:, None], tl.arange(0, W)[None, :]
    return tl.load(
        base + start * stride + (rows * stride + columns), mask=(rows < tokens) & (columns < width), other=0.0
    )


@triton.jit
def store_tile(base, tile, start, tokens, stride, width, Q: tl.constexpr, W: tl.constexpr):
    """Writes (Q, W) where `load_tile` reads."""
    rows, columns = tl.arange(0, Q)[:, None], tl.arange(0, W)[None, :]
    to = base + start * stride + (rows * stride + columns)
    tl.store(to, tile.to(base.dtype.element_ty), mask=(rows < tokens) & (columns < width))


@triton.jit
def add_tile(base, tile, start, tokens, stride, width, Q: tl.constexpr, W: tl.constexpr):
    """Adds (Q, W) to what lies there, in float32."""
    there = load_tile(base, start, tokens, stride, width, Q, W).to(tl.float32)
    store_tile(base, there + tile, start, tokens, stride, width, Q, W)


@triton.jit
def store_transposed(base, tile, start, tokens, stride, width, Q: tl.constexpr, W: tl.constexpr):
    """Writes (W, Q) where `load_tile` would read its transpose."""
    rows, columns = tl.arange(0, Q)[None, :], tl.arange(0, W)[:, None]
    to = base + start * stride + (rows * stride + columns)
    tl.store(to, tile.to(base.dtype.element_ty), mask=(rows < tokens) & (columns < width))


@triton.jit
def load_state(base, tile, head, heads, exists, at, n, p, N: tl.constexpr, W: tl.constexpr):
    """Channels at ... at + W of a head's state in (k, h, n, p), (N, W); zeros, unread, where `exists` is 0."""
    ns, ps = tl.arange(0, N)[:, None], at + tl.arange(0, W)[None, :]
    place = tl.cast(tile * heads + head, tl.int64) * (n * p)
    return tl.load(base + place + (ns * p + ps), mask=(ns < tl.where(exists != 0, n, 0)) & (ps < p), other=0.0)


@triton.jit
def store_state(base, state, tile, head, heads, exists, at, n, p, N: tl.constexpr, W: tl.constexpr):
    """Writes (N, W) where `load_state` reads."""
    ns, ps = tl.arange(0, N)[:, None], at + tl.arange(0, W)[None, :]
    place = tl.cast(tile * heads + head, tl.int64) * (n * p)
    tl.store(base + place + (ns * p + ps), state, mask=(ns < tl.where(exists != 0, n, 0)) & (ps < p))


@triton.jit
def load_skip(D, head, at, p, W: tl.constexpr, SKIP: tl.constexpr):
    """D of one head's channels at ... at + W, (1, W); SKIP numbers of it there are: 0, 1 or p."""
    columns = at + tl.arange(0, W)[None, :]
    if SKIP == 0:
        numbers = tl.zeros((1, W), dtype=tl.float32)
    elif SKIP == 1:
        numbers = tl.zeros((1, W), dtype=tl.float32) + tl.load(D + head)
    else:
        numbers = tl.load(D + head * p + columns, mask=columns < p, other=0.0)
    return numbers
