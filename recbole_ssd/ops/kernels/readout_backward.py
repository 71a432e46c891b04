"""The read-out of `ops.readout` in Triton: the backward kernels.

The forward's levels of item s, x_j and B_j, are each the SiLU of a sum z_j with j + 1 taps. Let d_j be what comes from
the prefixes that read level j: dy[s+j] for j < K-1, and for j = K-1 the sum of dy from s+K-1 to the segment's end. Then

    dwdt[s] = sum_j (d_j . x_j) CB_j        dCB_j[s+j] = sum_h (d_j . x_j) wdt[s]
    dx_j = d_j wdt[s] CB_j                  dB_j = dCB_j C~[1]                     dC~[1] += dCB_j B_j
    e_i[s] = sum_{j>=i} SiLU'(z_j) (dx_j, dB_j)
    dxBC[s+i] += e_i[s] tap_i               dtap_i += e_i[s] xBC[s+i]              dbias += e_0[s]

A program walks backwards over a span. It holds the K rows from item s on, of x, of dy and of the unfinished gradient of
x: each step brings one row in, and one is finished and goes out. At an item that begins a segment the windows hold what
its first K - 1 prefixes owe to `skip` and `C_first`, and the running sum what all later ones do. Where a neighbour
begins, windows and sums are emptied: what lies behind a segment's end counts as 0, and so do levels that reach there.

At its end a span walks K - 1 tokens more on either side, to fill the windows and to finish its own rows.

Shape letters:    T tokens    S segments    K width of the filter    h heads    p head size    g groups    n state size
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .readout_forward import AHEAD, bounds, heads_here, heads_of, load_filter, pass_on, silu, sizes_of, warps_of
from .spans import Spans

STEPS = 2  # items whose rows are on the way together: with 4, some versions of Triton spill


def gradients(xBC, wdt, C_first, weight, bias, products, dy, spans: Spans) -> tuple[Tensor, ...]:
    """Gradients of xBC, wdt, C_first, skip, weight, bias."""
    sizes = sizes_of(xBC, wdt, C_first)
    channels = xBC.shape[1] - sizes["GROUPS"] * sizes["STATE"]  # of x and B
    dxBC = xBC.new_empty(xBC.shape)
    dxBC[:, channels:] = 0  # of C, which is read at item 1 only
    dfilter = wdt.new_empty(len(spans), 1 + sizes["K"], channels)
    dskip = wdt.new_empty(len(C_first), sizes["K"], sizes["HEADS"], sizes["HEADDIM"])
    dC_first, dwdt = C_first.new_empty(C_first.shape), wdt.new_empty(wdt.shape)

    plan, constants = (spans.position, spans.owner), {**sizes, "ROW": xBC.stride(0), "STEPS": STEPS}
    blocks, count = heads_of(sizes)
    dproducts = wdt.new_empty(count, len(xBC), sizes["K"])
    carried = _later_sums(dy.flatten(1), spans, sizes["K"])
    _term_gradients[(len(spans) * count,)](
        *(xBC, wdt, dy, weight, bias, products, *plan, spans.table, carried),
        *(dxBC, dwdt, dproducts, dskip, dfilter, len(xBC)),
        **constants,
        **blocks,
    )
    dproducts = dproducts.unflatten(0, (sizes["GROUPS"], -1)).sum(1)  # (g, T, K)

    carried = wdt.new_empty(len(spans.chunks), sizes["GROUPS"] * sizes["STATE"])
    tensors = (xBC, C_first, weight, bias, dproducts, *plan)
    results = carried, dxBC, dC_first, dfilter, len(xBC)
    block_n = triton.next_power_of_2(sizes["STATE"])
    constants |= {"BLOCK_N": block_n, "num_warps": warps_of(block_n)}
    if len(carried):
        _product_gradients[(len(carried) * sizes["GROUPS"],)](
            *tensors, spans.chunks, *results, **constants, TOTALS=True
        )
        pass_on(carried, spans, reverse=True)
    _product_gradients[(len(spans) * sizes["GROUPS"],)](*tensors, spans.table, *results, **constants, TOTALS=False)

    dfilter = dfilter.sum(0)
    dbias, dweight = bias.new_zeros(bias.shape), weight.new_zeros(weight.shape)
    dbias[:channels] = dfilter[0]
    dweight[:channels] = dfilter[1:].flip(0).t()
    return dxBC, dwdt, dC_first, dskip, dweight, dbias


def _later_sums(dy: Tensor, spans: Spans, width: int) -> Tensor:
    """(rows, h p): the sum of dy over the tokens K - 1 behind those of a chunk and of all later ones of its segment."""
    rows, inner = len(spans.chunks), dy.shape[1]
    carried = dy.new_empty(rows, inner, dtype=torch.float32)
    if rows:
        block = min(128, triton.next_power_of_2(inner))
        _later_parts[(rows * triton.cdiv(inner, block),)](
            *(dy, spans.chunks, spans.position, carried, len(dy), inner), K=width, AHEAD=AHEAD, BLOCK=block, num_warps=1
        )
        pass_on(carried, spans, reverse=True)
    return carried


@triton.jit(do_not_specialize=["T"])
def _later_parts(
    dy, chunks, position, carried, T, inner, K: tl.constexpr, AHEAD: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The sum of dy over the tokens that lie K - 1 behind those of a chunk and in its segment: so they are no heads."""
    blocks = tl.cdiv(inner, BLOCK)
    row, c = tl.program_id(0) // blocks, tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    begin, end = tl.load(chunks + row * 2) + K - 1, tl.minimum(tl.load(chunks + row * 2 + 1) + K - 1, T)
    total = tl.zeros((BLOCK,), tl.float32)
    for block in range(begin, end, AHEAD):
        for s in tl.static_range(AHEAD):
            t = tl.cast(block + s, tl.int64)
            counts = tl.load(position + t, t < end, -1) >= K - 1
            total += tl.load(dy + t * inner + c, (c < inner) & counts, 0.0).to(tl.float32)
    tl.store(carried + tl.cast(row, tl.int64) * inner + c, total, c < inner)


