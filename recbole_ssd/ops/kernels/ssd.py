"""SSD over a packed stream in Triton: the launches, forward and backward, and their place in autograd.

    short segments    outputs_kernel                                                  1 launch forward
                      gradients_kernel, a sum over tiles                              2 backward
    long segments     chunk_states_kernel, pass_states_kernel, outputs_kernel         3 more forward, and the like back

Inputs in float32 or bfloat16; decays and states are float32 in both. Kept for the backward: the inputs, and the states
between the chunks of long segments, n / 64 numbers for each of x. Everything else is computed again. No sum depends on
which program is first, so gradients are the same at every run.

Dao and Gu, "Transformers are SSMs", ICML 2024, https://arxiv.org/abs/2405.21060, section 6.

Shape letters:    T tokens    h heads    p head size    g groups    n state size    k tiles    s parts of a group
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from recbole_ssd.ops.packing import Segments

from .ssd_backward import gradients_kernel
from .ssd_forward import outputs_kernel
from .ssd_plan import ROWS, launch_plan
from .ssd_states import chunk_states_kernel, pass_states_kernel

BUSY = {"forward": 4096, "backward": 1024}  # programs that fill a large GPU several times over
PASSED = 1024  # numbers of a state that one program hands from chunk to chunk


def ssd_triton(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    segments: Segments,
    chunk_size: int | None = None,
    precision: str = "ieee",
) -> Tensor:
    """The scan over a stream, differentiable in its tensors.

    Args:
        x: (T, h, p), float32 or bfloat16.  dt: (T, h), float32.  A: (h,), float32.
        B, C: (T, g, n), in the dtype of x.  D: (h,) or (h, p), float32, or None.
        segments: the borders at which the state starts again from zero.
        chunk_size: tokens of a chunk, taken as the next of 16, 32 and 64; None for 64.
        precision: of float32 products: `ieee`, or `tf32x3`, which has tensor cores do three tf32 products instead.

    Returns:
        y, (T, h, p), in the dtype of x.
    """
    rows = next((rows for rows in ROWS if rows >= (chunk_size or ROWS[-1])), ROWS[-1])
    return _SSD.apply(x, dt, A, B, C, D, segments, rows, precision)


class _SSD(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dt, A, B, C, D, segments, rows, precision):
        launches = _Launches(x, dt, A, B, C, D, segments, rows, precision)
        y, states, decays = launches.forward()
        ctx.save_for_backward(x, dt, A, B, C, D, states, decays)
        ctx.settings = segments, rows, precision
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        *inputs, states, decays = ctx.saved_tensors
        return *_Launches(*inputs, *ctx.settings).backward(dy, states, decays), None, None, None


class _Launches:
    """The launches over one stream: what its kernels are given, and how many programs of which size they are."""

    def __init__(self, x, dt, A, B, C, D, segments, rows, precision):
        self.x, self.B, self.C = (_rows_apart(t) for t in (x, B, C))
        self.dt, self.A, self.D = dt.contiguous(), A.contiguous(), None if D is None else D.contiguous()
        self.plan = launch_plan(segments, rows)
        self.h, self.p = x.shape[1:]
        self.g, self.n = B.shape[1:]
        self.skip = 0 if D is None else D.numel() // self.h  # numbers of D a head has
        self.sizes = {"Q": rows, "P": _padded(self.p), "N": _padded(self.n), "PRECISION": precision}
        self.warps = {"num_warps": warps(self.sizes, x.dtype)}

    def forward(self) -> tuple[Tensor, Tensor, Tensor]:
        """y, and for long segments the states that enter their chunks (k, h, n, p) and the chunks' decays (k, h)."""
        y, here = self.x.new_empty(self.x.shape), self._heads_here("forward")
        decays = self.dt.new_empty(len(self.plan.chunks), self.h)
        with torch.cuda.device_of(self.x):
            states = self._states(self.B, self.x, decays, backward=False)
            for tiles, where, options in self._tables():
                outputs_kernel[len(tiles) * self.h // here,](
                    *(self.x, self.dt, self.A, self.B, self.C, self.D, y, states, tiles, self.plan.begins),
                    *(self.x.stride(0), self.B.stride(0), self.C.stride(0)),
                    *(self.h, self.h // self.g, here, self.p, self.n),
                    **options,
                )
        return y, states, decays

    def backward(self, dy: Tensor, states: Tensor, decays: Tensor) -> tuple[Tensor | None, ...]:
        """dx, ddt, dA, dB, dC, dD."""
        dy, here = dy.contiguous(), self._heads_here("backward")
        parts = self.h // self.g // here
        dx, ddt = self.x.new_empty(self.x.shape), torch.empty_like(self.dt)
        dB, dC = (
            t.new_empty(parts, *t.shape, dtype=t.dtype if parts == 1 else torch.float32) for t in (self.B, self.C)
        )
        shares = self.dt.new_empty(len(self.plan.tiles) + len(self.plan.chunks), self.h, 1 + self.skip)
        with torch.cuda.device_of(self.x):
            dstates = self._states(self.C, dy, decays, backward=True)
            for tiles, where, options in self._tables():
                gradients_kernel[len(tiles) * self.h // here,](
                    *(self.x, self.dt, self.A, self.B, self.C, self.D, dy, dx, ddt, dB, dC, shares[where]),
                    *(states, dstates, tiles, self.plan.begins),
                    *(self.x.stride(0), self.B.stride(0), self.C.stride(0)),
                    *(len(self.x), self.h, self.h // self.g, here, self.p, self.n),
                    **options,
                )
        dB, dC = (t[0] if parts == 1 else t.sum(0).to(self.B.dtype) for t in (dB, dC))
        dA, dD = shares.sum(0).split([1, self.skip], dim=1)
        return dx, ddt, dA[:, 0], dB, dC, None if self.D is None else dD.reshape(self.D.shape)

    def _states(self, left: Tensor, right: Tensor, decays: Tensor, backward: bool) -> Tensor:
        """What enters every chunk, or with `backward` the gradient of what leaves it, (k, h, n, p)."""
        chunks, here = len(self.plan.chunks), self._heads_here("forward")
        states = self.dt.new_empty(chunks, self.h, self.n, self.p)
        if chunks:
            chunk_states_kernel[chunks * self.h // here,](
                *(left, right, self.dt, self.A, states, decays, self.plan.chunks, left.stride(0), right.stride(0)),
                *(self.h, self.h // self.g, here, self.p, self.n),
                **(self.sizes | self.warps | {"BACKWARD": backward}),
            )
            size = self.n * self.p
            pass_states_kernel[len(self.plan.runs) * self.h, triton.cdiv(size, PASSED)](
                states, decays, self.plan.runs, self.h, size, WIDE=PASSED, BACKWARD=backward
            )
        return states

    def _tables(self):
        """(table, its rows among all tiles, options of a kernel over it): whole segments, and chunks of long ones."""
        short, long = len(self.plan.tiles), len(self.plan.chunks)
        options = self.sizes | self.warps | {"SKIP": self.skip}
        if short:
            yield self.plan.tiles, slice(0, short), options | {"CHAINED": False}
        if long:
            yield self.plan.chunks, slice(short, None), options | {"CHAINED": True}

    def _heads_here(self, direction: str) -> int:
        """Heads that one program takes: all of a group, which shares B and C, unless the GPU would stand idle."""
        heads = self.h // self.g
        tiles = (len(self.plan.tiles) + len(self.plan.chunks)) * self.g
        return next(n for n in range(heads, 0, -1) if heads % n == 0 and (n == 1 or tiles * heads // n >= BUSY[direction]))


def warps(sizes: dict, dtype: torch.dtype) -> int:
    """Warps of a program, so many that nothing spills (tests/ops/kernels/test_ssd_compiles.py)."""
    return 8 if dtype == torch.float32 or max(sizes["P"], sizes["N"]) > 64 else 4


def _padded(size: int) -> int:
    """The width of a tile that holds `size` numbers: a power of two, and 16 for tl.dot."""
    return max(16, triton.next_power_of_2(size))


def _rows_apart(t: Tensor) -> Tensor:
    """`t` (T, a, b) if only its tokens may lie apart, as in a slice of xBC; else a copy."""
    return t if t.stride()[1:] == (t.shape[2], 1) else t.contiguous()
