"""Mamba's block (Mamba-1) on packed streams, with the parameter names and shapes of mamba-ssm's `Mamba`.

    x, z = in_proj(u);   x = silu(conv(x));   dt, B, C = x_proj(x);   dt = softplus(dt_proj(dt))
    out = out_proj( selective_scan(x, dt, -exp(A_log), B, C, D) * silu(z) )

Gu and Dao, "Mamba", https://arxiv.org/abs/2312.00752, figure 3 and section 3.6 (initialization).

Shape letters:    b batch    l length    d model size    i inner size (expand * d)    n state size    r rank of dt
                  T tokens of a stream
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_ssd.ops.causal_conv1d import causal_conv1d
from recbole_ssd.ops.packing import Segments
from recbole_ssd.ops.selective_scan import selective_scan

from .initialization import inverse_softplus_of_dt
from .linear import project, split_linear

DT_INITS = ("paper", "authors")


class Mamba(nn.Module):
    """The block: in_proj, convolution, selective scan, gate, out_proj.

    Args:
        d_model: d.
        d_state: n.
        d_conv: width of the convolution, >= 1.
        expand: i / d.
        dt_init: `paper`: dt starts between .001 and .1, and stays so whatever initializes the model around it.
            `authors`: dt_proj is initialized like any other linear layer of that model, as the code of published
            recommenders does; with its bias at zero, dt starts near softplus(0) = .69.
        backend: of `ops.selective_scan.selective_scan`.
        conv_backend: of `ops.causal_conv1d.causal_conv1d`.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_init: str = "paper",
        backend: str = "auto",
        conv_backend: str = "auto",
    ):
        super().__init__()
        if dt_init not in DT_INITS:
            raise ValueError(f"dt_init must be one of {', '.join(DT_INITS)}, got '{dt_init}'")
        inner, rank = expand * d_model, math.ceil(d_model / 16)
        self.d_state, self.backend, self.conv_backend = d_state, backend, conv_backend
        self.in_proj = nn.Linear(d_model, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, d_conv, groups=inner, padding=d_conv - 1)  # holds the filter
        self.x_proj = nn.Linear(inner, rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.dt_proj.keeps_its_init = dt_init == "paper"
        with torch.no_grad():
            self.dt_proj.weight.uniform_(-(rank**-0.5), rank**-0.5)
            self.dt_proj.bias.copy_(inverse_softplus_of_dt(inner))
        self.A_log = nn.Parameter(torch.arange(1, d_state + 1).float().log().repeat(inner, 1))  # S4D-Real
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, d_model, bias=False)

    def forward(self, u: Tensor, cu_seqlens: Tensor | Segments | None = None) -> Tensor:
        """(b, l, d) -> (b, l, d); with `cu_seqlens` a stream (T, d) or (1, T, d), every segment for itself."""
        segments = Segments.of_rows(u, cu_seqlens)
        x, z = split_linear(self.in_proj, u.flatten(0, -2), 2 * self.D.shape)  # (T, i)
        x, z = x.to(self.D.dtype), z.to(self.D.dtype)  # under autocast in_proj is bfloat16; decays and states are not
        weight, bias = self.conv1d.weight[:, 0], self.conv1d.bias
        x = causal_conv1d(x[None], weight, bias, cu_seqlens=segments, backend=self.conv_backend)
        (out,) = project(self._scan(x, segments) * F.silu(z), self.out_proj)
        return out.view(u.shape)

    def _scan(self, x: Tensor, segments: Segments) -> Tensor:
        """(1, T, i) -> (T, i)."""
        sizes = self.dt_proj.in_features, self.d_state, self.d_state
        dt, B, C = (part.to(self.D.dtype) for part in split_linear(self.x_proj, x, sizes))
        with torch.autocast(x.device.type, enabled=False):
            dt = F.softplus(*project(dt, self.dt_proj))
            y = selective_scan(x, dt, -self.A_log.exp(), B, C, self.D, cu_seqlens=segments, backend=self.backend)
            return y.squeeze(0)
