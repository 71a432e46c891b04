"""Long segments: the states between their chunks, in parallel over chunks but for one short loop, and their gradients.

    added[k]      = sum_j e^(c[last] - c[j]) dt[j] B[j] (outer) x[j]      what chunk k leaves behind by itself
    entering[k+1] = e^(c[last]) * entering[k]  +  added[k]

From back to front the gradients of the states obey the same two lines: chunk k gives the state that enters it the
gradient sum_i e^(c[i]) C[i] (outer) dy[i], and hands on, decayed, what it got from chunk k + 1. With S what enters a
chunk and G the gradient of what leaves it, its tokens then get, in addition to what `ssd_backward` gave them,

    d(dt x)[j] = e^(c[last] - c[j]) B[j] . G,    dB[j] = sum over heads of e^(c[last] - c[j]) dt[j] x[j] . G,
    dC[i] = sum over heads of e^(c[i]) dy[i] . S,    and a decay what flows from S or past it, and to G, across it.

Section 6 of Dao and Gu, ICML 2024, https://arxiv.org/abs/2405.21060.

Shape letters:    T tokens    q tokens of a chunk    h heads    p head size    g groups    n state size    k chunks
                  r long segments    s parts the heads of a group are split into
"""

from __future__ import annotations

import triton
import triton.language as tl

from .ssd_tile import add_tile, kept, load_state, load_steps, load_tile, log_decay, own_tile, until_end


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
    P: tl.constexpr,
    N: tl.constexpr,
    BACKWARD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A program: one chunk, `heads_here` heads of one group."""
    chunk, start, tokens, first = own_tile(chunks, heads, heads_here)
    goes_on = tl.load(chunks + chunk * 4 + (2 if BACKWARD else 3))
    wanted = tl.where(goes_on != 0, tokens, 0)  # nothing is read where no state goes on
    side = load_tile(left + first // heads_per_group * n, start, wanted, left_stride, n, Q, N)
    ns, ps = tl.arange(0, N)[:, None], tl.arange(0, P)[None, :]
    for head in range(first, first + heads_here):
        step = load_steps(dt, start, tokens, heads, head, Q)
        coarse, fine = log_decay(step, tl.load(A + head))
        if BACKWARD:
            weight = tl.exp2(coarse + fine)
        else:
            until, whole = until_end(coarse, fine, Q)
            weight = step * until
            tl.store(decays + chunk * heads + head, whole)
        values = load_tile(right + head * p, start, wanted, right_stride, p, Q, P)
        state = tl.dot(tl.trans(side), (values * weight[:, None]).to(side.dtype), input_precision=PRECISION)
        place = tl.cast(chunk * heads + head, tl.int64) * (n * p)
        tl.store(states + place + (ns * p + ps), state, mask=(ns < tl.where(goes_on != 0, n, 0)) & (ps < p))


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


@triton.jit
def late_gradients_kernel(
    x,  # (T, h, p)
    A,  # (h,)
    B,  # (T, g, n)
    C,  # (T, g, n)
    steps,  # (k, h, 3, Q) of the forward: dt and both parts of c
    dy,  # (T, h, p)
    dx,  # in and out (T, h, p)
    ddt,  # in and out (T, h)
    dB,  # in and out (s, T, g, n)
    dC,  # in and out (s, T, g, n)
    shares,  # out (k, h, 1 + SKIP): the first is this chunk's share of dA
    states,  # (k, h, n, p): S
    dstates,  # (k, h, n, p): G
    chunks,  # (k, 4) of the plan
    total,
    heads_here,
    x_stride: tl.constexpr,
    B_stride: tl.constexpr,
    C_stride: tl.constexpr,
    heads: tl.constexpr,
    heads_per_group: tl.constexpr,
    p: tl.constexpr,
    n: tl.constexpr,
    Q: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    SKIP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A program: one chunk, `heads_here` heads of one group."""
    chunk, start, tokens, first = own_tile(chunks, heads, heads_here)
    group, width = first // heads_per_group * n, heads // heads_per_group * n
    b = load_tile(B + group, start, tokens, B_stride, n, Q, N)
    c = load_tile(C + group, start, tokens, C_stride, n, Q, N)
    enters, leaves = tl.load(chunks + chunk * 4 + 2), tl.load(chunks + chunk * 4 + 3)
    db, dc = tl.zeros((Q, N), dtype=tl.float32), tl.zeros((Q, N), dtype=tl.float32)
    for head in range(first, first + heads_here):
        at_step, at_coarse, at_fine = kept(steps, chunk, heads, head, Q)
        step, coarse, fine = tl.load(at_step), tl.load(at_coarse), tl.load(at_fine)
        values = load_tile(x + head * p, start, tokens, x_stride, p, Q, P)
        dout = load_tile(dy + head * p, start, tokens, heads * p, p, Q, P)
        state = load_state(states, chunk, head, heads, enters, n, p, N, P)
        dstate = load_state(dstates, chunk, head, heads, leaves, n, p, N, P)
        until, whole = until_end(coarse, fine, Q)
        through = whole * tl.sum(tl.sum(state * dstate, 1), 0)  # from S to G, past every token
        state, dstate, weight = state.to(b.dtype), dstate.to(b.dtype), step * until
        late = dout * tl.exp2(coarse + fine)[:, None]
        received = tl.sum(late * tl.dot(c, state, input_precision=PRECISION), 1)  # from S
        dc += tl.dot(late.to(c.dtype), tl.trans(state), input_precision=PRECISION)
        db += tl.dot((values * weight[:, None]).to(b.dtype), tl.trans(dstate), input_precision=PRECISION)
        dentered = tl.dot(b, dstate, input_precision=PRECISION) * until[:, None]
        sent = tl.sum(dentered * values, 1)  # to G, but for dt
        da = tl.cumsum(received, 0, reverse=True) + (tl.cumsum(sent * step, 0) - sent * step) + through
        add_tile(ddt + head, (sent + da * tl.load(A + head))[:, None], start, tokens, heads, 1, Q, 1)
        add_tile(dx + head * p, dentered * step[:, None], start, tokens, heads * p, p, Q, P)
        tl.store(shares + (chunk * heads + head) * (1 + SKIP), tl.sum(da * step, 0))
    part = tl.cast(first % heads_per_group // heads_here, tl.int64) * total * width + group
    add_tile(dB + part, db, start, tokens, width, n, Q, N)
    add_tile(dC + part, dc, start, tokens, width, n, Q, N)
