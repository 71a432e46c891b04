"""Products and sums of matrices that lie in the cache.

numba calls SciPy's BLAS, which `launch` keeps to one thread: the kernels have threads of their own. What assigns to a
slice is written as a loop: numba takes a tenth of a second to compile an assignment, and for one array to another's
slice more than a second.
"""

from __future__ import annotations

import numpy as np

from .jit import kernel, loop

ROWS = 256  # of a block, for products with a weight: fewer, and BLAS is slower; more, and they leave the cache
STRIPES, NARROWEST = 16, 32  # of rows with a weight's gradient of their own, at most; rows of one, at least


def stripes(rows: int) -> int:
    """In how many parts rows are cut, each with its own sum for the gradient of a weight."""
    return max(1, min(STRIPES, rows // NARROWEST))


@kernel
def multiply(a, b, out):
    """out = a b; a or b may be transposed. A function of its own, so that numba compiles a product once for all."""
    np.dot(a, b, out)


@kernel
def add_multiply(a, b, out):
    """out += a b."""
    product = np.empty(out.shape, out.dtype)
    multiply(a, b, product)
    add(product, out)


@loop
def add(a, out):
    """out += a."""
    for i in range(len(out)):
        for k in range(out.shape[1]):
            out[i, k] += a[i, k]


@loop
def clear(out, first=0):
    """Rows from `first` on become 0."""
    for i in range(first, len(out)):
        for k in range(out.shape[1]):
            out[i, k] = 0


@loop
def copy(a, out):
    """out = a."""
    for i in range(len(out)):
        for k in range(out.shape[1]):
            out[i, k] = a[i, k]
