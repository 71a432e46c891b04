"""A mixer with dropout, residual and norm, and what follows it at every position.

h = LayerNorm(dropout(mixer(x)) + x);    y = feed_forward(h)
"""

from __future__ import annotations

from torch import Tensor, nn

from recbole_ssd.ops.packing import Segments

from .add_norm import add_and_norm
from .dropout import Dropout


class Residual(nn.Module):
    """One layer of a post-norm stack.

    Args:
        mixer: called as mixer(x, segments), (T, d) -> (T, d).
        hidden_size: d.
        dropout_prob, layer_norm_eps: of the dropout and the norm behind the mixer.
        residual: False leaves "+ x" out.
        feed_forward: (..., d) -> (..., d), with its own residual; None: nothing follows.
    """

    def __init__(
        self,
        mixer: nn.Module,
        hidden_size: int,
        *,
        dropout_prob: float,
        layer_norm_eps: float,
        residual: bool = True,
        feed_forward: nn.Module | None = None,
    ):
        super().__init__()
        self.mixer, self.feed_forward = mixer, feed_forward or nn.Identity()
        self.dropout = Dropout(dropout_prob)
        self.LayerNorm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.residual = residual

    def forward(self, x: Tensor, segments: Segments, last: bool = False) -> Tensor:
        """(T, d) -> (T, d), or with `last` (S, d): the last token of each segment only, for less work."""
        y = self.mixer(x, segments)
        if last:
            x, y = x.index_select(0, segments.last), y.index_select(0, segments.last)
        if self.residual:
            return self.feed_forward(add_and_norm(y, x, self.LayerNorm, self.dropout))
        return self.feed_forward(self.LayerNorm(self.dropout(y)))
