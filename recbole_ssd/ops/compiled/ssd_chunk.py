"""A chunk of `ssd.py`: what its forward and its backward share.

Rows beyond the segment's end are zeros. Letters as in `ssd.py`; values, sources and place as in `ssd_values.py`.
"""

from __future__ import annotations

import math

import numpy as np

from .jit import loop
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
def columns(values, left, out):
    """Some columns of a chunk, by themselves."""
    left = np.uint64(left)
    for i in range(len(out)):
        for k in range(np.uint64(out.shape[1])):
            out[i, k] = values[i, left + k]


@loop
def weigh(values, dt, place, head, u):
    """u = dt x of a head."""
    _, first, last, _ = place
    left = np.uint64(head * u.shape[1])
    for i in range(last - first):
        step = dt[first + i, head]
        for k in range(np.uint64(u.shape[1])):
            u[i, k] = step * values[i, left + k]
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
def decay(dt, A, place, head, decays):
    """a, and the products of a up to each token and after it."""
    _, first, last, _ = place
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


@loop
def triangle(product, decays, row, L, M):
    """L, and M = C B^T * L, from C B^T; `row` is scratch, (q,)."""
    for j in range(len(row)):
        row[j] = 0
    one = row.dtype.type(1)
    for i in range(len(L)):
        a = decays[0, i]
        for j in range(len(row)):
            row[j] = one if j == i else a * row[j]
            L[i, j] = row[j]
            M[i, j] = product[i, j] * row[j]
