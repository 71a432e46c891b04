"""The read-out of `ops.readout` in Triton: the forward kernels.

    y(t) = skip(t)  +  sum_{j<K-1} term_j(t-j)  +  sum_{s<=t-(K-1)} term_{K-1}(s)
    term_j(s) = wdt[s] (C~[1] . B_j[s]) x_j[s],     x_j, B_j = SiLU(bias + sum_{i<=j} tap_i xBC[s+i])

Of item s the levels j = 0 ... K-1 of the convolution go to the prefixes that end at s + j, the last to all that end
later. So a program walks over one span of tokens for some heads with K sums of the filter in registers: token t is
tap j of item t - j for all j at once. Every row of x is read once, and K - 1 more at a span's begin. First comes the
table of products C.B, (T, K, g), which all heads of a group share. Which level of C~[1] a product takes depends on the
prefix alone: it is min(items, K) - 1.

What is summed starts at 0 with every span, and what the chunks before it have added is added on top: long segments cost
no accuracy. Their chunks are summed first, by the same kernel.

Shape letters:    T tokens    S segments    K width of the filter    h heads    p head size    g groups    n state size
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .spans import Spans

STEPS = 4  # tokens whose rows are on the way together
AHEAD = 8  # rows of chunks that are on the way together
CHANNELS = 64  # of a program that sums: a warp, two to a thread; heads with more than that get more warps
CELLS = 1024  # (tokens, n) of a program that makes products


def sizes_of(xBC: Tensor, wdt: Tensor, C_first: Tensor) -> dict[str, int]:
    """What a model fixes and a kernel is compiled for."""
    (_, width, groups, state), heads = C_first.shape, wdt.shape[1]
    inner = xBC.shape[1] - 2 * groups * state
    return {"HEADS": heads, "GROUPS": groups, "HEADDIM": inner // heads, "STATE": state, "K": width}


def heads_of(sizes: dict[str, int]) -> tuple[dict[str, int], int]:
    """(block sizes of a kernel that runs over heads, blocks of heads): no block has heads of two groups."""
    each = sizes["HEADS"] // sizes["GROUPS"]
    block_p = triton.next_power_of_2(sizes["HEADDIM"])
    block_h = min(triton.next_power_of_2(each), max(1, CHANNELS // block_p))
    blocks = {"BLOCK_H": block_h, "BLOCK_P": block_p, "num_warps": warps_of(block_h * block_p)}
    return blocks, sizes["GROUPS"] * triton.cdiv(each, block_h)


def warps_of(channels: int) -> int:
    return min(8, max(1, channels // CHANNELS))


def outputs(xBC, wdt, C_first, weight, bias, skip, spans: Spans) -> tuple[Tensor, Tensor]:
    """y and the products (T, K, g)."""
    sizes, row = sizes_of(xBC, wdt, C_first), xBC.stride(0)
    (blocks, count), inner = heads_of(sizes), sizes["HEADS"] * sizes["HEADDIM"]
    products = wdt.new_empty(len(xBC), sizes["K"], sizes["GROUPS"])
    block_n = triton.next_power_of_2(sizes["STATE"])
    rows = max(1, min(16, CELLS // block_n))
    _products[(triton.cdiv(len(xBC), rows) * sizes["GROUPS"],)](
        *(xBC, C_first, weight, bias, spans.position, spans.owner, products, len(xBC)),
        **sizes,
        ROW=row,
        ROWS=rows,
        BLOCK_N=block_n,
    )
    carried, y = wdt.new_empty(len(spans.chunks), inner), xBC.new_empty(len(xBC), sizes["HEADS"], sizes["HEADDIM"])
    tensors = xBC, wdt, products, skip, weight, bias, y, spans.position, spans.owner
    constants = {**sizes, "ROW": row, "STEPS": STEPS, **blocks}
    if len(carried):
        _sums[(len(carried) * count,)](*tensors, spans.chunks, carried, TOTALS=True, **constants)
        pass_on(carried, spans, reverse=False)
    _sums[(len(spans) * count,)](*tensors, spans.table, carried, TOTALS=False, **constants)
    return y, products


def pass_on(carried: Tensor, spans: Spans, reverse: bool) -> None:
    """Turns the sum of every chunk, (rows, k), into that of all chunks of its segment up to it, or from it on."""
    block = min(128, triton.next_power_of_2(carried.shape[1]))
    grid = (len(spans.chains) * triton.cdiv(carried.shape[1], block),)
    _pass_sums[grid](carried, spans.chains, carried.shape[1], REVERSE=reverse, AHEAD=AHEAD, BLOCK=block, num_warps=1)


@triton.jit
def silu(x):
    return x / (1 + tl.exp(-x))


@triton.jit
def bounds(table, row, TOTALS: tl.constexpr, side: tl.constexpr):
    """First token, end and row carried in: of a chunk, where totals are made, or of a span."""
    if TOTALS:
        return tl.load(table + row * 2), tl.load(table + row * 2 + 1), tl.cast(-1, tl.int64)
    return tl.load(table + row * 5), tl.load(table + row * 5 + 1), tl.cast(tl.load(table + row * 5 + side), tl.int64)


@triton.jit
def load_filter(weight, bias, channel, real, K: tl.constexpr):
    """The taps of some channels, the one for an item itself first, and their bias."""
    taps = ()
    for j in tl.static_range(K):
        taps = taps + (tl.load(weight + channel * K + K - 1 - j, real, 0.0).to(tl.float32),)
    return taps, tl.load(bias + channel, real, 0.0).to(tl.float32)


@triton.jit
def heads_here(
    HEADS: tl.constexpr, GROUPS: tl.constexpr, HEADDIM: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_P: tl.constexpr
):  # fmt: skip
    """Row of the plan, block and group of heads, heads, their channels, and both masks, of this program."""
    each: tl.constexpr = HEADS // GROUPS
    blocks: tl.constexpr = (each + BLOCK_H - 1) // BLOCK_H
    block = tl.program_id(0) % (GROUPS * blocks)
    group = block // blocks
    inside = block % blocks * BLOCK_H + tl.arange(0, BLOCK_H)
    p = tl.arange(0, BLOCK_P)
    head = group * each + inside
    real = (inside < each)[:, None] & (p < HEADDIM)[None]
    channel = head[:, None] * HEADDIM + p[None]
    return tl.program_id(0) // (GROUPS * blocks), block, group, head, channel, inside < each, real


@triton.jit
def _products(
    xBC, C_first, weight, bias, position, owner, products, T,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, HEADDIM: tl.constexpr, STATE: tl.constexpr, K: tl.constexpr,
    ROW: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """C.B for the prefixes that end at some tokens, of item t - j at level j; 0 where there is no such item."""
    group = tl.program_id(0) % GROUPS
    t = tl.cast(tl.program_id(0) // GROUPS, tl.int64) * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, BLOCK_N)
    real = k < STATE
    channel = HEADS * HEADDIM + group * STATE + k
    taps, offset = load_filter(weight, bias, channel, real, K)
    place, number = tl.load(position + t, t < T, -1), tl.load(owner + t, t < T, 0)
    at = (tl.cast(number, tl.int64) * K + tl.minimum(place, K - 1)) * GROUPS + group
    C = tl.load(C_first + at[:, None] * STATE + k[None], (place >= 0)[:, None] & real[None], 0.0).to(tl.float32)
    back = ()
    for d in tl.static_range(K):
        mask = (place >= d)[:, None] & real[None]
        back = back + (tl.load(xBC + (t - d)[:, None] * ROW + channel[None], mask, 0.0).to(tl.float32),)
    for j in tl.static_range(K):
        level = tl.zeros((ROWS, BLOCK_N), tl.float32) + offset[None]
        for i in tl.static_range(j + 1):
            level += back[j - i] * taps[i][None]
        product = tl.where(place >= j, tl.sum(silu(level) * C, 1), 0.0)
        tl.store(products + (t * K + j) * GROUPS + group, product, t < T)


@triton.jit
def _sums(
    xBC, wdt, products, skip, weight, bias, y, position, owner, table, carried,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, HEADDIM: tl.constexpr, STATE: tl.constexpr, K: tl.constexpr,
    ROW: tl.constexpr, STEPS: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_P: tl.constexpr, TOTALS: tl.constexpr,
):  # fmt: skip
    """y of a span; or with TOTALS what a chunk adds to all later tokens of its segment."""
    row, _, group, head, channel, real_h, real = heads_here(HEADS, GROUPS, HEADDIM, BLOCK_H, BLOCK_P)
    begin, end, enters = bounds(table, row, TOTALS, 2)
    taps, offset = load_filter(weight, bias, channel, real, K)
    inner: tl.constexpr = HEADS * HEADDIM
    carry = tl.load(carried + enters * inner + channel, real & (enters >= 0), 0.0)
    total, first = tl.zeros((BLOCK_H, BLOCK_P), tl.float32), tl.zeros((BLOCK_H, BLOCK_P), tl.float32)
    levels, scales = (), ()
    for _ in tl.static_range(K):
        levels, scales = levels + (total,), scales + (tl.zeros((BLOCK_H,), tl.float32),)
    for block in range(begin - (K - 1), end, STEPS):
        xs, ws, places, CBs = _rows_at(
            xBC, wdt, products, position, block, begin, end, group, head, channel, real_h, real,
            HEADS, GROUPS, K, ROW, STEPS,
        )  # fmt: skip
        for s in tl.static_range(STEPS):
            t, place = tl.cast(block + s, tl.int64), places[s]
            own = (t >= begin) & (t < end)
            levels, scales = _climb(levels, scales, xs[s], ws[s], taps, offset, K)
            total, carry = tl.where(place == 0, 0.0, total), tl.where(place == 0, 0.0, carry)
            early = tl.zeros((BLOCK_H, BLOCK_P), tl.float32)
            for j in tl.static_range(K):
                term = tl.where(place >= j, silu(levels[j]) * (scales[j] * CBs[s][j])[:, None], 0.0)
                if j < K - 1:
                    early += term
                else:
                    total += term
            if not TOTALS:
                at = (tl.cast(tl.load(owner + t, own, 0), tl.int64) * K + tl.minimum(place, K - 1)) * inner
                fresh = own & ((place < K) | (t == begin))  # later tokens of a segment see what the K-th saw
                first = tl.where(fresh, tl.load(skip + at + channel, real & fresh, 0.0).to(tl.float32), first)
                out = first + early + (carry + total)
                tl.store(y + t * inner + channel, out.to(y.dtype.element_ty), real & own)
    if TOTALS:
        tl.store(carried + tl.cast(row, tl.int64) * inner + channel, total, real)


@triton.jit
def _rows_at(
    xBC, wdt, products, position, block, begin, end, group, head, channel, real_h, real,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, K: tl.constexpr, ROW: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """x, the weights, places and products of a block of tokens, by token: all loads are under way at once.

    Outside of the span the products are 0, so that the tokens before it add nothing.
    """
    xs, ws, places, CBs = (), (), (), ()
    for s in tl.static_range(STEPS):
        t = tl.cast(block + s, tl.int64)
        live = (t >= 0) & (t < end)
        xs = xs + (tl.load(xBC + t * ROW + channel, real & live, 0.0).to(tl.float32),)
        ws = ws + (tl.load(wdt + t * HEADS + head, real_h & live, 0.0).to(tl.float32),)
        places = places + (tl.load(position + t, live, 1),)  # behind the end no segment begins: totals stay
        CB = ()
        for j in tl.static_range(K):
            CB = CB + (tl.load(products + (t * K + j) * GROUPS + group, (t >= begin) & live, 0.0),)
        CBs = CBs + (CB,)
    return xs, ws, places, CBs


@triton.jit
def _climb(levels, scales, x, w, taps, offset, K: tl.constexpr):
    """A token becomes tap j of item t - j: level j of that item is its level j - 1 and one tap more."""
    up, shifted = (offset + x * taps[0],), (w,)
    for j in tl.static_range(1, K):
        up, shifted = up + (levels[j - 1] + x * taps[j],), shifted + (scales[j - 1],)
    return up, shifted


@triton.jit
def _pass_sums(
    carried, chains, width, REVERSE: tl.constexpr, AHEAD: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Running sums over the chunks of every segment that was cut, in place."""
    blocks = tl.cdiv(width, BLOCK)
    chain, c = tl.program_id(0) // blocks, tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    first, count = tl.load(chains + chain * 2), tl.load(chains + chain * 2 + 1)
    total = tl.zeros((BLOCK,), tl.float32)
    for begin in range(0, count, AHEAD):
        places, sums = (), ()
        for s in tl.static_range(AHEAD):
            row = tl.cast(first + (count - 1 - begin - s if REVERSE else begin + s), tl.int64)
            places = places + (carried + row * width + c,)
            sums = sums + (tl.load(carried + row * width + c, (c < width) & (begin + s < count), 0.0),)
        for s in tl.static_range(AHEAD):
            total += sums[s]
            tl.store(places[s], total, (c < width) & (begin + s < count))
