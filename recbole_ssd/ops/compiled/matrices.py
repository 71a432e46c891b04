"""Products and sums of matrices that lie in the cache.

The products are ours: as fast as BLAS on squares of 32 and a fifth faster on blocks of 128 x 512, they are added to
what is there without a pass of their own, and nobody's threads have to be held back. What assigns to a slice is written
as a loop: numba takes a tenth of a second to compile an assignment, and for one array to another's slice more than a
second.
"""

from __future__ import annotations

from .jit import bare, loop
from .registers import BYTES, VECTORS, lanes_of, product_tile, transpose_square
from .registers import ROWS as TILE_ROWS

ROWS = 288  # of a block, for products with a weight: fewer cost more to sum up, more leave the cache
DEPTH = 128  # of a product: longer sums round more
STRIPES, NARROWEST = 16, 32  # of rows with a weight's gradient of their own, at most; rows of one, at least


def _columns(vectors: int, size: int):
    """A kernel for as many columns as fill vectors of so many bytes, from j on; it gives the first that is left."""
    tile, row = product_tile(TILE_ROWS, vectors, size), product_tile(1, vectors, size)

    @bare
    def columns(a, b, j, out, add):
        (m, n), width = out.shape, vectors * lanes_of(out, size)
        full, panels = m - m % TILE_ROWS, (n - j) // width
        for panel in range(panels):
            for i in range(0, full, TILE_ROWS):
                tile(a, i, b, j + panel * width, out, add)
            for i in range(full, m):
                row(a, i, b, j + panel * width, out, add)
        return j + panels * width

    return columns


_wide, _narrow, _narrower, _single = (_columns(*form) for form in ((VECTORS, BYTES), (1, BYTES), (1, 16), (1, 1)))


def stripes(rows: int) -> int:
    """In how many parts rows are cut, each with its own sum for the gradient of a weight."""
    return max(1, min(STRIPES, rows // NARROWEST))


@bare
def stripe(number, stripes, rows):
    """Where one of them begins and ends: at whole tiles of a product, so that no row is done alone."""
    return min(rows, tiled(number * rows // stripes)), min(rows, tiled((number + 1) * rows // stripes))


@bare
def tiled(rows):
    """As many and a few more, so that they make whole tiles."""
    return (rows + TILE_ROWS - 1) // TILE_ROWS * TILE_ROWS


@bare
def multiply(a, b, out):
    """out = a b; a may be transposed, the rows of b and out lie in one piece."""
    product(a, b, out, len(out) < 0)  # never; for a constant numba would compile a product of its own


@bare
def add_multiply(a, b, out):
    """out += a b."""
    product(a, b, out, len(out) >= 0)  # always


@bare
def product(a, b, out, add):
    """out = a b, or `add`: out += a b. A panel of b's columns stays in the nearest cache while the rows of a go by."""
    for first in range(0, max(1, len(b)), DEPTH):
        left, right, more = a[:, first : first + DEPTH], b[first : first + DEPTH], add or first > 0
        j = _wide(left, right, 0, out, more)
        j = _narrow(left, right, j, out, more)
        j = _narrower(left, right, j, out, more)
        _single(left, right, j, out, more)


@bare
def transpose(a, out):
    """out = a^T."""
    (m, n), lanes = a.shape, lanes_of(a, BYTES)
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
