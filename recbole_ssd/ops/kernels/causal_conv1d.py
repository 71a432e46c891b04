"""The short causal convolution of `ops.causal_conv1d` as Triton kernels: one forward, one backward.

    pre[t] = bias + sum_{k<K} w[k] * x[t-k],    y[t] = silu(pre[t]),    w[k] = weight[:, K-1-k]
    d[t] = dy[t] * silu'(pre[t])
    dx[t] = sum_k w[k] * d[t+k],    dw[k] = sum_t d[t] * x[t-k],    dbias = sum_t d[t]

t-k and t+k only as far as they lie in t's segment: a table says for every token how many of its segment come before it
and how many after, and a tap beyond that is not loaded. With `reverse` the stream is walked from its end, and the two
tables change places.

Both kernels are bound by memory. The forward takes blocks of tokens; its K loads of a row meet in the cache. The
backward walks along the tokens with the last K rows of x and of d in registers, so that every d is computed once and
dw needs no sum across threads. A walk goes K-1 tokens past its own, whose d it needs. Walks leave their sums of dw and
dbias in a table that torch adds up: no atomics, so the same numbers every time.

Shape letters:    T tokens    c channels    K width of the filter
"""

from __future__ import annotations

from math import gcd

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..packing import Segments

ROWS, COLUMNS = 32, 128  # tokens and channels of a block, forward
WALKED = 128  # channels of a walk: two for every thread of its two warps
AHEAD = 4  # tokens that a walk loads at once, to have more than one request under way
SHORT_WALK, LONG_WALK = 32, 128  # tokens of a walk; a long one leaves fewer sums behind, short ones fill a GPU sooner
LONG = 2**24  # numbers in x from which on there are enough long walks for a GPU


def causal_conv1d_triton(
    x: Tensor, weight: Tensor, bias: Tensor | None, segments: Segments, reverse: bool, silu: bool
) -> Tensor:
    """The convolution of a stream.

    Args:
        x: (T, c), float32 or bfloat16; may be a slice of the columns of a wider tensor, which is not copied.
        weight: (c, K); weight[:, K-1] meets the token itself.
        bias: (c,) or None.
        segments: the borders.
        reverse: True looks at the tokens that follow instead of those before.
        silu: False leaves the activation out.

    Returns:
        (T, c) in the dtype of x; the arithmetic is float32.
    """
    return _CausalConv.apply(x, weight, bias, segments, reverse, silu)


