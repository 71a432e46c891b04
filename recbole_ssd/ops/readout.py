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
from .segment_cumsum import running_sum, segment_cumsum


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
    x_first, _, C_first = _first_item(xBC, weight, bias, segments).split(
        [inner, (xBC.shape[1] - inner) // 2, (xBC.shape[1] - inner) // 2], dim=-1
    )
    C_first = C_first.unflatten(-1, (ngroups, -1))  # (S, K, g, n)
    skip = x_first.unflatten(-1, (-1, headdim)) * D.view(A.shape[0], -1)  # (S, K, h, p)
    a = dt.double() * A.double()
    w = (segment_cumsum(a, segments) - a).exp()  # (T, h)
    both = inner + C_first.shape[2] * C_first.shape[3]  # channels of x and B
    return _Readout.apply(xBC[:, :both], (w * dt).to(xBC.dtype), C_first, skip, weight[:both], bias[:both], segments)


def _first_item(xBC: Tensor, weight: Tensor, bias: Tensor, segments: Segments) -> Tensor:
    """The flipped convolution at item 1 of every segment, when it sees 1, 2, ..., K items. (S, K, channels)."""
    width = weight.shape[1]
    sums, levels = bias.expand(len(segments), -1), []
    for k in range(width):
        rows, owners = segments.head(k)
        tap = xBC.new_zeros(len(segments), xBC.shape[1]).index_copy(0, owners, xBC.index_select(0, rows))
        sums = sums + tap * weight[:, width - 1 - k]
        levels.append(F.silu(sums))
    return torch.stack(levels, dim=1)


class _Readout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, xB, wdt, C_first, skip, weight, bias, segments):
        ctx.save_for_backward(xB, wdt, C_first, weight, bias)
        ctx.segments = segments
        levels = _Levels(xB, wdt, C_first, weight, bias, segments)
        last = levels.width - 1
        y = levels.expand(skip)
        for j in range(levels.width):
            levels.climb()
            x, _, _, scale = levels.term()
            if j < last:
                y[j:].addcmul_(x[: len(y) - j], scale[: len(y) - j, :, None])
            else:
                total = levels.clear_tails(running_sum(x * scale[..., None], segments))
                y[j:] += total[: len(y) - j]
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        xB, wdt, C_first, weight, bias = ctx.saved_tensors
        levels = _Levels(xB, wdt, C_first, weight, bias, ctx.segments)
        return _backward(levels, dy.contiguous())


class _Levels:
    """Climbs from one tap of the filter to all K, keeping what every level adds to the prefixes."""

    def __init__(self, xB, wdt, C_first, weight, bias, segments: Segments):
        self.xB, self.wdt, self.C_first, self.bias, self.segments = xB, wdt, C_first, bias, segments
        self.taps = weight.flip(1).t().contiguous()  # (K, channels)
        self.width = len(self.taps)
        self.heads, (self.groups, self.state) = wdt.shape[1], C_first.shape[2:]
        self.C = C_first[:, -1].flatten(1).index_select(0, segments.number).view(-1, self.groups, self.state)
        self.j, self.pre = -1, []

    def climb(self) -> None:
        """One more tap. Rows that lack an item so far ahead hold a neighbour's; `term` gives them weight zero."""
        self.j += 1
        if self.j == 0:
            self.pre.append(torch.addcmul(self.bias, self.xB, self.taps[0]))
            return
        pre = self.pre[-1].clone()
        pre[: -self.j].addcmul_(self.xB[self.j :], self.taps[self.j])
        self.pre.append(pre)

    def term(self):
        """x (T, h, p), B (T, g, n), C.B (T, g) and the weight of x, (T, h), at this level."""
        channels = F.silu(self.pre[self.j])
        inner = channels.shape[1] - self.groups * self.state
        x = channels[:, :inner].unflatten(1, (self.heads, -1))
        B = channels[:, inner:].unflatten(1, (self.groups, self.state))
        CB = (B * self.C).sum(-1)
        for rows, owners, level in self.early():
            CB[rows] = (B[rows] * self.C_first[owners, level]).sum(-1)
        scale = self.clear_tails(self.wdt * CB.repeat_interleave(self.heads // self.groups, dim=1))
        return x, B, CB, scale

    def early(self):
        """(rows, their segments, level of C) of the items whose prefix ends before the filter is full."""
        for i in range(self.width - 1 - self.j):
            yield *self.segments.head(i), i + self.j

    def clear_tails(self, rows: Tensor) -> Tensor:
        """Zeros where the segment has no item j places ahead. In place."""
        for i in range(self.j):
            rows[self.segments.tail(i)[0]] = 0
        return rows

    def expand(self, first: Tensor) -> Tensor:
        """(S, K, h, p) at item 1 by level -> (T, h, p) by the number of items in each token's prefix."""
        y = first[:, -1].flatten(1).index_select(0, self.segments.number).view(-1, *first.shape[2:])
        for i in range(self.width - 1):
            rows, owners = self.segments.head(i)
            y[rows] = first[owners, i]
        return y


def _backward(levels: _Levels, dy: Tensor):
    """Gradients of xB, wdt, C_first, skip, weight, bias."""
    for _ in range(levels.width):
        levels.climb()
    length, last = len(dy), levels.width - 1
    dxB, dwdt = torch.zeros_like(levels.xB), torch.zeros_like(levels.wdt)
    dC_first, dC = torch.zeros_like(levels.C_first), torch.zeros_like(levels.C)
    dpre, dtaps = torch.zeros_like(levels.xB), torch.zeros_like(levels.taps)
    dskip = dy.new_zeros(len(levels.segments), levels.width, *dy.shape[1:])
    for i in range(last):
        rows, owners = levels.segments.head(i)
        dskip[owners, i] = dy[rows]

    for j in reversed(range(levels.width)):
        levels.j = j
        dterm = torch.zeros_like(dy)
        dterm[: length - j] = dy[j:]
        if j == last:
            dterm = running_sum(levels.clear_tails(dterm), levels.segments, reverse=True)
            dskip[:, last] = dterm[levels.segments.first]
        x, B, CB, scale = levels.term()
        dscale = levels.clear_tails((dterm * x).sum(-1))  # (T, h)
        dwdt += dscale * CB.repeat_interleave(levels.heads // levels.groups, dim=1)
        dCB = (dscale * levels.wdt).unflatten(1, (levels.groups, -1)).sum(-1, keepdim=True)  # (T, g, 1)
        dB, dC_level = dCB * levels.C, dCB * B
        for rows, owners, level in levels.early():
            dB[rows] = dCB[rows] * levels.C_first[owners, level]
            dC_first[owners, level] += dC_level[rows]
            dC_level[rows] = 0
        dC += dC_level
        dchannels = torch.cat([(dterm * scale[..., None]).flatten(1), dB.flatten(1)], dim=1)
        dpre += torch.ops.aten.silu_backward(dchannels, levels.pre[j])
        dxB[j:].addcmul_(dpre[: length - j], levels.taps[j])
        dtaps[j] = (dpre[: length - j] * levels.xB[j:]).sum(0)

    dC_first[:, -1] += running_sum(dC, levels.segments, reverse=True)[levels.segments.first]
    return dxB, dwdt, dC_first, dskip, dtaps.t().flip(1), dpre.sum(0), None
