"""Activations of a row and their slopes, for the kernels of a feed-forward network.

gelu(u) = u P(u),    gelu'(u) = P(u) + u exp(-u^2 / 2) / sqrt(2 pi),    P(u) = (1 + erf(u / sqrt(2))) / 2
"""

from __future__ import annotations

import math

import numpy as np
from numba import types
from numba.extending import overload

from .jit import bare, exp, loop
from .vectors import silu, silu_and_slope

NUMBERS = {"gelu": 0, "relu": 1, "silu": 2}  # by which kernels know them


@bare
def activate(number, u, out):
    """out = activation(u)."""
    if number == 0:
        _gelu(u, out)
    elif number == 1:
        _relu(u, out)
    else:
        silu(u, out)


@bare
def activate_and_slope(number, u, out, slope):
    """out = activation(u), slope = its derivative."""
    if number == 0:
        _gelu_and_slope(u, out, slope)
    elif number == 1:
        _relu_and_slope(u, out, slope)
    else:
        silu_and_slope(u, out, slope)


@loop
def _gelu(u, out):
    for k in range(len(u)):
        out[k] = u[k] * normal_below(u[k])


@loop
def _relu(u, out):
    zero = u.dtype.type(0)
    for k in range(len(u)):
        out[k] = max(u[k], zero)


@loop
def _relu_and_slope(u, out, slope):
    zero, one = u.dtype.type(0), u.dtype.type(1)
    for k in range(len(u)):
        slope[k] = one if u[k] > 0 else zero
        out[k] = u[k] * slope[k]


@loop
def _gelu_and_slope(u, out, slope):
    minus_half, density = u.dtype.type(-0.5), u.dtype.type(1 / math.sqrt(2 * math.pi))
    for k in range(len(u)):
        below = normal_below(u[k])
        out[k] = u[k] * below
        slope[k] = below + u[k] * density * exp(minus_half * u[k] * u[k])


def normal_below(x: float) -> float:
    """The share of a normal distribution below x, for kernels: math.erfc, and for float32 a form that makes vectors.

    The latter is 7.1.26 of Abramowitz and Stegun, Handbook of Mathematical Functions, off by 7.5e-8 at most.
    """
    return math.erfc(-x / math.sqrt(2)) / 2


@overload(normal_below, jit_options={"fastmath": {"contract"}, "error_model": "numpy"})
def _normal_below(x):
    if x != types.float32:
        return lambda x: 0.5 * math.erfc(-x / math.sqrt(2.0))
    halved = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
    a1, a2, a3, a4, a5 = (np.float32(a / 2) for a in halved)
    p, minus_half = np.float32(0.3275911 / math.sqrt(2)), np.float32(-0.5)
    zero, one = np.float32(0), np.float32(1)

    def below(x):
        t = one / (one + p * abs(x))
        tail = ((((a5 * t + a4) * t + a3) * t + a2) * t + a1) * t * exp(minus_half * x * x)
        return one - tail if x > zero else tail

    return below