@triton.jit(do_not_specialize=["T"])
def _term_gradients(
    xBC, wdt, dy, weight, bias, products, position, owner, table, carried, dxBC, dwdt, dproducts, dskip, dfilter, T,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, HEADDIM: tl.constexpr, STATE: tl.constexpr, K: tl.constexpr,
    ROW: tl.constexpr, STEPS: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """What a span owes to x, wdt, the products, skip and the filter of x."""
    row, block, group, head, channel, real_h, real = heads_here(HEADS, GROUPS, HEADDIM, BLOCK_H, BLOCK_P)
    begin, end, leaves = bounds(table, row, False, 3)
    taps, offset = load_filter(weight, bias, channel, real, K)
    inner: tl.constexpr = HEADS * HEADDIM
    width: tl.constexpr = inner + 2 * GROUPS * STATE  # of a row of dxBC
    carry, zero = tl.load(carried + leaves * inner + channel, real & (leaves >= 0), 0.0), tl.zeros_like(offset)
    later, empty, places, owing = zero, _fill(zero, K), _fill(tl.cast(0, tl.int32), K), _fill(zero, K + 1)
    xs, dys, dxs = empty, empty, empty
    behind = tl.load(position + end + K - 1, end + K - 1 < T, 0)  # place of the token after s
    for top in range(end + K - 2, begin - K, -STEPS):
        rows = _rows_back(
            xBC, wdt, dy, products, position, top, T, group, head, channel, real_h, real,
            HEADS, GROUPS, inner, K, ROW, STEPS,
        )  # fmt: skip
        for u in tl.static_range(STEPS):
            s = tl.cast(top - u, tl.int64)
            x, dyt, w, place, CB = rows[u]
            own, alone = (s >= begin) & (s < end), behind == 0
            xs, dys, places = _push(x, xs, alone, K), _push(dyt, dys, alone, K), _push(place, places, alone, K)
            later, carry = tl.where(alone, 0.0, later) + dys[K - 1], tl.where(alone, 0.0, carry)
            sums = _levels(xs, taps, offset, K)
            levels, dw = (), tl.zeros_like(w)
            for j in tl.static_range(K):
                d = dys[j] if j < K - 1 else later + carry
                dscale = tl.sum(d * silu(sums[j]), 1)
                dw += dscale * CB[j]
                tl.store(
                    dproducts + (tl.cast(block, tl.int64) * T + s + j) * K + j, tl.sum(dscale * w, 0), own & (s + j < T)
                )
                levels = levels + (d * (w * CB[j])[:, None],)
            tl.store(dwdt + s * HEADS + head, dw, real_h & own)
            owed = _owed(levels, sums, K)
            dxs, owing = _add_rows(owed, taps, _push(zero, dxs, alone, K), K), _add_filter(owed, xs, owing, own, K)
            _store_rows(dxBC + channel, dxs, places, s, begin, end, real, width, K)
            at = tl.cast(tl.load(owner + s, own, 0), tl.int64) * K * inner + channel
            _store_first(dskip + at, dys, later + carry, real & own & (place == 0), inner, K)
            behind = place
    _store_filter(dfilter + channel, owing, row, real, inner + GROUPS * STATE, K)


@triton.jit(do_not_specialize=["T"])
def _product_gradients(
    xBC, C_first, weight, bias, dproducts, position, owner, table, carried, dxBC, dC_first, dfilter, T,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, HEADDIM: tl.constexpr, STATE: tl.constexpr, K: tl.constexpr,
    ROW: tl.constexpr, STEPS: tl.constexpr, BLOCK_N: tl.constexpr, TOTALS: tl.constexpr,
):  # fmt: skip
    """What a span owes to B, C_first and the filter of B; or with TOTALS what a chunk does to the last level of C."""
    row, group, k = tl.program_id(0) // GROUPS, tl.program_id(0) % GROUPS, tl.arange(0, BLOCK_N)
    begin, end, leaves = bounds(table, row, TOTALS, 3)
    inner: tl.constexpr = HEADS * HEADDIM
    wide: tl.constexpr = GROUPS * STATE
    real, column, channel = k < STATE, group * STATE + k, inner + group * STATE + k
    taps, offset = load_filter(weight, bias, channel, real, K)
    carry, zero = tl.load(carried + leaves * wide + column, real & (leaves >= 0), 0.0), tl.zeros_like(offset)
    later, empty, places, owing = zero, _fill(zero, K), _fill(tl.cast(0, tl.int32), K), _fill(zero, K + 1)
    xs, Cs, dCs, dxs = empty, empty, empty, empty
    behind = tl.load(position + end + K - 1, end + K - 1 < T, 0)
    for top in range(end + K - 2, begin - K, -STEPS):
        rows = _products_back(
            xBC, C_first, dproducts + group * tl.cast(T, tl.int64) * K, position, owner, top, T,
            group, k, channel, real, GROUPS, STATE, K, ROW, STEPS,
        )  # fmt: skip
        for u in tl.static_range(STEPS):
            s = tl.cast(top - u, tl.int64)
            x, C, place, number, dCB = rows[u]
            own, alone = (s >= begin) & (s < end), behind == 0
            xs, Cs, places = _push(x, xs, alone, K), _push(C, Cs, alone, K), _push(place, places, alone, K)
            sums, unfinished = _levels(xs, taps, offset, K), _push(zero, dCs, alone, K)
            levels, dCs = (), ()
            for j in tl.static_range(K):
                levels, dCs = levels + (dCB[j] * Cs[j],), dCs + (unfinished[j] + dCB[j] * silu(sums[j]),)
            full = own & (places[K - 1] >= K - 1)  # the token K - 1 later is of this segment
            later = tl.where(alone & (s >= begin), 0.0, later)  # before the begin the total of a chunk stays
            carry = tl.where(alone, 0.0, carry)
            later += tl.where(full, dCs[K - 1], 0.0)
            if not TOTALS:
                owed = _owed(levels, sums, K)
                dxs, owing = _add_rows(owed, taps, _push(zero, dxs, alone, K), K), _add_filter(owed, xs, owing, own, K)
                _store_rows(dxBC + channel, dxs, places, s, begin, end, real, inner + 2 * wide, K)
                at = number * K * wide + column
                _store_first(dC_first + at, dCs, later + carry, real & own & (place == 0), wide, K)
            behind = place
    if TOTALS:
        tl.store(carried + tl.cast(row, tl.int64) * wide + column, later, real)
    else:
        _store_filter(dfilter + channel, owing, row, real, inner + wide, K)


@triton.jit
def _rows_back(
    xBC, wdt, dy, products, position, top, T, group, head, channel, real_h, real,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, inner: tl.constexpr, K: tl.constexpr, ROW: tl.constexpr,
    STEPS: tl.constexpr,
):  # fmt: skip
    """x, dy, wdt and place of a block of items, the last first, and the products that their levels went into."""
    rows = ()
    for u in tl.static_range(STEPS):
        s = tl.cast(top - u, tl.int64)
        live = (s >= 0) & (s < T)
        x = tl.load(xBC + s * ROW + channel, real & live, 0.0).to(tl.float32)
        dyt = tl.load(dy + s * inner + channel, real & live, 0.0).to(tl.float32)
        w = tl.load(wdt + s * HEADS + head, real_h & live, 0.0).to(tl.float32)
        CB = ()
        for j in tl.static_range(K):
            CB = CB + (tl.load(products + ((s + j) * K + j) * GROUPS + group, live & (s + j < T), 0.0),)
        rows = rows + ((x, dyt, w, tl.load(position + s, live, 0), CB),)
    return rows


@triton.jit
def _products_back(
    xBC, C_first, dproducts, position, owner, top, T, group, k, channel, real,
    GROUPS: tl.constexpr, STATE: tl.constexpr, K: tl.constexpr, ROW: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """B before the filter, C of the prefix that ends there, place and segment of a block of items, and dproducts."""
    rows = ()
    for u in tl.static_range(STEPS):
        s = tl.cast(top - u, tl.int64)
        live = (s >= 0) & (s < T)
        x = tl.load(xBC + s * ROW + channel, real & live, 0.0).to(tl.float32)
        place, number = tl.load(position + s, live, 0), tl.cast(tl.load(owner + s, live, 0), tl.int64)
        at = ((number * K + tl.minimum(place, K - 1)) * GROUPS + group) * STATE
        C = tl.load(C_first + at + k, real & live, 0.0).to(tl.float32)
        dCB = ()
        for j in tl.static_range(K):
            dCB = dCB + (tl.load(dproducts + (s + j) * K + j, live & (s + j < T), 0.0),)
        rows = rows + ((x, C, place, number, dCB),)
    return rows


@triton.jit
def _fill(zero, K: tl.constexpr):
    window = ()
    for _ in tl.static_range(K):
        window = window + (zero,)
    return window


@triton.jit
def _push(new, window, alone, K: tl.constexpr):
    """The window one item earlier; what it held is dropped where it is a neighbour's."""
    moved = (new,)
    for j in tl.static_range(K - 1):
        moved = moved + (tl.where(alone, tl.zeros_like(window[j]), window[j]),)
    return moved


@triton.jit
def _levels(xs, taps, offset, K: tl.constexpr):
    """The sums of an item with 1, 2, ..., K taps."""
    sums = (offset + xs[0] * taps[0],)
    for j in tl.static_range(1, K):
        sums = sums + (sums[j - 1] + xs[j] * taps[j],)
    return sums


@triton.jit
def _owed(levels, sums, K: tl.constexpr):
    """e_i: what all sums that contain tap i owe, from the gradients of their SiLU."""
    owed = ()
    for i in tl.static_range(K - 1, -1, -1):
        share = 1 / (1 + tl.exp(-sums[i]))
        here = levels[i] * share * (1 + sums[i] * (1 - share))
        owed = (here,) if i == K - 1 else (owed[0] + here,) + owed
    return owed


@triton.jit
def _add_rows(owed, taps, rows, K: tl.constexpr):
    added = ()
    for i in tl.static_range(K):
        added = added + (rows[i] + owed[i] * taps[i],)
    return added


@triton.jit
def _add_filter(owed, xs, owing, own, K: tl.constexpr):
    """Adds to the gradients of the bias and of the taps, for the span's own items."""
    added = (owing[0] + tl.where(own, owed[0], 0.0),)
    for i in tl.static_range(K):
        added = added + (owing[1 + i] + tl.where(own, owed[i] * xs[i], 0.0),)
    return added


@triton.jit
def _store_rows(dx, rows, places, s, begin, end, real, width: tl.constexpr, K: tl.constexpr):
    """Writes the span's rows that no earlier item owes to: that of item s + K - 1, and all where a segment begins."""
    for i in tl.static_range(K):
        done = (places[i] >= i) & (s + i >= begin) & (s + i < end)  # a token i behind in another segment has place < i
        if i < K - 1:
            done = done & (places[0] == 0)
        tl.store(dx + (s + i) * width, rows[i].to(dx.dtype.element_ty), real & done)


@triton.jit
def _store_first(first, window, later, real, stride: tl.constexpr, K: tl.constexpr):
    """Writes what the prefixes of 1, ..., K - 1 items owe to item 1, and all longer ones together."""
    for j in tl.static_range(K):
        tl.store(first + j * stride, window[j] if j < K - 1 else later, real)


@triton.jit
def _store_filter(dfilter, owing, row, real, channels: tl.constexpr, K: tl.constexpr):
    for i in tl.static_range(K + 1):
        tl.store(dfilter + (tl.cast(row, tl.int64) * (K + 1) + i) * channels, owing[i], real)
