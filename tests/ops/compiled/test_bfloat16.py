import numpy as np
import pytest
import torch
from numba import njit

from recbole_ssd.ops.compiled import bfloat16
from recbole_ssd.ops.compiled.matrices import add_multiply, multiply
from recbole_ssd.ops.compiled.registers import HAS_BFLOAT16

SIZES = [(1, 1), (2, 2), (3, 17), (33, 20), (130, 147)]


@njit
def sides(x, like):
    return bfloat16.left_side(x, like), bfloat16.right_side(x, like)


@njit
def rows(side, first, last):
    return bfloat16.some_rows(side, first, last)


@njit
def multiplied(a, b, out, total):
    multiply(a, b, out)
    add_multiply(a, b, total)


def numbers(*shape):
    """Of many magnitudes, some half way between two of bfloat16, some none."""
    draw = torch.Generator().manual_seed(shape[0])
    x = torch.randn(*shape, generator=draw) * 10 ** torch.randn(shape[1], generator=draw)
    x[0, 0] = 1 + 2**-8
    x[-1, -1] = 1 + 3 * 2**-8
    return x


@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_pairs_are_torchs_bfloat16(shape):
    x = numbers(*shape)
    rounded = x.bfloat16()
    left, right = bfloat16.rows_in_pairs(x), bfloat16.columns_in_pairs(x)
    assert left.shape == (shape[0], -(-shape[1] // 2)) and right.shape == (-(-shape[0] // 2), shape[1])
    halves = left.view(torch.bfloat16)
    assert torch.equal(halves[:, : shape[1]], rounded) and not halves[:, shape[1] :].any()
    halves = right.view(torch.bfloat16).unflatten(1, (-1, 2)).transpose(1, 2).flatten(0, 1)
    assert torch.equal(halves[: shape[0]], rounded) and not halves[shape[0] :].any()


@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_kernels_make_the_same_pairs(shape):
    x = numbers(*shape)
    left, right = sides(x.numpy(), np.empty((1, 1), np.int32))
    assert (left == bfloat16.rows_in_pairs(x).numpy()).all()
    assert (right == bfloat16.columns_in_pairs(x).numpy()).all()


def test_where_nothing_is_in_pairs_a_side_is_the_matrix_itself():
    x = numbers(5, 3).numpy()
    assert all(np.shares_memory(side, x) and (side == x).all() for side in sides(x, x))
    assert (rows(x, 2, 5) == x[2:5]).all()


def test_infinity_and_nan_survive():
    x = np.array([[np.inf, -np.inf, np.nan, 0.0]], np.float32)
    left, _ = sides(x, np.empty((1, 1), np.int32))
    halves = torch.from_numpy(left).view(torch.bfloat16)
    assert halves[0, :2].tolist() == [np.inf, -np.inf] and halves[0, 2].isnan() and halves[0, 3] == 0


@pytest.mark.skipif(not HAS_BFLOAT16, reason="this CPU has no AVX512_BF16")
@pytest.mark.parametrize("size", [(1, 1, 1), (9, 7, 33), (130, 64, 147), (32, 63, 50)], ids=str)
def test_a_product_of_pairs_is_that_of_the_rounded_matrices(size):
    m, k, n = size
    a, b = numbers(m, k), numbers(k, n)
    out, total = np.full((m, n), np.nan, np.float32), np.ones((m, n), np.float32)
    multiplied(bfloat16.rows_in_pairs(a).numpy(), bfloat16.columns_in_pairs(b).numpy(), out, total)
    a, b = a.bfloat16().double().numpy(), b.bfloat16().double().numpy()
    room = (k + 2) * 2.0**-23 * (np.abs(a) @ np.abs(b) + 1)
    assert (np.abs(out - a @ b) <= room).all() and (np.abs(total - 1 - a @ b) <= room).all()
    turned = bfloat16.columns_in_pairs(torch.from_numpy(a.T.copy())).numpy().T
    multiplied(turned, bfloat16.columns_in_pairs(torch.from_numpy(b)).numpy(), out, total)
    assert (np.abs(out - a @ b) <= room).all()


def test_rows_of_a_right_side():
    side = np.arange(12, dtype=np.int32).reshape(4, 3)  # of seven rows
    assert (rows(side, 2, 7) == side[1:]).all() and (rows(side, 0, 4) == side[:2]).all()
