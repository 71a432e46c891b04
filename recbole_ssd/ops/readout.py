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

from .backends import choose
from .compiled import support as on_cpu
from .conv_ssd import check
from .kernels import support
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
    backend: str = "auto",
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
        backend: `torch` (any device), `numba` (our kernels for CPUs), `triton` (those for GPUs, float32 or bfloat16),
            or `auto`: `numba` or `triton` where they can run, else `torch`.

    Returns:
        y, (T, h, p): at every token what the flipped scan gives for the prefix that ends with it, before the gate.

    Raises:
        ValueError: on a wrong shape or an unknown backend.
        RuntimeError: when the backend asked for cannot run on this machine or these tensors.
    """
    refusals = {"numba": lambda: on_cpu.refusal(xBC), "triton": lambda: support.refusal(xBC)}
    backend = choose("prefix_readout", backend, xBC, refusals)
    segments = Segments.of(cu_seqlens)
    check(xBC, dt, A, D, weight, bias, headdim, ngroups, segments)
    if backend == "numba":
        from .compiled.readout import readout_numba  # late: it imports numba

        D = D.view(len(A), -1).expand(-1, headdim)
        return readout_numba(xBC, dt, A, D, weight, bias, ngroups, segments)
    inner = A.shape[0] * headdim
    state = (xBC.shape[1] - inner) // 2
    x_first, _, C_first = _first_item(xBC, weight, bias, segments).split([inner, state, state], dim=-1)
    C_first = C_first.unflatten(-1, (ngroups, -1))  # (S, K, g, n)
    skip = x_first.unflatten(-1, (-1, headdim)) * D.view(A.shape[0], -1)  # (S, K, h, p)
    a = dt.double() * A.double()
    w = (segment_cumsum(a, segments) - a).exp()  # (T, h)
    if backend == "triton":
        from .kernels.readout import readout_triton  # late: it imports triton

        return readout_triton(xBC, w * dt, C_first, skip, weight, bias, segments)
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
        return *_Gradients(_Levels(*ctx.saved_tensors, ctx.segments), dy.contiguous()).all(), None


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
        x, B = self.parts(channels)
        CB = (B * self.C[: len(B)]).sum(-1)
        rows, owners, level = _early(self.segments, self.j, self.width)
        CB[rows] = (B[rows] * self.C_first[owners, level]).sum(-1)
        scale = self.clear_tails(self.wdt[: len(B)] * self.by_head(CB))
        return x, B, CB, scale

    def parts(self, channels: Tensor) -> tuple[Tensor, Tensor]:
        """Views x (T - j, h, p) and B (T - j, g, n) of (T - j, channels)."""
        inner = self.channels - self.groups * self.state
        x, B = channels[:, :inner], channels[:, inner:]
        return x.unflatten(1, (self.heads, -1)), B.unflatten(1, (self.groups, self.state))

    def by_head(self, CB: Tensor) -> Tensor:
        """(..., g) -> (..., h)."""
        return CB if self.groups == 1 else CB.repeat_interleave(self.heads // self.groups, dim=-1)

    def padded(self, rows: Tensor) -> Tensor:
        """(T - j, ...) -> (T, ...), zeros at the end."""
        return torch.cat([rows, rows.new_zeros(len(self.xB) - len(rows), *rows.shape[1:])])

    def clear_tails(self, rows: Tensor) -> Tensor:
        """(T - j, ...) with zeros where the item j places ahead is a neighbour's. In place."""
        return rows.index_fill_(0, _tails(self.segments, self.j), 0) if self.j else rows

    def expand(self, first: Tensor) -> Tensor:
        """(S, K, h, p) at item 1 by level -> (T, h, p) by the number of items in each token's prefix."""
        y = first[:, -1].flatten(1).index_select(0, self.segments.number).view(-1, *first.shape[2:])
        for i in range(self.width - 1):
            rows, owners = self.segments.head(i)
            y[rows] = first[owners, i]
        return y


def _tails(segments: Segments, j: int) -> Tensor:
    """The tokens, among the first T - j, whose segment has no item j places ahead."""
    key = "tails", j
    if key not in segments.layouts:
        tails = torch.cat([segments.tail(i)[0] for i in range(j)])
        segments.layouts[key] = tails[tails < segments.total - j]
    return segments.layouts[key]


