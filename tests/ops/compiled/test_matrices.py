import os
import platform
import subprocess
import sys

import numpy as np
import pytest
from numba import njit

from recbole_ssd.ops.compiled.matrices import add_multiply, multiply, transpose

SIZES = [
    (1, 1, 1),
    (8, 3, 32),
    (7, 64, 31),
    (9, 5, 33),
    (32, 64, 32),
    (33, 17, 50),
    (130, 64, 147),
    (9, 300, 33),
    (3, 0, 40),
]
ROUNDING = {np.float32: 2.0**-24, np.float64: 2.0**-53}


@njit
def multiplied(a, b, out):
    multiply(a, b, out)


@njit
def multiplied_and_added(a, b, out):
    add_multiply(a, b, out)


@njit
def transposed(a, out):
    transpose(a, out)


def operands(m, k, n, dtype):
    draw = np.random.default_rng(m + k + n)
    return (draw.standard_normal(shape).astype(dtype) for shape in ((m, k), (k, n), (m, n)))


def laid_out(a: np.ndarray, form: str) -> np.ndarray:
    """The same numbers: row by row, column by column, or as a piece of something larger."""
    if form == "columns":
        return np.asfortranarray(a)
    larger = np.full((len(a) + 2, a.shape[1] + 5), np.nan, a.dtype)
    larger[1:-1, 3:-2] = a
    return larger[1:-1, 3:-2] if form == "piece" else a


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("form", ["rows", "columns", "piece"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_product_is_right_to_the_rounding_of_its_sums(size, form, dtype):
    m, k, n = size
    a, b, before = operands(m, k, n, dtype)
    truth, allowed = a.astype(np.longdouble) @ b, (k + 1) * ROUNDING[dtype]
    room = allowed * (np.abs(a).astype(np.longdouble) @ np.abs(b) + np.abs(before))
    b = laid_out(b, "piece" if form == "piece" else "rows")
    out, total = np.full((m, n), np.nan, dtype), before.copy()
    multiplied(laid_out(a, form), b, out)
    multiplied_and_added(laid_out(a, form), b, total)
    assert (np.abs(out - truth) <= room).all() and (np.abs(total - truth - before) <= room).all()


def test_a_product_fills_its_place_and_nothing_else():
    a, b, before = operands(9, 5, 33, np.float32)
    place = laid_out(before, "piece")
    multiplied(a, b, place)
    rest = np.isnan(place.base)
    assert rest.sum() == place.base.size - before.size and np.abs(place - a @ b).max() < 1e-5


def test_rows_and_columns_of_a_product_do_not_depend_on_the_others():
    a, b, _ = operands(130, 64, 147, np.float32)
    whole, part = np.empty((130, 147), np.float32), np.empty((3, 5), np.float32)
    multiplied(a, b, whole)
    multiplied(a[126:129], np.ascontiguousarray(b[:, 60:65]), part)
    assert (whole[126:129, 60:65] == part).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [(1, 1), (16, 16), (32, 64), (17, 40), (50, 3)], ids=str)
def test_transpose(size, dtype):
    a = np.arange(size[0] * size[1], dtype=dtype).reshape(size)
    out = np.full((size[1], size[0] + 3), np.nan, dtype)
    transposed(a, out)
    assert (out[:, : size[0]] == a.T).all() and np.isnan(out[:, size[0] :]).all()


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="it names a CPU of this kind")
@pytest.mark.parametrize("features", ["+avx,+avx2,+fma", ""], ids=["avx2", "neither"])
def test_products_on_a_cpu_with_shorter_registers(features, tmp_path):
    script = (
        "import numpy as np\n"
        "from numba import njit\n"
        "from recbole_ssd.ops.compiled import matrices, registers\n"
        "@njit\n"
        "def run(a, b, out, turned): matrices.multiply(a, b, out); matrices.transpose(a, turned)\n"
        "a, b = np.random.rand(33, 20), np.random.rand(20, 50)\n"
        "out, turned = np.empty((33, 50)), np.empty((20, 33))\n"
        "run(a, b, out, turned)\n"
        "print(registers.ROWS, np.abs(out - a @ b).max() < 1e-13, (turned == a.T).all())\n"
    )
    cpu = {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": features, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | cpu)
    assert done.stdout == "6 True True\n", done.stderr
