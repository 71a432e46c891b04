import logging
from types import SimpleNamespace

import pytest
import torch

from recbole_ssd.ops.backends import choose

GPU = SimpleNamespace(is_cuda=True)
CAN, CANNOT = {"fast": lambda: None}, {"fast": lambda: "it is Tuesday"}


def test_auto_is_the_best_that_can():
    assert choose("op", "auto", torch.ones(1), CAN, on_gpu=("fast",)) == "torch"
    assert choose("op", "auto", torch.ones(1), {"numba": lambda: None} | CAN, on_gpu=("fast",)) == "numba"
    assert choose("op", "auto", torch.ones(1), {"numba": lambda: "it is not installed"}) == "torch"
    assert choose("op", "auto", GPU, CAN, on_gpu=("fast",)) == "fast"
    assert choose("op", "auto", GPU, CANNOT, on_gpu=("fast",)) == "torch"
    assert choose("op", "auto", GPU, {"slow": lambda: None} | CAN, on_gpu=("fast", "slow")) == "fast"
    assert choose("op", "auto", GPU, CANNOT | {"slow": lambda: None}, on_gpu=("fast", "slow")) == "slow"
    assert choose("op", "auto", GPU, CAN, on_gpu=()) == "torch"


def test_a_backend_asked_for_by_name_runs_or_says_why_not():
    assert choose("op", "fast", GPU, CAN) == "fast"
    assert choose("op", "torch", GPU, CAN) == "torch"
    with pytest.raises(RuntimeError, match="op cannot use the backend 'fast': it is Tuesday; 'torch' runs anywhere"):
        choose("op", "fast", GPU, CANNOT)
    with pytest.raises(ValueError, match="op has the backends auto, torch, fast; got 'slow'"):
        choose("op", "slow", GPU, CAN)


def test_auto_says_once_what_it_took_and_why(caplog):
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            choose("scan", "auto", GPU, CANNOT | {"slow": lambda: None}, on_gpu=("fast", "slow"))
    assert caplog.messages == ["scan runs on the backend 'slow'; 'fast' would be faster, but it is Tuesday"]
