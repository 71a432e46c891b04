"""Causal attention over a stream in plain torch, a block of scores at a time, forward, backward and with dropout.

Segments of nearly one length lie side by side in a bucket. A block is up to 64 queries of some of them, against all
keys up to the last of those queries: whole rows of the softmax, so that no running maximum is needed. Nothing of it is
kept. The backward makes the block again, and its dropout again from the same seed: memory grows with T, not with T^2.

A block holds tokens of other segments in other matrices of a batched product, and a token's future only behind weights
that are exactly 0: neither can move a bit of its output.

On a CPU (benchmarks/attention.py) a step takes 0.67 times as long as scaled_dot_product_attention in power-of-two
buckets on histories of 3 to 485 tokens, 1.3 on segments of 1,024, 1.4 on 2,048 and 1.5 on 8,192. With dropout torch
holds all scores, and ours takes 0.28 to 0.11 times as long: one path serves both. Jagged nested tensors, which need
neither buckets nor blocks, refuse `is_causal` on a CPU.

This path is written for any device and has not run on a GPU. There, jagged nested tensors should take float32 and
dropout; they are not used, because nobody could check them here, nor whether their gradients repeat to the bit.

Equation, source and shape letters: `attention.py`.    T tokens    r rows (a segment of one head)    w width of a bucket
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .packing import Segments, moved
from .random_bits import LEVELS, kept

QUERIES = 64  # of a block; 128 measured the same
SCORES = 2**18  # of a block, where one row has fewer: 1 MB of float32, which a core's cache keeps
SCORES_ON_GPU = 2**26  # fewer launches
FILLED = 0.75  # the shortest segment of a bucket fills so much of its width
NARROWEST = 8  # segments of at most this many tokens share a bucket


def attention_torch(q: Tensor, k: Tensor, v: Tensor, segments: Segments, dropout_p: float = 0.0) -> Tensor:
    """(T, h, p) three times -> (T, h, p). `dropout_p` is kept to 1/65536."""
    masks = DropoutMasks(dropout_p, q.device) if round(dropout_p * LEVELS) else None
    return _Attention.apply(q, k, v, segments, masks)


@dataclass
class Bucket:
    """Segments of nearly one length, head by head, each padded to the longest."""

    source: Tensor  # (r * w,) row of (T * h, p) of every slot; padding repeats its segment's last token
    target: Tensor  # (r * w,) the same, but padding points behind the stream, at token T
    width: int

    def take(self, rows: Tensor, index: Tensor, dtype: torch.dtype) -> Tensor:
        """(T * h, p) -> (r, w, p)."""
        return rows.index_select(0, index).view(-1, self.width, rows.shape[-1]).to(dtype)

    def put(self, slots: Tensor, rows: Tensor) -> None:
        """Writes (r, w, p) into `rows`, ((T + 1) * h, p)."""
        rows.index_copy_(0, self.target, slots.view(-1, rows.shape[-1]).to(rows.dtype))

    def blocks(self) -> Iterator[tuple[slice, int, int]]:
        """(rows, begin, end): queries from begin to end, which see the keys from 0 to end."""
        for begin in range(0, self.width, QUERIES):
            end = min(begin + QUERIES, self.width)
            step = max(1, (SCORES_ON_GPU if self.target.is_cuda else SCORES) // ((end - begin) * end))
            for first in range(0, len(self.source) // self.width, step):
                yield slice(first, first + step), begin, end


def buckets(segments: Segments, heads: int) -> list[Bucket]:
    """The layout of a stream, made once for a number of heads. Longest segments first.

    >>> [(b.width, len(b.source)) for b in buckets(Segments(torch.tensor([0, 3, 103, 110, 190])), 1)]
    [(100, 200), (8, 16)]
    """
    if ("attention", heads) not in segments.layouts:
        lengths, order = segments.borders.diff().sort(descending=True, stable=True)
        made, begin = [], 0
        while begin < len(lengths):
            width = max(int(lengths[begin]), NARROWEST)
            shortest = FILLED * width if width > NARROWEST else 1
            end = int((lengths >= shortest).sum())
            made.append(_bucket(segments, order[begin:end], width, heads))
            begin = end
        segments.layouts["attention", heads] = made
    return segments.layouts["attention", heads]


def _bucket(segments: Segments, chosen: Tensor, width: int, heads: int) -> Bucket:
    slots = segments.borders[chosen][:, None] + torch.arange(width)  # (segments, w)
    end = segments.borders[chosen + 1][:, None]
    tokens = torch.minimum(slots, end - 1), torch.where(slots < end, slots, segments.total)
    head = torch.arange(heads)[:, None]
    source, target = (moved((t[:, None] * heads + head).flatten(), segments.device) for t in tokens)
    return Bucket(source, target, width)


class DropoutMasks:
    """Ones and zeros for a block of probabilities after another; after `rewind` the same again.

    The bits are cut as in layers/dropout.py: torch's own draw takes longer than all the rest of a block.
    """

    def __init__(self, dropout_p: float, device: torch.device):
        self.dropped = min(round(dropout_p * LEVELS), LEVELS - 1)
        self.scale = LEVELS / (LEVELS - self.dropped)
        self.seed = int(torch.randint(2**62, (), device="cpu"))
        self.generator = torch.Generator(device)

    def rewind(self) -> None:
        self.generator.manual_seed(self.seed)

    def draw(self, like: Tensor) -> Tensor:
        return kept(like.shape, self.dropped, like.device, self.generator).to(like.dtype)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, segments, masks):
        ctx.save_for_backward(q, k, v)
        ctx.segments, ctx.masks = segments, masks
        tokens, heads, p = q.shape
        qkv = [t.reshape(-1, p) for t in (q, k, v)]
        y = q.new_empty((tokens + 1) * heads, p)
        future = _future(qkv[0])
        if masks:
            masks.rewind()
        for bucket in buckets(segments, heads):
            bucket.put(_forward(bucket, *_loaded(bucket, *qkv), future, masks), y)
        return y[: tokens * heads].view(q.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        (q, k, v), masks = ctx.saved_tensors, ctx.masks
        tokens, heads, p = q.shape
        qkv = [t.reshape(-1, p) for t in (q, k, v)]
        dy = torch.cat([dy.reshape(-1, p), dy.new_zeros(heads, p)])  # no gradient comes from padding
        grads = [q.new_empty((tokens + 1) * heads, p) for _ in range(3)]
        future = _future(qkv[0])
        if masks:
            masks.rewind()
        with torch.autocast(q.device.type, enabled=False):
            for bucket in buckets(ctx.segments, heads):
                loaded = _loaded(bucket, *qkv)
                dy_slots = bucket.take(dy, bucket.target, future.dtype)
                for grad, slots in zip(grads, _backward(bucket, *loaded, dy_slots, future, masks)):
                    bucket.put(slots, grad)
        return *(grad[: tokens * heads].view(q.shape) for grad in grads), None, None


def _loaded(bucket: Bucket, q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
    """q / sqrt(p), k and v of a bucket, (r, w, p), in float32 at least."""
    q, k, v = (bucket.take(t, bucket.source, _computed_in(t)) for t in (q, k, v))
    return [q.mul_(q.shape[-1] ** -0.5), k, v]


def _forward(bucket: Bucket, q: Tensor, k: Tensor, v: Tensor, future: Tensor, masks: DropoutMasks | None) -> Tensor:
    y = torch.empty_like(q)
    for rows, begin, end in bucket.blocks():
        P = _probabilities(q[rows, begin:end], k[rows, :end], future)
        if masks:
            P *= masks.draw(P)
        y[rows, begin:end] = torch.bmm(P, v[rows, :end])
    return y.mul_(masks.scale) if masks else y


def _backward(
    bucket: Bucket, q: Tensor, k: Tensor, v: Tensor, dy: Tensor, future: Tensor, masks: DropoutMasks | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q before its scaling, of k and of v, (r, w, p)."""
    dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    if masks:
        dy = dy * masks.scale
    for rows, begin, end in bucket.blocks():
        queries, keys, dy_block = q[rows, begin:end], k[rows, :end], dy[rows, begin:end]
        P = _probabilities(queries, keys, future)
        dP = torch.bmm(dy_block, v[rows, :end].mT)
        weights = P
        if masks:
            weights = masks.draw(P)
            dP *= weights
            weights *= P
        dv[rows, :end].baddbmm_(weights.mT, dy_block)
        dscores = torch.ops.aten._softmax_backward_data(dP, P, -1, P.dtype)
        dq[rows, begin:end] = torch.bmm(dscores, keys)
        dk[rows, :end].baddbmm_(dscores.mT, queries)
    return dq.mul_(q.shape[-1] ** -0.5), dk, dv


def _computed_in(like: Tensor) -> torch.dtype:
    return torch.promote_types(like.dtype, torch.float32)


def _future(like: Tensor) -> Tensor:
    """-inf above the diagonal, for the last keys of a block. (QUERIES, QUERIES)."""
    return torch.full((QUERIES, QUERIES), -torch.inf, dtype=_computed_in(like), device=like.device).triu(1)


def _probabilities(queries: Tensor, keys: Tensor, future: Tensor) -> Tensor:
    """(r, n, p) queries against the (r, end, p) keys up to the last of them -> (r, n, end)."""
    n = queries.shape[1]
    scores = torch.bmm(queries, keys.mT)
    scores[..., -n:].add_(future[:n, :n])
    return scores.softmax(-1)
