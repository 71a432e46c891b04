"""The mixers that a config describes."""

from __future__ import annotations

from recbole_ssd.layers.attention import SelfAttention
from recbole_ssd.layers.mamba import Mamba
from recbole_ssd.layers.mamba2 import Mamba2

SSMS = ("mamba1", "mamba2")


def mamba1(config) -> Mamba:
    """A Mamba-1 block. Reads hidden_size, d_state, d_conv, expand, conv_backend, dt_init and scan_backend."""
    return Mamba(**_shared(config), dt_init=config.required("dt_init"), backend=config.required("scan_backend"))


def mamba2(config) -> Mamba2:
    """A Mamba-2 block. Reads hidden_size, d_state, d_conv, expand, conv_backend, headdim, chunk_size, ssd_backend."""
    return Mamba2(
        **_shared(config),
        headdim=config.required("headdim"),
        chunk_size=config.required("chunk_size"),
        backend=config.required("ssd_backend"),
    )


def _shared(config) -> dict:
    """What both blocks are told, sizes by mamba-ssm's names."""
    shared = {key: config.required(key) for key in ("d_state", "d_conv", "expand", "conv_backend")}
    return {"d_model": config.required("hidden_size"), **shared}


def mamba(config) -> Mamba | Mamba2:
    """The block that `ssm` names.

    Raises:
        ValueError: if `ssm` is neither mamba1 nor mamba2, or asks for a start that Mamba-2 does not have.
    """
    ssm = config.required("ssm")
    if ssm not in SSMS:
        raise ValueError(f"ssm must be one of {', '.join(SSMS)}, got '{ssm}'")
    if ssm == "mamba2" and config.required("dt_init") != "paper":
        raise ValueError("dt_init: authors is for Mamba-1, whose dt_proj their code resets: set ssm to mamba1")
    return mamba1(config) if ssm == "mamba1" else mamba2(config)


def self_attention(config) -> SelfAttention:
    """Causal attention. Reads hidden_size, n_heads and attn_dropout_prob."""
    return SelfAttention(
        config.required("hidden_size"), config.required("n_heads"), config.required("attn_dropout_prob")
    )
