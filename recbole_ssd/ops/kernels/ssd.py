"""SSD over a packed stream in Triton: the launches, forward and backward, and their place in autograd.

    forward     outputs_kernel                                   for long segments before it: chunk_states_kernel and
                                                                 pass_states_kernel, and outputs_kernel a second time
    backward    gradients_kernel, a sum over tiles               and after it the first two from back to front,
                                                                 from_entering_kernel and from_leaving_kernel

Inputs in float32 or bfloat16; decays and states are float32 in both. Kept for the backward: the inputs, three numbers
for each token and head, and the states between the chunks of long segments. Everything else is computed again. No sum
depends on which program comes first, so gradients are the same at every run.

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
from .ssd_states_backward import from_entering_kernel, from_leaving_kernel

BUSY = {"forward": 4096, "backward": 1024}  # programs that fill a large GPU several times over
PASSED = 1024  # numbers of a state that one program hands from chunk to chunk
# What spills is seen without a GPU (tests/ops/kernels/test_ssd_compiles.py). In float32 no tensor core helps, and half
# the tile in twice the warps is what fits.
TILE = {torch.bfloat16: 64, torch.float32: 32}  # tokens of a tile
WARPS = {torch.bfloat16: 4, torch.float32: 8}  # of a program
WIDEST = 32  # channels of a head that are in registers at a time
PRODUCTS = "ieee"  # of float32 operands; tf32x3 would use tensor cores, which nobody has timed


def ssd_triton(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    segments: Segments,
    chunk_size: int | None = None,
) -> Tensor:
    """The scan over a stream, differentiable in its tensors.

    Args:
        x: (T, h, p), float32 or bfloat16.  dt: (T, h), float32.  A: (h,), float32.
        B, C: (T, g, n), in the dtype of x.  D: (h,) or (h, p), float32, or None.
        segments: the borders at which the state starts again from zero.
        chunk_size: tokens of a chunk, rounded up to 16, 32 or 64, which is the most; None for 64 in bfloat16 and 32 in
            float32.

    Returns:
        y, (T, h, p), in the dtype of x.
    """
    size = chunk_size or TILE[x.dtype]
    rows = next((rows for rows in ROWS if rows >= size), ROWS[-1])
    return _SSD.apply(x, dt, A, B, C, D, segments, rows)


class _SSD(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dt, A, B, C, D, segments, rows):
        y, *kept = _Launches(x, dt, A, B, C, D, segments, rows).forward()
        ctx.save_for_backward(x, dt, A, B, C, D, *kept)
        ctx.settings = segments, rows
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        inputs, kept = ctx.saved_tensors[:6], ctx.saved_tensors[6:]
        return *_Launches(*inputs, *ctx.settings).backward(dy, *kept), None, None


class _Launches:
    """The launches over one stream: what its kernels are given, and how many programs of which size they are."""

    def __init__(self, x, dt, A, B, C, D, segments, rows):
        self.x, self.B, self.C = (_rows_apart(t) for t in (x, B, C))
        self.dt, self.A, self.D = dt.contiguous(), A.contiguous(), None if D is None else D.contiguous()
        self.plan = launch_plan(segments, rows)
        self.h, self.p = x.shape[1:]
        self.g, self.n = B.shape[1:]
        self.skip = 0 if D is None else D.numel() // self.h  # numbers of D a head has
        sizes = {"heads": self.h, "heads_per_group": self.h // self.g, "p": self.p, "n": self.n}
        tiles = {"Q": rows, "W": min(_padded(self.p), WIDEST), "N": _padded(self.n), "PRECISION": PRODUCTS}
        self.options = sizes | tiles | {"num_warps": WARPS[x.dtype], "num_stages": 1}
        self.strides = {f"{name}_stride": t.stride(0) for name, t in (("x", self.x), ("B", self.B), ("C", self.C))}

    def forward(self) -> tuple[Tensor, ...]:
        """y, and for the backward `steps`, (k, h, 3, q), and of long segments `states`, `decays`; see the kernels."""
        plan, here = self.plan, self._heads_here("forward")
        y, decays = self.x.new_empty(self.x.shape), self.dt.new_empty(len(plan.chunks), self.h)
        steps = self.dt.new_empty(len(plan.tiles), self.h, 3, self.options["Q"])
        with torch.cuda.device_of(self.x):
            states = self._states(self.B, self.x, decays, backward=False)
            for where, chained in ((slice(0, plan.short), False), (slice(plan.short, None), True)):
                if programs := len(plan.tiles[where]) * self.h // here:
                    outputs_kernel[programs,](
                        *(self.x, self.dt, self.A, self.B, self.C, self.D, y, steps[where], states),
                        *(plan.tiles[where], plan.begins, here),
                        **(self.options | self.strides | {"SKIP": self.skip, "CHAINED": chained}),
                    )
        return y, steps, states, decays

    def backward(self, dy: Tensor, steps: Tensor, states: Tensor, decays: Tensor) -> tuple[Tensor | None, ...]:
        """dx, ddt, dA, dB, dC, dD."""
        dy, plan, here = dy.contiguous(), self.plan, self._heads_here("backward")
        parts, chunks = self.h // self.g // here, len(plan.chunks)
        partial = self.B.dtype if parts == 1 else torch.float32
        dx, ddt = self.x.new_empty(self.x.shape), torch.empty_like(self.dt)
        dB, dC = (t.new_empty(parts, *t.shape, dtype=partial) for t in (self.B, self.C))
        shares = (self.dt.new_zeros if chunks else self.dt.new_empty)(
            len(plan.tiles) + 2 * chunks, self.h, 1 + self.skip
        )
        with torch.cuda.device_of(self.x):
            gradients_kernel[len(plan.tiles) * self.h // here,](
                *(self.x, self.A, self.B, self.C, self.D, steps, dy, dx, ddt, dB, dC, shares),
                *(plan.tiles, plan.begins, len(dx), here),
                **(self.options | self.strides | {"SKIP": self.skip}),
            )
            if chunks:
                late = dx, ddt, dB, dC, shares[len(plan.tiles) :]
                self._backward_states(dy, steps[plan.short :], states, decays, here, late)
        dB, dC = (t[0] if parts == 1 else t.sum(0).to(self.B.dtype) for t in (dB, dC))
        dA, dD = shares.sum(0).split([1, self.skip], dim=1)
        return dx, ddt, dA[:, 0], dB, dC, None if self.D is None else dD.reshape(self.D.shape)

    def _backward_states(self, dy, steps, states, decays, here, totals) -> None:
        """Adds what comes through states to the gradients of the chunks' tokens."""
        dx, ddt, dB, dC, shares = totals
        dstates, chunks = self._states(self.C, dy, decays, backward=True), self.plan.chunks
        strides, options = self.strides, self.options | {"SKIP": self.skip}
        from_entering_kernel[len(chunks) * self.h // here,](
            *(self.A, self.C, steps, dy, ddt, dC, shares, states, dstates, chunks, len(dx), here),
            **(options | {"C_stride": strides["C_stride"]}),
        )
        from_leaving_kernel[len(chunks) * self.h // here,](
            *(self.x, self.A, self.B, steps, dx, ddt, dB, shares[len(chunks) :], dstates, chunks, len(dx), here),
            **(options | {"x_stride": strides["x_stride"], "B_stride": strides["B_stride"]}),
        )

    def _states(self, left: Tensor, right: Tensor, decays: Tensor, backward: bool) -> Tensor:
        """What enters every chunk, or with `backward` the gradient of what leaves it, (k, h, n, p)."""
        chunks, here, size = len(self.plan.chunks), self._heads_here("forward"), self.n * self.p
        states = self.dt.new_empty(chunks, self.h, self.n, self.p)
        if chunks:
            chunk_states_kernel[chunks * self.h // here,](
                *(left, right, self.dt, self.A, states, decays, self.plan.chunks, here),
                **(self.options | {"left_stride": left.stride(0), "right_stride": right.stride(0)}),
                BACKWARD=backward,
            )
            pass_states_kernel[len(self.plan.runs) * self.h, triton.cdiv(size, PASSED)](
                states, decays, self.plan.runs, self.h, size, WIDE=PASSED, BACKWARD=backward
            )
        return states

    def _heads_here(self, direction: str) -> int:
        """Heads that one program takes: all of a group, which shares B and C, unless the GPU would stand idle."""
        heads, tiles = self.h // self.g, len(self.plan.tiles) * self.g
        fitting = (n for n in range(heads, 0, -1) if heads % n == 0 and tiles * heads // n >= BUSY[direction])
        return next(fitting, 1)


def _padded(size: int) -> int:
    """The width of a tile that holds `size` numbers: a power of two, and 16 for tl.dot."""
    return max(16, triton.next_power_of_2(size))


def _rows_apart(t: Tensor) -> Tensor:
    """`t` (T, a, b) if only its tokens may lie apart, as in a slice of xBC; else a copy."""
    return t if t.stride()[1:] == (t.shape[2], 1) else t.contiguous()
