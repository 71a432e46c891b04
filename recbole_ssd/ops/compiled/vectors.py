"""Loops over one or a few rows, each a function of its own.

LLVM makes vectors of a loop when it can tell that its arrays are apart; with many arrays in one loop, or with slices of
larger ones, it gives up. As functions of few arguments these loops run five times as fast as written out in place.
"""

from __future__ import annotations

from .jit import loop, sigmoid


@loop
def dot(a, b):
    """The inner product."""
    total = a.dtype.type(0)
    for k in range(len(a)):
        total += a[k] * b[k]
    return total


@loop
def clear(out):
    """out = 0."""
    for k in range(len(out)):
        out[k] = 0


@loop
def put(a, out):
    """out = a."""
    for k in range(len(out)):
        out[k] = a[k]


@loop
def add(a, out):
    """out += a."""
    for k in range(len(out)):
        out[k] += a[k]


@loop
def add_scaled(scale, a, out):
    """out += scale * a, with a number `scale`."""
    for k in range(len(out)):
        out[k] += scale * a[k]


@loop
def put_scaled(scale, a, out):
    """out = scale * a, with a number `scale`."""
    for k in range(len(out)):
        out[k] = scale * a[k]


@loop
def add_product(a, b, out):
    """out += a * b, element by element."""
    for k in range(len(out)):
        out[k] += a[k] * b[k]


@loop
def silu(a, out):
    """out = a * sigmoid(a)."""
    for k in range(len(out)):
        out[k] = a[k] * sigmoid(a[k])


@loop
def silu_and_slope(a, out, slope):
    """out = a * sigmoid(a), slope = its derivative."""
    one = a.dtype.type(1)
    for k in range(len(out)):
        gate = sigmoid(a[k])
        out[k] = a[k] * gate
        slope[k] = gate * (one + a[k] * (one - gate))


@loop
def times(a, out):
    """out *= a, element by element."""
    for k in range(len(out)):
        out[k] *= a[k]


@loop
def total(a):
    """The sum of its numbers."""
    sum_ = a.dtype.type(0)
    for k in range(len(a)):
        sum_ += a[k]
    return sum_


@loop
def add_number(number, out):
    """out += number."""
    for k in range(len(out)):
        out[k] += number


@loop
def put_product(a, b, out):
    """out = a * b, element by element."""
    for k in range(len(out)):
        out[k] = a[k] * b[k]
