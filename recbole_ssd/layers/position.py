"""Learned positions, counted from the first token of a segment.

The padded originals count from the left edge of a row that is filled from the right, so that an item's position depends
on how much padding stands before it. Here the first item of a history is at position 0, always.
"""

from __future__ import annotations

from torch import Tensor, nn

from recbole_ssd.ops.packing import Segments


class Position(nn.Module):
    """Adds a vector for each of the first `max_position` places; all later ones share the last. None adds nothing."""

    def __init__(self, max_position: int | None, hidden_size: int):
        super().__init__()
        self.embedding = nn.Embedding(max_position, hidden_size) if max_position else None

    def forward(self, x: Tensor, segments: Segments) -> Tensor:
        """(T, d) -> (T, d)."""
        if self.embedding is None:
            return x
        return x + self.embedding(segments.position.clamp(max=self.embedding.num_embeddings - 1))
