"""The table of ops, over which both `parity` and `speed` run: a new op is a class here and an entry in `table`.

All inputs are token first; those in `narrow` take the dtype that is measured, the others are float32.

Shape letters:    T tokens    i inner size    h heads    p head size    g groups    n state size    c channels
                  K width of the filter    N = T targets    d model size    V items
"""

from __future__ import annotations

import torch
from torch import Tensor

from recbole_ssd.ops.causal_conv1d import causal_conv1d
from recbole_ssd.ops.cross_entropy import linear_cross_entropy
from recbole_ssd.ops.gated_rms_norm import gated_rms_norm
from recbole_ssd.ops.packing import Segments
from recbole_ssd.ops.readout import prefix_readout
from recbole_ssd.ops.selective_scan import selective_scan
from recbole_ssd.ops.ssd import ssd

from .op import Draw, Op, Work


class SSD(Op):
    narrow, per_token, products = ("x", "B", "C"), ("x", "dt", "B", "C"), True
    definition = "reference"
    peers = (*(("mamba_ssm", {"chunk_size": size}) for size in (64, 128, 256)), ("torch", {}))

    def __init__(self, inner: int, headdim: int, state: int, groups: int = 1, steepest: float = 0.1):
        self.h, self.p, self.n, self.g = inner // headdim, headdim, state, groups
        self.steepest, self.timed = steepest, groups == 1 and steepest == 0.1

    def draw(self, tokens: int, draw: Draw) -> dict:
        return {
            "x": draw.normal(tokens, self.h, self.p),
            "dt": draw.steps(tokens, self.h, most=self.steepest),
            "A": draw.uniform(-16, -1, self.h),
            "B": draw.normal(tokens, self.g, self.n),
            "C": draw.normal(tokens, self.g, self.n),
            "D": draw.normal(self.h),
        }

    def call(self, inputs: dict, segments: Segments, backend: str, dtype: torch.dtype, **options) -> Tensor:
        x, dt, B, C = (inputs[name][None] for name in self.per_token)
        return ssd(x, dt, inputs["A"], B, C, inputs["D"], cu_seqlens=segments, backend=backend, **options)[0]

    def work(self, lengths: Tensor, size: int) -> tuple[Work, Work]:
        """Of each segment the cheaper form: n-wide states (4 i n a token) or its triangle of token pairs."""
        i, state, pairs = self.h * self.p, self.g * self.n, lengths * (lengths + 1) // 2
        flop = int(torch.minimum(4 * i * self.n * lengths, 2 * (i + state) * pairs).sum())
        forward = size * (2 * i + 2 * state) + 4 * self.h
        backward = size * (3 * i + 4 * state) + 8 * self.h
        return Work(forward * int(lengths.sum()), flop), Work(backward * int(lengths.sum()), 2 * flop)


class SelectiveScan(Op):
    narrow, per_token = ("x", "B", "C"), ("x", "dt", "B", "C")
    definition = "reference"
    peers = (("mamba_ssm", {}), ("torch", {}))

    def __init__(self, inner: int, state: int):
        self.i, self.n = inner, state

    def draw(self, tokens: int, draw: Draw) -> dict:
        A = -torch.arange(1.0, self.n + 1, device=draw.device).repeat(self.i, 1)
        tokens_of = {"x": draw.normal(tokens, self.i), "dt": draw.steps(tokens, self.i), "A": A}
        return tokens_of | {name: draw.normal(tokens, self.n) for name in "BC"} | {"D": draw.normal(self.i)}

    def call(self, inputs: dict, segments: Segments, backend: str, dtype: torch.dtype) -> Tensor:
        x, dt, B, C = (inputs[name][None] for name in self.per_token)
        return selective_scan(x, dt, inputs["A"], B, C, inputs["D"], cu_seqlens=segments, backend=backend)[0]

    def work(self, lengths: Tensor, size: int) -> tuple[Work, Work]:
        """9 operations for each number of the state, of which one is an exponential; twice that backward."""
        tokens, i, n = int(lengths.sum()), self.i, self.n
        forward, backward = size * (2 * i + 2 * n) + 4 * i, size * (3 * i + 4 * n) + 8 * i
        return Work(forward * tokens, 9 * i * n * tokens), Work(backward * tokens, 18 * i * n * tokens)


class CausalConv(Op):
    narrow, per_token = ("x",), ("x",)
    peers = (("causal_conv1d", {}), ("torch", {}))

    def __init__(self, channels: int, width: int = 4, reverse: bool = False):
        self.c, self.K, self.reverse, self.sees = channels, width, reverse, "future" if reverse else "past"

    def draw(self, tokens: int, draw: Draw) -> dict:
        weight = draw.uniform(-0.5, 0.5, self.c, self.K)
        return {"x": draw.normal(tokens, self.c), "weight": weight, "bias": draw.normal(self.c)}

    def call(self, inputs: dict, segments: Segments, backend: str, dtype: torch.dtype) -> Tensor:
        x, weight, bias = inputs["x"][None], inputs["weight"], inputs["bias"]
        return causal_conv1d(x, weight, bias, cu_seqlens=segments, reverse=self.reverse, backend=backend)[0]

    def work(self, lengths: Tensor, size: int) -> tuple[Work, Work]:
        numbers = int(lengths.sum()) * self.c
        return Work(2 * size * numbers, 2 * self.K * numbers), Work(3 * size * numbers, 6 * self.K * numbers)


