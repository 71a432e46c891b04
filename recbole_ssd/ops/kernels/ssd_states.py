"""Long segments: the states between their chunks, in parallel over chunks but for one short loop.

    added[k]      = sum_j e^(c[last] - c[j]) dt[j] B[j] (outer) x[j]      what chunk k leaves behind by itself
    entering[k+1] = e^(c[last]) * entering[k]  +  added[k]

From back to front the gradients of the states obey the same two lines: chunk k gives the state that enters it the
gradient sum_i e^(c[i]) C[i] (outer) dy[i], and hands on, decayed, what it got from chunk k + 1.

Section 6 of Dao and Gu, ICML 2024, https://arxiv.org/abs/2405.21060.

Shape letters:    T tokens    h heads    p head size    g groups    n state size    k chunks    r long segments
"""

from __future__ import annotations

import triton
import triton.language as tl

from .ssd_tile import load_steps, load_tile, log_decay, own_tile, store_state, until_end


@triton.jit
def chunk_states_kernel(
    left,  # B, or C from back to front: (T, g, n)
    right,  # x, or dy from back to front: (T, h, p)
    dt,  # (T, h)
    A,  # (h,)
    states,  # out (k, h, n, p): `added`, or its mirror image
    decays,  # out (k, h): decay over the whole chunk; from back to front it is there already
    chunks,  # (k, 4) of the plan
    heads_here,
    left_stride: tl.constexpr,
    right_stride: tl.constexpr,
    heads: tl.constexpr,
    heads_per_group: tl.constexpr,
    p: tl.constexpr,
    n: tl.constexpr,
    Q: tl.constexpr,
    W: tl.constexpr,
    N: tl.constexpr,
    BACKWARD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A program: one chunk, `heads_here` heads of one group."""
    chunk, start, tokens, first = own_tile(chunks, heads, heads_here)
    goes_on = tl.load(chunks + chunk * 4 + (2 if BACKWARD else 3))
    wanted = tl.where(goes_on != 0, tokens, 0)  # nothing is read where no state goes on
    side = load_tile(left + first // heads_per_group * n, start, wanted, left_stride, n, Q, N)
    for head in range(first, first + heads_here):
        step = load_steps(dt, start, tokens, heads, head, Q)
        coarse, fine = log_decay(step, tl.load(A + head))
        if BACKWARD:
            weight = tl.exp2(coarse + fine)
        else:
            until, whole = until_end(coarse, fine, Q)
            weight = step * until
            tl.store(decays + chunk * heads + head, whole)
        for at in range(0, p, W):
            values = load_tile(right + head * p + at, start, wanted, right_stride, p - at, Q, W)
            state = tl.dot(tl.trans(side), (values * weight[:, None]).to(side.dtype), input_precision=PRECISION)
            store_state(states, state, chunk, head, heads, goes_on, at, n, p, N, W)


@triton.jit
def pass_states_kernel(
    states, decays, runs, heads: tl.constexpr, size: tl.constexpr, WIDE: tl.constexpr, BACKWARD: tl.constexpr
):
    """`added` -> `entering`, in place; a program: one segment, one head, WIDE of the `size` = n * p numbers."""
    run, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    chunk, count = tl.load(runs + run * 2), tl.load(runs + run * 2 + 1)
    ahead = 1
    if BACKWARD:
        chunk, ahead = chunk + count - 1, -1
    columns = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    inside = columns < size
    state = tl.zeros((WIDE,), dtype=tl.float32)
    place = states + tl.cast(chunk * heads + head, tl.int64) * size + columns
    added = tl.load(place, mask=inside, other=0.0)
    for done in range(1, count):
        # Read before this chunk's place is written: the two need not wait for each other.
        following = place + ahead * heads * size
        upcoming = tl.load(following, mask=columns < tl.where(done + 1 < count, size, 0), other=0.0)
        tl.store(place, state, mask=inside)
        state = tl.load(decays + chunk * heads + head) * state + added
        chunk, place, added = chunk + ahead, following, upcoming
    tl.store(place, state, mask=inside)
