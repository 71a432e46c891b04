"""RecMamba: one Mamba-1 block over lifelong histories.

    y = Mamba( dropout(sqrt(d) E + P) )

Yang et al., "Uncovering Selective State Space Model's Capabilities in Lifelong Sequential Recommendation",
https://arxiv.org/abs/2403.16371. It is `MambaRec` with `block: full` and `ssm: mamba1`, learned positions, and BCE with
one sampled negative: the preset of properties/model/RecMamba.yaml. What differs from its authors' code is what differs
in `MambaRec`; the size of their block, 64 whatever the width of the items, is that of the items here.
"""

from __future__ import annotations

from .mambarec import MambaRec


class RecMamba(MambaRec):
    """One Mamba-1 block with learned positions (arXiv 2403.16371), a preset of MambaRec."""
