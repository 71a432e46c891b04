"""Segments: many histories in one stream, and the index arithmetic that keeps them apart.

    stream      a a a | b b | c c c c        three histories, no padding
    cu_seqlens  0       3     5         9    int32, (S + 1,): where each segment begins, and the end
    seq_idx     0 0 0   1 1   2 2 2 2        int32, (1, T): the paper's register, which segment a token is in

The register is that of SSD4Rec, https://arxiv.org/abs/2409.01192; both spellings are mamba-ssm's.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def flip_index(cu_seqlens: Tensor) -> Tensor:
    """Index that reverses every packed segment where it lies. Applying it twice undoes it.

    >>> flip_index(torch.tensor([0, 3, 5]))
    tensor([2, 1, 0, 4, 3])
    """
    lengths = cu_seqlens.diff()
    first = cu_seqlens[:-1].repeat_interleave(lengths)
    last = cu_seqlens[1:].repeat_interleave(lengths) - 1
    return first + last - torch.arange(len(first), device=first.device)


def moved(index: Tensor, device: torch.device) -> Tensor:
    """An index that was made on the host, on the device; a GPU is not waited for."""
    return index.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else index.to(device)


class Segments:
    """The borders of a packed stream, with the indices the ops need, each computed once.

    Build it once a batch and hand it to every op in place of `cu_seqlens`. Indices are made on the host, where their
    sizes are known, and moved: to make them on a GPU would mean to wait for it.

    Args:
        cu_seqlens: int tensor (S + 1,), starting at 0, strictly increasing.
        borders: the same on the CPU, where the caller has it: reading it from a GPU waits for all that is queued there.

    Raises:
        ValueError: when `cu_seqlens` is not such a tensor, or `borders` no copy of it on the CPU.
    """

    def __init__(self, cu_seqlens: Tensor, borders: Tensor | None = None):
        if cu_seqlens.dim() != 1 or len(cu_seqlens) < 2 or cu_seqlens.is_floating_point():
            raise ValueError(
                "cu_seqlens must be a 1-D integer tensor of segment borders such as [0, 3, 5], "
                f"got {cu_seqlens.dtype} of shape {tuple(cu_seqlens.shape)}"
            )
        self.cu_seqlens = cu_seqlens.long()
        self.borders = self.cu_seqlens.cpu() if borders is None else borders.long()
        if self.borders.device.type != "cpu" or self.borders.shape != cu_seqlens.shape:
            raise ValueError(
                f"borders must be cu_seqlens {tuple(cu_seqlens.shape)} on the CPU, got a tensor of shape "
                f"{tuple(self.borders.shape)} on '{self.borders.device}'"
            )
        if self.borders[0] != 0 or bool((self.borders.diff() < 1).any()):
            raise ValueError(
                "cu_seqlens must start at 0 and grow with every segment (no segment may be empty), "
                f"got {self.borders[:8].tolist()}..."
            )
        self.total = int(self.borders[-1])
        self.layouts: dict = {}  # what was computed once: places by (end, j), aligned chunks by size

    @classmethod
    def of(cls, cu_seqlens: Tensor | Segments) -> Segments:
        """`cu_seqlens` itself when it is a `Segments` already."""
        return cu_seqlens if isinstance(cu_seqlens, cls) else cls(cu_seqlens)

    @classmethod
    def dense(cls, batch: int, length: int, device: torch.device) -> Segments:
        """A dense batch seen as a stream: `batch` segments of `length` tokens."""
        return cls(torch.arange(0, (batch + 1) * length, length, device=device))

    @classmethod
    def of_batch(cls, x: Tensor, cu_seqlens: Tensor | Segments | None) -> Segments:
        """The segments of an op's input (b, l, ...): the rows of a dense batch, or those of a packed stream, b = 1."""
        if cu_seqlens is None:
            return cls.dense(*x.shape[:2], x.device)
        segments = cls.of(cu_seqlens)
        if x.shape[0] != 1 or segments.total != x.shape[1]:
            raise ValueError(
                f"a packed stream has shape (1, {segments.total}, ...) for these cu_seqlens, got {tuple(x.shape)}"
            )
        return segments

    @classmethod
    def of_rows(cls, x: Tensor, cu_seqlens: Tensor | Segments | None) -> Segments:
        """The segments of a layer's input: each row of a dense batch (b, l, d), or those of a stream (..., T, d)."""
        if cu_seqlens is None:
            return cls.dense(x.shape[:-2].numel(), x.shape[-2], x.device)
        segments = cls.of(cu_seqlens)
        if x.shape[:-1].numel() != segments.total:
            raise ValueError(f"these cu_seqlens are those of {segments.total} tokens, got x of shape {tuple(x.shape)}")
        return segments

    def __len__(self) -> int:
        return len(self.borders) - 1

    @property
    def device(self) -> torch.device:
        return self.cu_seqlens.device

    @cached_property
    def first(self) -> Tensor:
        """Position of each segment's first token, (S,)."""
        return self.cu_seqlens[:-1]

    @cached_property
    def last(self) -> Tensor:
        """Position of each segment's last token, (S,)."""
        return self.cu_seqlens[1:] - 1

    @cached_property
    def lengths(self) -> Tensor:
        """Tokens in each segment, (S,)."""
        return self.cu_seqlens.diff()

    @cached_property
    def number(self) -> Tensor:
        """Number of the segment each token is in, (T,), int64."""
        return moved(self.number_on_host, self.device)

    @cached_property
    def seq_idx(self) -> Tensor:
        """The register: `number` as mamba-ssm and causal-conv1d take it, (1, T), int32.

        >>> Segments(torch.tensor([0, 3, 5])).seq_idx
        tensor([[0, 0, 0, 1, 1]], dtype=torch.int32)
        """
        return moved(self.number_on_host.int()[None], self.device)

    @cached_property
    def number_on_host(self) -> Tensor:
        """`number` on the CPU."""
        return torch.arange(len(self)).repeat_interleave(self.borders.diff())

    @cached_property
    def position(self) -> Tensor:
        """Place of each token in its segment, from 0, (T,)."""
        return moved(torch.arange(self.total) - self.borders[self.number_on_host], self.device)

    @cached_property
    def flip(self) -> Tensor:
        """See `flip_index`."""
        return moved(flip_index(self.borders), self.device)

    def head(self, j: int) -> tuple[Tensor, Tensor]:
        """(stream positions of the j-th token of every segment that has one, numbers of those segments)."""
        return self._places("head", j)

    def tail(self, j: int) -> tuple[Tensor, Tensor]:
        """(stream positions of the j-th token from the end of every segment that has one, their numbers)."""
        return self._places("tail", j)

    def _places(self, end: str, j: int) -> tuple[Tensor, Tensor]:
        if (end, j) not in self.layouts:
            owners = (self.borders.diff() > j).nonzero()[:, 0]
            rows = self.borders[owners] + j if end == "head" else self.borders[owners + 1] - 1 - j
            self.layouts[end, j] = moved(rows, self.device), moved(owners, self.device)
        return self.layouts[end, j]


def flipped(x: Tensor, segments: Segments) -> Tensor:
    """Every segment from its last token to its first, (T, ...). Its gradient is flipped back: no sum, as of a gather.

    >>> flipped(torch.tensor([1, 2, 3, 4, 5]), Segments(torch.tensor([0, 3, 5])))
    tensor([3, 2, 1, 5, 4])
    """
    return _Flipped.apply(x, segments.flip)


class _Flipped(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, index):
        ctx.save_for_backward(index)
        return x.index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        return dy.index_select(0, *ctx.saved_tensors), None
