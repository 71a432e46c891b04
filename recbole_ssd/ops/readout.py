"""The backward direction of SSD4Rec, read out for every prefix of a history in one linear pass.

SSD4Rec (https://arxiv.org/abs/2409.01192) runs its Mamba-2 block over the flipped prefix as well. Of that direction
only the last step is read, which lies at item 1, after the scan went through items t, t-1, ..., 1. With a = dt * A and
x~, B~, C~ the values after the flipped convolution (at item s it sees items s .. s+K-1, as far as the prefix goes),

    y(t) = sum_{s<=t} w[s] dt[s] (C~[1] . B~[s]) x~[s]  +  D x~[1],      w[s] = exp(a[1] + ... + a[s-1])

Neither dt nor w depends on t. The convolved values do only where the prefix ends inside the filter: at s > t-(K-1).
So the sum is a running sum over s plus K-1 corrected last terms. We make the convolution K times, with 1, 2, ..., K of
its taps ("level" j has j+1 of them): the term of item s at level j < K-1 goes to prefix s+j, and the terms of level
K-1 are summed and go to s+K-1 and on. No state, no decay above 1, O(T).

Shape letters:    T tokens    S segments    K width of the filter    h heads    p head size    g groups    n state size
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .packing import Segments
from .segment_cumsum import running_sum, segment_cumsum, segment_sum


def prefix_readout(
    xBC: Tensor,
    dt: Tensor,
    A: Tensor,
    D: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    headdim: int,
    ngroups: int,
    cu_seqlens: Tensor | Segments,
) -> Tensor:
    """What the scan over the flipped prefix gives at item 1, for every prefix of every segment.

    Args:
        xBC: (T, h * p + 2 * g * n), before the convolution, the three side by side as in mamba-ssm.
        dt: (T, h), after the softplus.
        A: (h,), negative.
        D: (h,) or (h, p).
        weight: (h * p + 2 * g * n, K) of the convolution, followed by SiLU.
        bias: (h * p + 2 * g * n,).
        headdim: p.
        ngroups: g.
        cu_seqlens: (S + 1,) borders of the segments, or a `Segments`.

    Returns:
        y, (T, h, p): at every token what the flipped scan gives for the prefix that ends with it, before the gate.
    """
    segments = Segments.of(cu_seqlens)
    inner = A.shape[0] * headdim
    state = (xBC.shape[1] - inner) // 2
    x_first, _, C_first = _first_item(xBC, weight, bias, segments).split([inner, state, state], dim=-1)
    C_first = C_first.unflatten(-1, (ngroups, -1))  # (S, K, g, n)
    skip = x_first.unflatten(-1, (-1, headdim)) * D.view(A.shape[0], -1)  # (S, K, h, p)
    a = dt.double() * A.double()
    w = (segment_cumsum(a, segments) - a).exp()  # (T, h)
    return _Readout.apply(xBC, (w * dt).to(xBC.dtype), C_first, skip, weight, bias, segments)


def _first_item(xBC: Tensor, weight: Tensor, bias: Tensor, segments: Segments) -> Tensor:
    """The flipped convolution at item 1 of every segment, when it sees 1, 2, ..., K items. (S, K, channels)."""
    width = weight.shape[1]
    places = [segments.head(k) for k in range(width)]
    rows = xBC.index_select(0, torch.cat([rows for rows, _ in places]))  # no row twice: its backward is deterministic
    sums, levels = bias.expand(len(segments), -1), []
    for k, (part, (_, owners)) in enumerate(zip(rows.split([len(rows) for rows, _ in places]), places)):
        tap = xBC.new_zeros(len(segments), xBC.shape[1]).index_copy(0, owners, part)
        sums = sums + tap * weight[:, width - 1 - k]
        levels.append(F.silu(sums))
    return torch.stack(levels, dim=1)


class _Readout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, xBC, wdt, C_first, skip, weight, bias, segments):
        ctx.save_for_backward(xBC, wdt, C_first, weight, bias)
        ctx.segments = segments
        levels = _Levels(xBC, wdt, C_first, weight, bias, segments)
        last = levels.width - 1
        y = levels.expand(skip)
        for j in range(levels.width):
            levels.climb()
            x, _, _, scale = levels.term()
            if j < last:
                y[j:].addcmul_(x, scale[..., None])
            else:
                total = running_sum(levels.padded(x * scale[..., None]), segments)[: len(x)]
                y[j:] += levels.clear_tails(total)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        return _backward(_Levels(*ctx.saved_tensors, ctx.segments), dy.contiguous())


class _Levels:
    """Climbs from one tap of the filter to all K, keeping what every level adds to the prefixes."""

    def __init__(self, xBC, wdt, C_first, weight, bias, segments: Segments):
        self.wdt, self.C_first, self.segments = wdt, C_first, segments
        self.heads, (self.groups, self.state) = wdt.shape[1], C_first.shape[2:]
        self.channels = xBC.shape[1] - self.groups * self.state  # of x and B: C is read at item 1 only
        self.xB, self.bias = xBC[:, : self.channels], bias[: self.channels]
        self.taps = weight[: self.channels].flip(1).t().contiguous()  # (K, channels)
        self.width = len(self.taps)
        self.C = C_first[:, -1].flatten(1).index_select(0, segments.number).view(-1, self.groups, self.state)
        self.j, self.pre = -1, []
        self.buffer = xBC.new_empty(len(xBC), self.channels)  # of the activations, for one level at a time

    def climb(self) -> None:
        """One more tap; level j has rows for the tokens that have one j places ahead, a neighbour's included."""
        self.j += 1
        ahead = self.xB[self.j :]
        self.pre.append(torch.addcmul(self.pre[-1][: len(ahead)] if self.j else self.bias, ahead, self.taps[self.j]))

    def term(self):
        """x (T - j, h, p), B (T - j, g, n), C.B (T - j, g) and the weight of x, (T - j, h), at this level."""
        channels = torch.ops.aten.silu.out(self.pre[self.j], out=self.buffer[: len(self.pre[self.j])])
        inner = self.channels - self.groups * self.state
        x = channels[:, :inner].unflatten(1, (self.heads, -1))
        B = channels[:, inner:].unflatten(1, (self.groups, self.state))
        CB = (B * self.C[: len(B)]).sum(-1)
        for rows, owners, level in self.early():
            CB[rows] = (B[rows] * self.C_first[owners, level]).sum(-1)
        scale = self.clear_tails(self.wdt[: len(B)] * self.by_head(CB))
        return x, B, CB, scale

    def by_head(self, CB: Tensor) -> Tensor:
        """(..., g) -> (..., h)."""
        return CB if self.groups == 1 else CB.repeat_interleave(self.heads // self.groups, dim=-1)

    def padded(self, rows: Tensor) -> Tensor:
        """(T - j, ...) -> (T, ...), zeros at the end."""
        return torch.cat([rows, rows.new_zeros(len(self.xB) - len(rows), *rows.shape[1:])])

    def early(self):
        """(rows, their segments, level of C) of the items whose prefix ends before the filter is full."""
        for i in range(self.width - 1 - self.j):
            rows, owners = self.segments.head(i)
            inside = rows < len(self.pre[self.j])
            yield rows[inside], owners[inside], i + self.j

    def clear_tails(self, rows: Tensor) -> Tensor:
        """(T - j, ...) with zeros where the item j places ahead is a neighbour's. In place."""
        for i in range(self.j):
            tail = self.segments.tail(i)[0]
            rows[tail[tail < len(rows)]] = 0
        return rows

    def expand(self, first: Tensor) -> Tensor:
        """(S, K, h, p) at item 1 by level -> (T, h, p) by the number of items in each token's prefix."""
        y = first[:, -1].flatten(1).index_select(0, self.segments.number).view(-1, *first.shape[2:])
        for i in range(self.width - 1):
            rows, owners = self.segments.head(i)
            y[rows] = first[owners, i]
        return y


def _backward(levels: _Levels, dy: Tensor):
    """Gradients of xBC, wdt, C_first, skip, weight, bias."""
    for _ in range(levels.width):
        levels.climb()
    length, last, channels = len(dy), levels.width - 1, levels.channels
    dxBC = dy.new_zeros(length, channels + levels.groups * levels.state)
    dxB, dwdt = dxBC[:, :channels], torch.zeros_like(levels.wdt)
    dC_first, dC = torch.zeros_like(levels.C_first), torch.zeros_like(levels.C)
    dpre, dtaps = dy.new_zeros(length, channels), dy.new_zeros(dxBC.shape[1], levels.width)
    dskip = dy.new_zeros(len(levels.segments), levels.width, *dy.shape[1:])
    for i in range(last):
        rows, owners = levels.segments.head(i)
        dskip[owners, i] = dy[rows]

    inner = channels - levels.groups * levels.state
    buffer = torch.empty_like(dpre)
    for j in reversed(range(levels.width)):
        levels.j = j
        here = slice(len(levels.pre[j]))  # the tokens that have one j places ahead
        dterm, dchannels = dy[j:], buffer[here]
        if j == last:
            dterm = running_sum(levels.padded(levels.clear_tails(dterm.clone())), levels.segments, reverse=True)
            dskip[:, last] = dterm[levels.segments.first]
            dterm = dterm[here]
        x, B, CB, scale = levels.term()
        torch.mul(dterm, scale[..., None], out=dchannels[:, :inner].unflatten(1, (levels.heads, -1)))
        dscale = levels.clear_tails((dterm * x).sum(-1))  # (T - j, h)
        dwdt[here].addcmul_(dscale, levels.by_head(CB))
        dCB = (dscale * levels.wdt[here]).unflatten(1, (levels.groups, -1)).sum(-1, keepdim=True)
        dB = dchannels[:, inner:].unflatten(1, (levels.groups, levels.state))
        torch.mul(dCB, levels.C[here], out=dB)
        for rows, owners, level in levels.early():
            dB[rows] = dCB[rows] * levels.C_first[owners, level]
            dC_first[owners, level] += dCB[rows] * B[rows]
            dCB[rows] = 0
        dC[here].addcmul_(dCB, B)
        dpre[here] += torch.ops.aten.silu_backward(dchannels, levels.pre[j])
        dxB[j:].addcmul_(dpre[here], levels.taps[j])
        dtaps[:channels, last - j] = torch.mul(dpre[here], levels.xB[j:], out=dchannels).sum(0)

    dC_first[:, -1] += segment_sum(dC, levels.segments)
    dbias = dtaps.new_zeros(len(dtaps))
    dbias[:channels] = dpre.sum(0)
    return dxBC, dwdt, dC_first, dskip, dtaps, dbias, None
