"""Mamba-2's block on packed streams, with the parameter names and shapes of mamba-ssm's `Mamba2`.

    z, xBC, dt = in_proj(u);   x, B, C = silu(conv(xBC));   y = ssd(x, softplus(dt + dt_bias), -exp(A_log), B, C, D)
    out = out_proj( RMSNorm(y * silu(z)) )

Dao and Gu, "Transformers are SSMs", ICML 2024, https://arxiv.org/abs/2405.21060, figure 6 (right).

Shape letters:    b batch    l length    d model size    i inner size (expand * d)    h heads    p headdim
                  g groups    n state size    T tokens of a stream
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_ssd.ops.causal_conv1d import causal_conv1d
from recbole_ssd.ops.conv_ssd import conv_ssd, split_columns
from recbole_ssd.ops.gated_directions import gated_directions
from recbole_ssd.ops.gated_rms_norm import gated_rms_norm
from recbole_ssd.ops.kernels.support import refusal
from recbole_ssd.ops.linear import linear
from recbole_ssd.ops.packing import Segments, flipped
from recbole_ssd.ops.readout import prefix_readout
from recbole_ssd.ops.ssd import WIDEST
from recbole_ssd.ops.ssd_last import ssd_last

from .initialization import inverse_softplus_of_dt
from .linear import project, split_linear


class Projected(NamedTuple):
    """What in_proj makes of a stream: z (T, i), xBC (T, i + 2 g n), dt (T, h) after bias and softplus."""

    z: Tensor
    xBC: Tensor
    dt: Tensor

    def flipped(self, segments: Segments) -> Projected:
        """Every segment from its last token to its first."""
        return Projected(*(flipped(t, segments) for t in self))


class GatedRMSNorm(nn.Module):
    """RMSNorm(y * silu(z)), each group of channels for itself."""

    def __init__(self, size: int, groups: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.groups = groups

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        return gated_rms_norm(y, z, self.weight, self.groups)


class Mamba2(nn.Module):
    """The block: in_proj, convolution, SSD, gated norm, out_proj.

    Args:
        d_model: d.
        d_state: n.
        d_conv: width of the convolution, >= 1.
        expand: i / d.
        headdim: p; expand * d_model must be a multiple of it.
        ngroups: g; the number of heads must be a multiple of it.
        backend: of `ops.ssd.ssd`.
        conv_backend: of `ops.causal_conv1d.causal_conv1d`.
        chunk_size: of `ops.ssd.ssd`.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 128,
        d_conv: int = 4,
        expand: int = 2,
        headdim: int = 64,
        ngroups: int = 1,
        backend: str = "auto",
        conv_backend: str = "auto",
        chunk_size: int | None = None,
    ):
        super().__init__()
        self.d_inner = expand * d_model
        if self.d_inner % headdim:
            raise ValueError(
                f"headdim must divide expand * hidden_size = {expand} * {d_model} = {self.d_inner}, got {headdim}"
            )
        heads = self.d_inner // headdim
        if heads % ngroups:
            raise ValueError(f"the number of heads, {heads}, must be a multiple of ngroups, {ngroups}")
        self.d_state, self.headdim, self.ngroups = d_state, headdim, ngroups
        self.backend, self.conv_backend, self.chunk_size = backend, conv_backend, chunk_size
        channels = self.d_inner + 2 * ngroups * d_state
        self.in_proj = nn.Linear(d_model, self.d_inner + channels + heads, bias=False)
        self.conv1d = nn.Conv1d(channels, channels, d_conv, groups=channels, padding=d_conv - 1)  # holds the filter
        self.dt_bias = nn.Parameter(inverse_softplus_of_dt(heads))
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = GatedRMSNorm(self.d_inner, ngroups)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)

    def forward(self, u: Tensor, cu_seqlens: Tensor | Segments | None = None) -> Tensor:
        """(b, l, d) -> (b, l, d); with `cu_seqlens` a stream (T, d) or (1, T, d), every segment for itself."""
        segments = Segments.of_rows(u, cu_seqlens)
        (out,) = project(self.scan(self.project(u.flatten(0, -2)), segments), self.out_proj)
        return out.view(u.shape)

    def project(self, u: Tensor) -> Projected:
        """(T, d) -> the three parts of in_proj, which both directions of SSD4Rec share."""
        sizes = self.d_inner, self.conv1d.in_channels, self.A_log.shape[0]
        z, xBC, dt = split_linear(self.in_proj, u, sizes)
        return Projected(z, xBC, self._step(dt))

    def scan(self, projected: Projected, segments: Segments) -> Tensor:
        """The stream from front to back, gated and normed, before out_proj. (T, i)."""
        projected = self._for_kernels(projected)
        with torch.autocast(projected.z.device.type, enabled=False):
            return self.norm(self._scan(projected, segments), projected.z)

    def scan_and_read_out(self, projected: Projected, segments: Segments, beta: float) -> Tensor:
        """`scan` plus beta times, at every token, what the flipped prefix that ends there gives at its last step."""
        for_kernels, projected = self._for_kernels(projected), self._float32(projected)
        with torch.autocast(projected.z.device.type, enabled=False):
            y, r = self._scan(for_kernels, segments), self._read_out(projected, segments)
            return gated_directions(y, r, projected.z, self.norm.weight, beta, segments, groups=self.norm.groups)

    def _scan(self, projected: Projected, segments: Segments) -> Tensor:
        """Before the gate. (T, i)."""
        how = {"chunk_size": self.chunk_size, "backend": self.backend, "conv_backend": self.conv_backend}
        return conv_ssd(**self._operands(projected, segments), **how).flatten(1)

    def _read_out(self, projected: Projected, segments: Segments) -> Tensor:
        """Before the gate. (T, i)."""
        return prefix_readout(**self._operands(projected, segments)).flatten(1)

    def _operands(self, projected: Projected, segments: Segments) -> dict:
        """What both directions take."""
        sizes = {"headdim": self.headdim, "ngroups": self.ngroups, "cu_seqlens": segments}
        tensors = {"xBC": projected.xBC, "dt": projected.dt, "A": -self.A_log.exp(), "D": self.D, **self._filter()}
        return tensors | sizes

    def _filter(self) -> dict[str, Tensor]:
        return {"weight": self.conv1d.weight[:, 0], "bias": self.conv1d.bias}

    def project_inputs(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """`project` without z: xBC and dt, for `scan_last`."""
        sizes = self.conv1d.in_channels, self.A_log.shape[0]
        xBC, dt = linear(u, self.in_proj.weight[self.d_inner :].split(sizes))
        return xBC, self._step(dt)

    def scan_last(self, u: Tensor, inputs: tuple, segments: Segments, reverse: bool = False) -> Tensor:
        """What `scan` gives at the last token of each segment, or of each flipped segment. (S, i).

        Args:
            u: (T, d), what `inputs` were projected from: z is needed at the last token only.
            inputs: of `project_inputs`.
            segments: the borders.
            reverse: the segments are flipped: the last token is the first.
        """
        last = segments.first if reverse else segments.last
        (z,) = linear(u.index_select(0, last), [self.in_proj.weight[: self.d_inner]])
        z, xBC, dt = self._float32(Projected(z, *inputs))
        with torch.autocast(xBC.device.type, enabled=False):
            how = {"cu_seqlens": segments, "reverse": reverse, "backend": self.conv_backend}
            xBC = causal_conv1d(xBC[None], **self._filter(), **how)
            x, B, C = split_columns(xBC.squeeze(0), self.headdim, self.ngroups, len(self.A_log))
            y = ssd_last(
                x,
                dt,
                -self.A_log.exp(),
                B,
                C.index_select(0, last),
                self.D,
                cu_seqlens=segments,
                reverse=reverse,
            )
            return self.norm(y.flatten(1), z)

    def _step(self, dt: Tensor) -> Tensor:
        """dt with its bias and softplus. Under autocast the projection is bfloat16; steps and decays are not."""
        with torch.autocast(dt.device.type, enabled=False):
            return F.softplus(dt.to(self.dt_bias.dtype) + self.dt_bias)

    def _for_kernels(self, projected: Projected) -> Projected:
        """`_float32`, but z, x, B and C stay half precision where the kernels of every step take them so."""
        ours = {self.backend, self.conv_backend} <= {"auto", "triton"} and max(self.headdim, self.d_state) <= WIDEST
        return projected if ours and refusal(projected.xBC) is None else self._float32(projected)

    def _float32(self, projected: Projected) -> Projected:
        return Projected(*(t.to(self.A_log.dtype) for t in projected))