class GatedRMSNorm(Op):
    narrow, per_token, sees = ("y", "z"), ("y", "z"), None

    def __init__(self, inner: int, groups: int = 1):
        self.i, self.groups = inner, groups

    def draw(self, tokens: int, draw: Draw) -> dict:
        return {"y": draw.normal(tokens, self.i), "z": draw.normal(tokens, self.i), "weight": draw.normal(self.i)}

    def call(self, inputs: dict, segments: Segments, backend: str, dtype: torch.dtype) -> Tensor:
        return gated_rms_norm(inputs["y"], inputs["z"], inputs["weight"], self.groups, 1e-5, backend=backend)

    def work(self, lengths: Tensor, size: int) -> tuple[Work, Work]:
        numbers = int(lengths.sum()) * self.i
        return Work(3 * size * numbers, 8 * numbers), Work(5 * size * numbers, 20 * numbers)


class PrefixReadout(Op):
    narrow, per_token = ("xBC",), ("xBC", "dt")

    def __init__(self, inner: int, headdim: int, state: int, width: int = 4, groups: int = 1):
        self.h, self.p, self.n, self.K, self.g = inner // headdim, headdim, state, width, groups
        self.c = inner + 2 * groups * state

    def draw(self, tokens: int, draw: Draw) -> dict:
        return {
            "xBC": draw.normal(tokens, self.c),
            "dt": draw.steps(tokens, self.h),
            "A": draw.uniform(-16, -1, self.h),
            "D": draw.normal(self.h),
            "weight": draw.uniform(-0.5, 0.5, self.c, self.K),
            "bias": draw.normal(self.c),
        }

    def call(self, inputs: dict, segments: Segments, backend: str, dtype: torch.dtype) -> Tensor:
        sizes = {"headdim": self.p, "ngroups": self.g, "cu_seqlens": segments}
        return prefix_readout(*inputs.values(), **sizes, backend=backend).flatten(1)

    def work(self, lengths: Tensor, size: int) -> tuple[Work, Work]:
        """C is read at a segment's first items only; each of K convolutions of x and B, and their product with C."""
        i, read, tokens = self.h * self.p, self.c - self.g * self.n, int(lengths.sum())
        forward, backward = size * (read + i) + 4 * self.h, size * (read + i + self.c) + 8 * self.h
        flop = tokens * self.K * (2 * read + 2 * self.g * self.n + 2 * i)
        return Work(forward * tokens, flop), Work(backward * tokens, 2 * flop)


class LinearCrossEntropy(Op):
    per_token, sees, products = ("hidden", "target"), None, True
    PRECISION = {torch.bfloat16: "bfloat16"}  # hidden and table stay float32, the products' operands are rounded

    def __init__(self, size: int, items: int, dtypes: tuple[str, ...] = Op.dtypes):
        self.d, self.V, self.dtypes = size, items, dtypes

    def draw(self, tokens: int, draw: Draw) -> dict:
        hidden, weight = draw.normal(tokens, self.d), 0.1 * draw.normal(self.V, self.d)
        return {"hidden": hidden, "weight": weight, "target": draw.numbers(self.V, tokens)}

    def call(self, inputs: dict, segments: Segments, backend: str, dtype: torch.dtype) -> Tensor:
        on_gpu = backend == "torch" and inputs["hidden"].is_cuda  # the plain form has bfloat16 on a CPU only
        precision = "float32" if on_gpu else self.PRECISION.get(dtype, "float32")
        return linear_cross_entropy(*inputs.values(), precision=precision, backend=backend)

    def work(self, lengths: Tensor, size: int) -> tuple[Work, Work]:
        rows = int(lengths.sum())
        table, flop = 4 * self.V * self.d, 2 * rows * self.V * self.d
        return Work(4 * rows * self.d + table, flop), Work(8 * rows * self.d + 2 * table, 2 * flop)


def table(small: bool) -> dict[str, Op]:
    """Every op by name; `small` ones for Triton's interpreter."""
    i, n, V = (32, 16, 50) if small else (512, 64, 7112)
    wide = 16 if small else 64
    ops = {
        f"ssd, headdim {wide}": SSD(i, wide, n),
        "ssd, headdim 16": SSD(i, 16, n),
        "ssd, two groups": SSD(i, 16, n, groups=2),
        "ssd, steep": SSD(i, wide, n, steepest=8.0),
        "selective_scan": SelectiveScan(i, 16),
        "causal_conv1d": CausalConv(i + 2 * n),
        "causal_conv1d, reverse": CausalConv(i + 2 * n, reverse=True),
        "gated_rms_norm": GatedRMSNorm(i),
        f"prefix_readout, headdim {wide}": PrefixReadout(i, wide, n),
        "prefix_readout, headdim 16": PrefixReadout(i, 16, n),
        f"linear_cross_entropy, {wide} wide": LinearCrossEntropy(wide, V),
    }
    if not small:
        ops["linear_cross_entropy, 256 wide"] = LinearCrossEntropy(256, V, dtypes=("bfloat16",))
    return ops
