"""A chunk of `ssd.py` for one head: what its forward and its backward share.

Rows beyond the segment's end are zeros. Letters as in `ssd.py`.
"""

from __future__ import annotations

import math

import numpy as np

from .jit import kernel, loop
from .matrices import clear

CHUNK = 32  # tokens; twice as many cost more in the triangle than they save in states
SHORT = 16  # tokens of a segment that takes half a chunk


@loop
def rows_of(begin, end):
    """Rows of a segment's chunks, q."""
    return SHORT if end - begin <= SHORT else CHUNK


@loop
def state_row(begin, first):
    """Where the state before a segment's chunk lies, but its first: no two share a row, and T // CHUNK rows suffice."""
    return begin // CHUNK + (first - begin) // CHUNK - 1


@loop
def load(rows, first, last, group, out):
    """A chunk of B or C; zeros after the segment's end."""
    for i in range(last - first):
        for k in range(out.shape[1]):
            out[i, k] = rows[first + i, group, k]
    clear(out, last - first)


@loop
def enter(x, dt, first, last, head, u):
    """u = dt x of a chunk; zeros after the segment's end."""
    for i in range(last - first):
        step = dt[first + i, head]
        for k in range(u.shape[1]):
            u[i, k] = step * x[first + i, head, k]
    clear(u, last - first)


@loop
def scale(scale, rows):
    """Each row times its number."""
    for i in range(len(rows)):
        for k in range(rows.shape[1]):
            rows[i, k] *= scale[i]


@loop
def fade(decay, state):
    """state *= decay, a number."""
    for k in range(len(state)):
        for j in range(state.shape[1]):
            state[k, j] *= decay


@loop
def decay(dt, A, first, last, head, decays):
    """a, and the products of a up to each token and after it."""
    count, rate, passed = last - first, float(A[head]), 1.0
    for i in range(count):
        decays[0, i] = a = math.exp(dt[first + i, head] * rate)
        passed *= a
        decays[1, i] = passed
    passed = 1.0
    for behind in range(count):
        i = count - 1 - behind
        decays[2, i] = passed
        passed *= decays[0, i]
    for i in range(count, decays.shape[1]):
        decays[0, i] = decays[1, i] = decays[2, i] = 0


@kernel
def triangle(product, decays, L, M):
    """L, and M = C B^T * L, from C B^T."""
    row = np.zeros(len(L), L.dtype)
    for i in range(len(L)):
        a = decays[0, i]
        for j in range(len(row)):
            row[j] *= a
        row[i] = 1
        for j in range(len(row)):
            L[i, j] = row[j]
            M[i, j] = product[i, j] * row[j]