def _early(segments: Segments, j: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """(tokens, their segments, level of C) where the prefix that ends j items later does not fill the filter."""
    key = "early", j, width
    if key not in segments.layouts:
        heads = [segments.head(i) for i in range(width - 1 - j)] or [(segments.first[:0], segments.first[:0])]
        rows, owners = (torch.cat(parts) for parts in zip(*heads))
        inside = rows < segments.total - j
        level = rows - segments.first[owners] + j
        segments.layouts[key] = rows[inside], owners[inside], level[inside]
    return segments.layouts[key]


class _Gradients:
    """Comes down from the last level to the first, adding up what each one owes."""

    def __init__(self, levels: _Levels, dy: Tensor):
        for _ in range(levels.width):
            levels.climb()
        self.levels, self.dy, self.last = levels, dy, levels.width - 1
        channels = levels.channels + levels.groups * levels.state
        self.dxBC, self.dbias = dy.new_zeros(len(dy), channels), dy.new_zeros(channels)
        self.dweight = dy.new_zeros(channels, levels.width)
        self.dwdt, self.dC_first = torch.zeros_like(levels.wdt), torch.zeros_like(levels.C_first)
        self.dskip = dy.new_zeros(len(levels.segments), levels.width, *dy.shape[1:])
        self.dC = torch.zeros_like(levels.C)  # of the full filter's C at item 1, still at every token
        self.dpre = dy.new_zeros(len(dy), levels.channels)  # of the sums that level j and those above share

    def all(self):
        """Gradients of xBC, wdt, C_first, skip, weight, bias."""
        levels, inputs = self.levels, self.dxBC[:, : self.levels.channels]
        for i in range(self.last):
            rows, owners = levels.segments.head(i)
            self.dskip[owners, i] = self.dy[rows]
        for j in reversed(range(levels.width)):
            levels.j = j
            dchannels, pre = self._channels(self._term()), levels.pre[j]
            dpre = self.dpre[: len(pre)].add_(torch.ops.aten.silu_backward(dchannels, pre))
            inputs[j:].addcmul_(dpre, levels.taps[j])
            products = torch.mul(dpre, levels.xB[j:], out=dchannels)
            self.dweight[: levels.channels, self.last - j] = products.sum(0)
        self.dbias[: levels.channels] = self.dpre.sum(0)
        self.dC_first[:, -1] += segment_sum(self.dC, levels.segments)
        return self.dxBC, self.dwdt, self.dC_first, self.dskip, self.dweight, self.dbias

    def _term(self) -> Tensor:
        """Gradient of what every token adds at this level, (T - j, h, p)."""
        levels, dterm = self.levels, self.dy[self.levels.j :]
        if levels.j < self.last:
            return dterm
        later = running_sum(levels.padded(levels.clear_tails(dterm.clone())), levels.segments, reverse=True)
        self.dskip[:, self.last] = later[levels.segments.first]
        return later[: len(dterm)]

    def _channels(self, dterm: Tensor) -> Tensor:
        """Gradient of x and B after the SiLU, (T - j, channels); adds to those of wdt and C on the way."""
        levels = self.levels
        x, B, CB, scale = levels.term()
        wdt, C, dwdt, dC = (t[: len(x)] for t in (levels.wdt, levels.C, self.dwdt, self.dC))
        dscale = levels.clear_tails((dterm * x).sum(-1))  # (T - j, h)
        dwdt.addcmul_(dscale, levels.by_head(CB))
        dCB = (dscale * wdt).unflatten(1, (levels.groups, -1)).sum(-1, keepdim=True)  # (T - j, g, 1)
        dchannels = self.dy.new_empty(len(x), levels.channels)
        dx, dB = levels.parts(dchannels)
        torch.mul(dterm, scale[..., None], out=dx)
        torch.mul(dCB, C, out=dB)
        rows, owners, level = _early(levels.segments, levels.j, levels.width)
        dB[rows] = dCB[rows] * levels.C_first[owners, level]
        self.dC_first[owners, level] += dCB[rows] * B[rows]
        dCB[rows] = 0
        dC.addcmul_(dCB, B)
        return dchannels
