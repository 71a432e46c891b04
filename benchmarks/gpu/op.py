"""What an op is to `parity` and `speed`: random inputs, a call, and the least that it must move and compute."""

from __future__ import annotations

from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from recbole_ssd.ops.packing import Segments

REFUSALS = (RuntimeError, ValueError)  # how a backend says that it cannot, the memory that is full included
if find_spec("triton"):
    from triton.errors import TritonError  # and how a kernel says that it cannot be compiled for this device

    REFUSALS += (TritonError,)


class Work(NamedTuple):
    """The least of a pass: bytes if every input is read once and every output written once, and operations."""

    bytes: int
    flop: int


class Draw:
    """Random float32 inputs, with the start values of Mamba's dt and A."""

    def __init__(self, device: torch.device, seed: int):
        self.device, self.generator = device, torch.Generator(device).manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device, generator=self.generator)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, device=self.device, generator=self.generator)

    def steps(self, *shape: int, most: float = 0.1) -> Tensor:
        return self.uniform(-6.9, torch.tensor(most).log().item(), *shape).exp()

    def numbers(self, below: int, *shape: int) -> Tensor:
        return torch.randint(below, shape, device=self.device, generator=self.generator)


class Op:
    """What is common to the ops; a subclass gives `draw`, `call` and `work`."""

    narrow: tuple[str, ...] = ()  # inputs that take the measured dtype, which is that of the output too
    per_token: tuple[str, ...] = ()  # inputs with a row for every token
    definition = "torch"  # the backend that is the truth, in float64, on streams that a slow one can take
    peers: tuple[tuple[str, dict], ...] = (("torch", {}),)  # backends and options that ours is compared with
    sees: str | None = "past"  # what a token's output may depend on beside the token: past, future, or None
    products = False  # whether `work` counts matrix products, which have a floor of their own
    dtypes: tuple[str, ...] = ("float32", "bfloat16")  # that its kernels take on a GPU
    timed = True

    def run(self, inputs: dict, segments: Segments, backend: str, dtype: torch.dtype, **options) -> Tensor:
        """`call`; the plain forms compute in float32 at least, and what they give is rounded to the dtype."""
        if backend in ("torch", "reference") and self.narrow:
            inputs = {name: t.float() if t.dtype == torch.bfloat16 else t for name, t in inputs.items()}
            return self.call(inputs, segments, backend, dtype, **options).to(dtype)
        return self.call(inputs, segments, backend, dtype, **options)
