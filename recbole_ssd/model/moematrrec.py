"""MoEMaTrRec: a gated mixture of Mamba and a Transformer's attention.

    x = dropout(sqrt(d) E + P)
    y = w_0 Mamba(x) + w_1 LayerNorm(dropout(attention(x)) + x);    out = FFN(y)

with weights w from a gate (`layers/mixture.py`). Alokam, "State-Space Models for Large Sequence Modeling in Sequential
Recommendation", https://github.com/alokamgnaneswarasai/MambaRec. What differs from its code, and why:

- its attention has no causal mask and its gate reads the mean of the whole history, so that every position sees its
  own label. Here attention is causal and the gate reads the token, or the mean of the prefix (`gate: running_mean`).
- its hard gate chooses once a history and passes no gradient to the gate; `gate: top1` chooses at every token and
  learns through the chosen weight, with the balancing loss of Switch Transformers (`balance_weight`). Both experts
  still read every token: it saves no time.
- packed streams and whole histories, positions from the first item, any number of layers, Mamba-1 or Mamba-2.
- A_log, dt and D start as Mamba's paper has them; its code draws every matrix anew by Xavier's rule.
"""

from __future__ import annotations

from recbole.data.interaction import Interaction
from torch import Tensor, nn

from recbole_ssd.layers.feed_forward import FeedForward
from recbole_ssd.layers.mixture import Gate
from recbole_ssd.layers.residual import Residual
from recbole_ssd.ops.packing import Segments

from .mambarec import MambaRec
from .mixer import mamba, self_attention

EXPERTS = ("mamba", "attention")


class MoEMaTrRec(MambaRec):
    """Gated mixture of Mamba and attention (alokamgnaneswarasai/MambaRec, without its leaks)."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.balance_weight = config.required("balance_weight") if config.required("gate") == "top1" else 0.0

    def layer(self, config) -> nn.Module:
        """A fresh layer."""
        hidden_size, inner_size = config.required("hidden_size"), config.required("inner_size")
        norm = {key: config.required(key) for key in ("dropout_prob", "layer_norm_eps")}
        return MixtureLayer(
            mamba(config),
            Residual(self_attention(config), hidden_size, **norm),
            Gate(hidden_size, config.required("gate")),
            FeedForward(hidden_size, inner_size, hidden_act=config.required("hidden_act"), **norm),
        )

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        loss = super().calculate_loss(interaction)
        balances = [layer.gate.take_balance() for layer in self.layers]
        return loss + self.balance_weight * sum(balance for balance in balances if balance is not None)

    def epoch_figures(self) -> dict[str, float]:
        """What share each expert had in the training since the last call, by layer; the trainer logs it each epoch.

        In the last layer the positions count that are read: with `supervision: prefixes` the ends of the prefixes.
        """
        shares = {
            f"share_of_{expert}/layer_{number}": share
            for number, layer in enumerate(self.layers)
            for expert, share in zip(EXPERTS, layer.gate.take_shares() or ())
        }
        return {**shares, **super().epoch_figures()}


class MixtureLayer(nn.Module):
    """Two experts, a gate, and a feed-forward network after them."""

    def __init__(self, mamba: nn.Module, attention: Residual, gate: Gate, feed_forward: FeedForward):
        super().__init__()
        self.mamba, self.attention, self.gate, self.feed_forward = mamba, attention, gate, feed_forward

    def forward(self, x: Tensor, segments: Segments, last: bool = False) -> Tensor:
        """(T, d) -> (T, d), or with `last` (S, d): the last token of each segment only, for less work."""
        weights = self.gate(x, segments, last)  # (T, 2)
        mamba, attention = self.mamba(x, segments), self.attention(x, segments, last)
        mamba = mamba.index_select(0, segments.last) if last else mamba
        return self.feed_forward(weights[:, :1] * mamba + weights[:, 1:] * attention)