class _CausalConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, segments, reverse, silu):
        x, weight, bias = _rows(x), weight.contiguous(), None if bias is None else bias.contiguous()
        ctx.save_for_backward(x, weight, bias)
        ctx.segments, ctx.reverse, ctx.silu = segments, reverse, silu
        (tokens, channels), y = x.shape, x.new_empty(x.shape)
        before, _ = _neighbours(segments, reverse)
        unit = gcd(channels, x.stride(0), 8)
        grid = triton.cdiv(tokens, ROWS), triton.cdiv(channels, COLUMNS)
        with torch.cuda.device_of(x):
            forward_kernel[grid](
                *(x, weight, weight if bias is None else bias, before, y),
                *(tokens, channels // unit, x.stride(0) // unit),
                *(unit, weight.shape[1], reverse, silu, bias is not None, ROWS, COLUMNS),
                num_warps=8,
            )
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight, bias = ctx.saved_tensors
        dy, (tokens, channels), width = _rows(dy), x.shape, weight.shape[1]
        before, after = _neighbours(ctx.segments, ctx.reverse)
        unit = gcd(channels, x.stride(0), dy.stride(0), 8)
        steps = (LONG_WALK if x.numel() > LONG else SHORT_WALK) + width - 1
        own = triton.cdiv(steps, AHEAD) * AHEAD - (width - 1)
        walks = triton.cdiv(tokens, own)
        dx, sums = x.new_empty(x.shape), x.new_empty(walks, width + 1, channels, dtype=torch.float32)
        with torch.cuda.device_of(x):
            backward_kernel[walks, triton.cdiv(channels, WALKED)](
                *(dy, x, weight, weight if bias is None else bias, before, after, dx, sums),
                *(tokens, channels // unit, x.stride(0) // unit, dy.stride(0) // unit),
                *(unit, width, ctx.reverse, ctx.silu, bias is not None, own, AHEAD, WALKED),
                num_warps=2,
            )
        sums = sums.sum(0)
        dbias = None if bias is None else sums[-1].to(bias.dtype)
        return dx, sums[:-1].t().to(weight.dtype), dbias, None, None, None


def _rows(x: Tensor) -> Tensor:
    """x with its channels side by side, copied only where they are not."""
    return x if x.stride(1) == 1 else x.contiguous()


def _neighbours(segments: Segments, reverse: bool) -> tuple[Tensor, Tensor]:
    """Tokens of its own segment that each one has before it and after it, int32, (T,); swapped with `reverse`."""
    if "neighbours" not in segments.layouts:
        token = torch.arange(segments.total, device=segments.device)
        ends = torch.stack([segments.first, segments.last])
        first, last = ends.repeat_interleave(segments.lengths, dim=1, output_size=segments.total)  # without a sync
        segments.layouts["neighbours"] = (token - first).int(), (last - token).int()
    before, after = segments.layouts["neighbours"]
    return (after, before) if reverse else (before, after)


@triton.jit(do_not_specialize=["tokens"])
def forward_kernel(
    x_ptr, weight_ptr, bias_ptr, before_ptr, y_ptr,
    tokens, channels, x_row,  # the last two in units, so that the compiler knows what divides them
    UNIT: tl.constexpr, K: tl.constexpr, REVERSE: tl.constexpr, SILU: tl.constexpr, BIAS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    channels, x_row = channels * UNIT, x_row * UNIT
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = channel < channels
    before = tl.load(before_ptr + token, mask=token < tokens, other=-1)
    pre = tl.zeros([ROWS, COLUMNS], tl.float32)
    if BIAS:
        pre += tl.load(bias_ptr + channel, mask=inside, other=0.0).to(tl.float32)[None, :]
    for k in tl.static_range(K):
        weight = tl.load(weight_ptr + channel * K + (K - 1 - k), mask=inside, other=0.0).to(tl.float32)
        source = token + k if REVERSE else token - k
        place = tl.cast(source, tl.int64)[:, None] * x_row + channel[None, :]
        x = tl.load(x_ptr + place, mask=(before >= k)[:, None] & inside[None, :], other=0.0).to(tl.float32)
        pre += x * weight[None, :]
    if SILU:
        pre = pre / (1.0 + tl.exp(-pre))
    place = tl.cast(token, tl.int64)[:, None] * channels + channel[None, :]
    tl.store(y_ptr + place, pre, mask=(token < tokens)[:, None] & inside[None, :])


@triton.jit
def _row(ptr, step, tokens, row, channel, inside, REVERSE: tl.constexpr):
    """A token's channels, the `step`-th of the stream, or of the stream from its end; 0 where there is none."""
    token = tokens - 1 - step if REVERSE else step
    mask = tl.where((step >= 0) & (step < tokens), inside, False)  # 3.9's interpreter has no block & scalar
    return tl.load(ptr + tl.cast(token, tl.int64) * row + channel, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _count(ptr, step, tokens, REVERSE: tl.constexpr):
    """A token's entry in a table of neighbours, -1 where there is no token."""
    token = tokens - 1 - step if REVERSE else step
    return tl.load(ptr + token, mask=(step >= 0) & (step < tokens), other=-1)


@triton.jit
def _filtered(total, rows, weights, reach, K: tl.constexpr):
    """total + sum_k weights[k] * rows[k], over the rows that are not a neighbour's."""
    for k in tl.static_range(K):
        total += tl.where(reach >= k, rows[k], 0.0) * weights[k]
    return total


@triton.jit
def _collected(sums, d, rows, reach, K: tl.constexpr):
    """sums[k] + d * rows[k], over the same rows."""
    collected = ()
    for k in tl.static_range(K):
        collected = collected + (sums[k] + d * tl.where(reach >= k, rows[k], 0.0),)
    return collected


@triton.jit(do_not_specialize=["tokens"])
def backward_kernel(
    dy_ptr, x_ptr, weight_ptr, bias_ptr, before_ptr, after_ptr, dx_ptr, sums_ptr,
    tokens, channels, x_row, dy_row,  # the last three in units
    UNIT: tl.constexpr, K: tl.constexpr, REVERSE: tl.constexpr, SILU: tl.constexpr, BIAS: tl.constexpr,
    OWN: tl.constexpr, AHEAD: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    channels, x_row, dy_row = channels * UNIT, x_row * UNIT, dy_row * UNIT
    channel = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = channel < channels
    begin = tl.program_id(0) * OWN
    zero = tl.zeros([COLUMNS], tl.float32)
    bias = tl.load(bias_ptr + channel, mask=inside, other=0.0).to(tl.float32) if BIAS else zero
    weights, dweights, dbias, xs, ds = (), (), zero, (), ()  # xs: the last K rows of x, the nearest first
    for k in tl.static_range(K):  # ds: those of d, the nearest last
        weights += (tl.load(weight_ptr + channel * K + (K - 1 - k), mask=inside, other=0.0).to(tl.float32),)
        xs += (_row(x_ptr, begin - 1 - k, tokens, x_row, channel, inside, REVERSE),)
        dweights, ds = dweights + (zero,), ds + (zero,)

    for block in range(0, OWN + K - 1, AHEAD):
        loaded = ()
        for ahead in tl.static_range(AHEAD):
            step = begin + block + ahead
            x = _row(x_ptr, step, tokens, x_row, channel, inside, REVERSE)
            loaded += ((x, _row(dy_ptr, step, tokens, dy_row, channel, inside, REVERSE)),)
        for ahead in tl.static_range(AHEAD):
            step = begin + block + ahead
            before = _count(before_ptr, step, tokens, REVERSE)
            x, d = loaded[ahead]
            xs = (x,) + xs[:-1]
            if SILU:
                pre = _filtered(bias, xs, weights, before, K)
                gate = 1.0 / (1.0 + tl.exp(-pre))
                d *= gate * (1.0 + pre * (1.0 - gate))
            ds = ds[1:] + (d,)
            d = tl.where(block + ahead < OWN, d, 0.0)
            dweights, dbias = _collected(dweights, d, xs, before, K), dbias + d
            back = step - (K - 1)  # the token whose followers are all known now
            dx = _filtered(zero, ds, weights, _count(after_ptr, back, tokens, REVERSE), K)
            place = tl.cast(tokens - 1 - back if REVERSE else back, tl.int64) * channels + channel
            tl.store(dx_ptr + place, dx, mask=tl.where((back >= begin) & (back < tokens), inside, False))

    place = tl.cast(tl.program_id(0), tl.int64) * (K + 1) * channels + channel
    for k in tl.static_range(K):
        tl.store(sums_ptr + place + (K - 1 - k) * channels, dweights[k], mask=inside)
    tl.store(sums_ptr + place + K * channels, dbias, mask=inside)
