import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numba import njit

from recbole_ssd.ops.compiled import jit, support
from recbole_ssd.ops.compiled.jit import BLOCK, OPTIONS, Work, exp, sigmoid


def output_of(script: str, **environment: str) -> str:
    command = [sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment).stdout


@njit(**OPTIONS)
def exp_and_sigmoid(x, e, s):
    for i in range(len(x)):
        e[i] = exp(x[i])
        s[i] = sigmoid(x[i])


@pytest.mark.parametrize(("dtype", "below"), [(np.float32, 1.2e-7), (np.float64, 1e-15)])
def test_exp_is_right_to_the_last_place(dtype, below):
    x = np.linspace(-87, 88, 20_001).astype(dtype)
    e, s = np.empty_like(x), np.empty_like(x)
    exp_and_sigmoid(x, e, s)
    truth = np.exp(x.astype(np.float64))
    assert (np.abs(e - truth) / truth).max() < below
    assert np.abs(s - truth / (1 + truth)).max() < below


def test_exp_keeps_nan_and_stays_finite_beyond_its_range():
    x = np.array([np.nan, np.inf, -np.inf, 0], np.float32)
    e, s = np.empty_like(x), np.empty_like(x)
    exp_and_sigmoid(x, e, s)
    assert np.isnan(e[0]) and np.isnan(s[0])
    assert np.isfinite(e[1:]).all() and e[2] < 1e-37 and e[3] == 1


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(
    "lengths", [[1], [5] * 400, [3000, 1, 1, 2, 700, 90, 200, 255, 257]], ids=["one", "short", "mixed"]
)
def test_work_is_every_segment_once_and_its_blocks_do_not_depend_on_threads(lengths, threads):
    work = Work(np.cumsum([0, *lengths]), threads)
    borders, blocks, order, workers = work.arrays
    assert sorted(order) == list(range(work.n_blocks)) and len(workers) == threads + 1
    assert workers[0] == 0 and workers[-1] == len(order) and (np.diff(workers) >= 0).all()
    assert blocks[0] == 0 and blocks[-1] == len(lengths) and (np.diff(blocks) > 0).all()
    assert (blocks == Work(borders, 1).arrays[1]).all()
    assert work.n_blocks <= 1 + sum(lengths) // BLOCK


def test_kernels_older_than_what_they_call_are_forgotten(tmp_path, monkeypatch):
    cache = tmp_path / "kept"  # wherever numba keeps them
    cache.mkdir()
    for name, seconds in (("old.nbi", 1), ("new.nbi", 3), ("old.pyc", 1)):
        (cache / name).touch()
        os.utime(cache / name, (seconds, seconds))
    (tmp_path / "jit.py").touch()
    os.utime(tmp_path / "jit.py", (2, 2))
    monkeypatch.setattr(jit, "__file__", str(tmp_path / "jit.py"))
    jit._forget_stale.__wrapped__(str(cache))
    assert sorted(Path(cache).iterdir()) == [cache / "new.nbi", cache / "old.pyc"]


def test_a_refusal_is_a_sentence(monkeypatch):
    assert support.refusal(torch.ones(1)) is None
    assert "not in torch.bfloat16" in support.refusal(torch.ones(1).bfloat16())
    assert "the tensors are on 'meta'" in support.refusal(torch.ones(1, device="meta"))
    monkeypatch.setattr(support, "find_spec", lambda name: None)
    assert "pip install numba" in support._missing.__wrapped__()
    monkeypatch.setattr(support, "find_spec", lambda name: "found")
    monkeypatch.setitem(sys.modules, "numba", None)
    assert "importing numba fails" in support._missing.__wrapped__()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_process_forked_after_kernels_ran_goes_without_them():
    script = (
        "import os, torch\n"
        "from recbole_ssd.ops.gated_rms_norm import gated_rms_norm\n"
        "x = torch.ones(9, 4)\n"
        "torch.set_num_threads(1)\n"
        "gated_rms_norm(x, x, x[0])\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    gated_rms_norm(x, x, x[0])\n"
        "    try: gated_rms_norm(x, x, x[0], backend='numba')\n"
        "    except RuntimeError as error: print(error, flush=True)\n"
        "    os._exit(0)\n"
        "print(os.waitpid(child, 0)[1])"
    )
    told, status = output_of(script).splitlines()
    assert "forked from one in which it had run: fork earlier, or spawn" in told and status == "0"


def test_without_a_folder_to_write_to_kernels_are_not_kept_and_work_all_the_same():
    script = (
        "import numba.core.caching as caching\n"
        "for kind in (caching.CacheImpl, caching.CompileResultCacheImpl): kind._locator_classes = []\n"
        "import torch\n"
        "from recbole_ssd.ops.compiled import jit\n"
        "from recbole_ssd.ops.gated_rms_norm import gated_rms_norm\n"
        "x = torch.ones(9, 4)\n"
        "print(jit.OPTIONS['cache'], gated_rms_norm(x, 2 * x, x[0], backend='numba').mean().round(decimals=3).item())"
    )
    assert output_of(script) == "False 1.0\n"


def test_the_first_call_leaves_torch_its_number_of_threads():
    script = (
        "import torch\n"
        "from recbole_ssd.ops.gated_rms_norm import gated_rms_norm\n"
        "x = torch.ones(9, 4)\n"
        "gated_rms_norm(x, x, x[0], backend='numba')\n"
        "print(torch.get_num_threads())"
    )
    assert output_of(script, OMP_NUM_THREADS="1", NUMBA_NUM_THREADS="2") == "1\n"
