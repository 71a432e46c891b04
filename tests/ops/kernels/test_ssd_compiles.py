"""What SSD's kernels occupy on GPUs that are not here: an A100 (8.0) and an H100 or H200 (9.0)."""

import pytest
import torch

from recbole_ssd.ops.kernels import ssd

from .compiler import SHARED_LIMIT, usages

MODULES = {
    "outputs_kernel": "ssd_forward",
    "gradients_kernel": "ssd_backward",
    "chunk_states_kernel": "ssd_states",
    "pass_states_kernel": "ssd_states",
    "from_entering_kernel": "ssd_states_backward",
    "from_leaving_kernel": "ssd_states_backward",
}
FLOAT32 = ("dt", "A", "D", "ddt", "shares", "steps", "states", "dstates", "decays")
INT32 = ("tiles", "chunks", "runs")
INNER = 512  # h * p, as hidden_size 256 gives

# (dtype, headdim, d_state): SSD4Rec's authors', Mamba-2's, and both in float32.
SIZES = [("bfloat16", 16, 64), ("bfloat16", 64, 128), ("float32", 16, 64), ("float32", 64, 64)]
KERNELS = [
    ("outputs_kernel", {"CHAINED": False}),
    ("outputs_kernel", {"CHAINED": True}),
    ("gradients_kernel", {}),
    ("chunk_states_kernel", {"BACKWARD": False}),
    ("chunk_states_kernel", {"BACKWARD": True}),
    ("pass_states_kernel", {"BACKWARD": True}),
    ("from_entering_kernel", {}),
    ("from_leaving_kernel", {}),
]


def case(kernel, flags, dtype, p, n):
    """As `ssd` launches it for one group, with x, B and C in slices of one tensor."""
    number = getattr(torch, dtype)
    constexprs = {
        **{name: INNER + 2 * n for name in ("x_stride", "B_stride", "C_stride", "left_stride", "right_stride")},
        **{"heads": INNER // p, "heads_per_group": INNER // p, "p": p, "n": n, "size": p * n, "WIDE": ssd.PASSED},
        **{"Q": ssd.TILE[number], "W": min(p, ssd.WIDEST), "N": n, "SKIP": 1, "PRECISION": "ieee"},
        **flags,
    }
    types = {name: "*fp32" for name in FLOAT32} | {name: "*i32" for name in INT32}
    types |= {"begins": "*u8", "heads_here": "i32", "total": "i32"}
    data = "*bf16" if dtype == "bfloat16" else "*fp32"
    names = getattr(__import__(f"recbole_ssd.ops.kernels.{MODULES[kernel]}", fromlist=[kernel]), kernel).arg_names
    return {
        "module": f"recbole_ssd.ops.kernels.{MODULES[kernel]}",
        "kernel": kernel,
        "arguments": {name: constexprs.get(name, types.get(name, data)) for name in names},
        "num_warps": ssd.WARPS[number],
        "num_stages": 1,
    }


# Bytes of stack, the most of Triton 3.7 to 3.9: a few numbers that the loops seldom need are parked.
PARKED = {("bfloat16", 90): 16, ("bfloat16", 80): 256, ("float32", 90): 16, ("float32", 80): 24}


@pytest.mark.parametrize(("dtype", "p", "n"), SIZES)
def test_registers_and_shared_memory_suffice(dtype, p, n):
    for usage in usages([case(kernel, flags, dtype, p, n) for kernel, flags in KERNELS]):
        print(dtype, p, n, *usage)  # shown by pytest -s
        assert usage.stack <= PARKED[dtype, usage.capability], usage
        assert usage.shared <= SHARED_LIMIT[usage.capability] // 2, f"two programs at a time want {usage}"


def test_four_programs_of_the_authors_forward_fit_on_a_hopper():
    usage = usages([case("outputs_kernel", {"CHAINED": False}, "bfloat16", 16, 64)])[1]
    assert usage.capability == 90
    assert usage.registers <= 128
    assert 4 * usage.shared <= SHARED_LIMIT[90]
