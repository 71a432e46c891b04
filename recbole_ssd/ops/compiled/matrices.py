"""Products and sums of matrices that lie in the cache.

The products are ours: as fast as BLAS on squares of 32 and a fifth faster on blocks of 128 x 512, they are added to
what is there without a pass of their own, and nobody's threads have to be held back. What assigns to a slice is written
as a loop: numba takes a tenth of a second to compile an assignment, and for one array to another's slice more than a
second.
"""

from __future__ import annotations

from .jit import bare, loop
from .registers import BYTES, VECTORS, product_tile, transpose_square
from .registers import ROWS as TILE_ROWS

ROWS = 256  # of a block, for products with a weight: fewer cost more to sum up, more leave the cache
STRIPES, NARROWEST = 16, 32  # of rows with a weight's gradient of their own, at most; rows of one, at least

_wide, _narrow, _thin = product_tile(TILE_ROWS, VECTORS), product_tile(TILE_ROWS, 1), product_tile(TILE_ROWS, 1, False)
_wide_row, _narrow_row, _thin_row = product_tile(1, VECTORS), product_tile(1, 1), product_tile(1, 1, False)


def stripes(rows: int) -> int:
    """In how many parts rows are cut, each with its own sum for the gradient of a weight."""
    return max(1, min(STRIPES, rows // NARROWEST))


@bare
def multiply(a, b, out):
    """out = a b; a may be transposed, the rows of b and out lie in one piece."""
    product(a, b, out, False)


@bare
def add_multiply(a, b, out):
    """out += a b."""
    product(a, b, out, True)


@bare
def product(a, b, out, add):
    """out = a b, or `add`: out += a b. A panel of b's columns stays in the nearest cache while the rows of a go by."""
    (m, n), lanes = out.shape, BYTES // out.itemsize
    full = m - m % TILE_ROWS
    j = 0
    while j < n:
        if n - j >= VECTORS * lanes:
            for i in range(0, full, TILE_ROWS):
                _wide(a, i, b, j, out, add)
            for i in range(full, m):
                _wide_row(a, i, b, j, out, add)
            j += VECTORS * lanes
        elif n - j >= lanes:
            for i in range(0, full, TILE_ROWS):
                _narrow(a, i, b, j, out, add)
            for i in range(full, m):
                _narrow_row(a, i, b, j, out, add)
            j += lanes
        else:
            for i in range(0, full, TILE_ROWS):
                _thin(a, i, b, j, out, add)
            for i in range(full, m):
                _thin_row(a, i, b, j, out, add)
            j += 1


@bare
def transpose(a, out):
    """out = a^T."""
    (m, n), lanes = a.shape, BYTES // a.itemsize
    rows, columns = m - m % lanes, n - n % lanes
    for i in range(0, rows, lanes):
        for j in range(0, columns, lanes):
            transpose_square(a, i, j, out)
    for i in range(m):
        for j in range(columns if i < rows else 0, n):
            out[j, i] = a[i, j]


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
