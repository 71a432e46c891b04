"""Which backend an op runs on: the one asked for, or with `auto` the best that can."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from logging import getLogger

from torch import Tensor

ON_CPU = ("numba",)


def choose(
    op: str,
    asked: str,
    x: Tensor,
    refusals: dict[str, Callable[[], str | None]],
    on_gpu: tuple[str, ...] = ("triton",),
) -> str:
    """The backend that `op` shall run; `torch`, which every op has, runs anywhere.

    Args:
        op: its name, for the sentences.
        asked: `auto`, `torch` or a key of `refusals`.
        x: a tensor of the op, for its device.
        refusals: for every other backend a function that says why it cannot run on these tensors, None when it can.
        on_gpu: the backends that `auto` tries on a GPU before `torch`, the fastest first; on a CPU it tries `numba`.

    Raises:
        ValueError: when there is no such backend.
        RuntimeError: when the backend asked for cannot run.

    >>> import torch
    >>> choose("scan", "auto", torch.ones(1), {"triton": lambda: "it is not installed"})
    'torch'
    >>> choose("scan", "triton", torch.ones(1), {"triton": lambda: "it is not installed"})
    Traceback (most recent call last):
    RuntimeError: scan cannot use the backend 'triton': it is not installed; 'torch' runs anywhere
    """
    if asked == "auto":
        return _best(op, {name: refusals[name] for name in (on_gpu if x.is_cuda else ON_CPU) if name in refusals})
    if asked != "torch" and asked not in refusals:
        raise ValueError(f"{op} has the backends auto, torch, {', '.join(refusals)}; got '{asked}'")
    if asked != "torch" and (reason := refusals[asked]()):
        raise RuntimeError(f"{op} cannot use the backend '{asked}': {reason}; 'torch' runs anywhere")
    return asked


def _best(op: str, refusals: dict[str, Callable[[], str | None]]) -> str:
    if not refusals:
        return "torch"
    passed_over = ""
    for name, refusal in refusals.items():
        reason = refusal()
        if reason is None:
            log_once(f"{op} runs on the backend '{name}'{passed_over}")
            return name
        passed_over += f"; '{name}' would be faster, but {reason}"
    log_once(f"{op} runs on the backend 'torch'{passed_over}")
    return "torch"


@cache
def log_once(sentence: str) -> None:
    """Logs what has not been logged since `log_once.cache_clear()`, which opening a log calls."""
    getLogger().info(sentence)
