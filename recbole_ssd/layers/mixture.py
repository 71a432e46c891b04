"""A mixture of two experts that read the same stream, weighed anew at every token.

    w[t] = softmax(W g[t]);    y[t] = w[t, 0] * first[t] + w[t, 1] * second[t]

g[t] is the token itself (`token`) or the mean of its segment up to and including it (`running_mean`): the future has no
say. `top1` takes the expert with the larger weight alone, times that weight, through which the gate learns: the
estimator of Fedus, Zoph and Shazeer, "Switch Transformers", JMLR 2022, https://arxiv.org/abs/2101.03961, equation 2,
with their balancing loss, equation 4. Both experts read every token, for what a state space model or attention gives at
a token depends on all those before it: top1 is a choice of model and saves no time.

Shape letters:    T tokens    d model size
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_ssd.ops.packing import Segments
from recbole_ssd.ops.segment_cumsum import segment_cumsum

GATES = ("running_mean", "token", "top1")


class Gate(nn.Module):
    """The weights of two experts.

    Args:
        hidden_size: d.
        gate: `running_mean`, `token` or `top1`.
    """

    def __init__(self, hidden_size: int, gate: str):
        super().__init__()
        if gate not in GATES:
            raise ValueError(f"gate must be one of {', '.join(GATES)}, got '{gate}'")
        self.gate = gate
        self.proj = nn.Linear(hidden_size, 2)
        self._balance = None
        self.register_buffer("_shares", torch.zeros(2), persistent=False)  # summed over tokens since the last reading

    def forward(self, x: Tensor, segments: Segments, last: bool = False) -> Tensor:
        """(T, d) -> (T, 2), or with `last` (S, 2): of each segment's last token; others do not count in the shares."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.proj.weight.dtype)
            if self.gate == "running_mean":
                x = segment_cumsum(x, segments) / (segments.position + 1)[:, None]
            return self._weights(x.index_select(0, segments.last) if last else x)

    def _weights(self, x: Tensor) -> Tensor:
        probabilities = self.proj(x).softmax(-1)
        if self.gate != "top1":
            return self._counted(probabilities)
        chosen = F.one_hot(probabilities.argmax(-1), 2).to(probabilities.dtype)
        if self.training:
            self._balance = 2 * (chosen.mean(0) * probabilities.mean(0)).sum()
        return self._counted(chosen) * probabilities

    def _counted(self, weights: Tensor) -> Tensor:
        if self.training:
            self._shares += weights.detach().sum(0)
        return weights

    def take_balance(self) -> Tensor | None:
        """The balancing loss of the last forward in training, once: 1 where both experts have equal shares, 2 where
        one has all. None for the soft gates."""
        balance, self._balance = self._balance, None
        return balance

    def take_shares(self) -> list[float] | None:
        """What share of the weight (of the tokens, with top1) each expert had in training since the last call."""
        total = self._shares.sum()
        shares = (self._shares / total).tolist() if total > 0 else None
        self._shares.zero_()
        return shares
