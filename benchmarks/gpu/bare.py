"""Imports for a bare machine: the ops without RecBole, mamba-ssm without its compiled part, RecBole without the rest.

These modules enter `sys.modules` before anybody asks for them, each for a reason that its function gives.
"""

from __future__ import annotations

import sys
from functools import partial
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("recbole", "pandas", "dateutil", "pytz", "yaml", "tqdm", "colorlog", "colorama", "texttable")
TUNED_MS = 20


def ops_alone() -> None:
    """`recbole_ssd.ops` without `recbole_ssd/__init__.py`, which imports RecBole: an empty package of that name."""
    if "recbole_ssd" not in sys.modules:
        spec = ModuleSpec("recbole_ssd", None, is_package=True)
        spec.submodule_search_locations = [str(ROOT / "recbole_ssd")]
        sys.modules["recbole_ssd"] = module_from_spec(spec)


def mamba_ssm_alone() -> None:
    """mamba-ssm's Triton kernels where only its Python was carried: its `__init__` imports the compiled scan."""
    if find_spec("mamba_ssm") and find_spec("selective_scan_cuda") is None and "mamba_ssm" not in sys.modules:
        sys.modules["mamba_ssm"] = module_from_spec(find_spec("mamba_ssm"))


def quick_tuning(share: tuple[int, int] = (0, 1)) -> None:
    """Triton's tuner, which mamba-ssm's kernels use, times each variant for `TUNED_MS`, a fifth of what it takes else.

    Args:
        share: (k, n): of the variants of a kernel only the k-th and every n-th after it. So n processes compile all.
    """
    from triton.runtime import driver
    from triton.runtime.autotuner import Autotuner
    from triton.testing import do_bench

    driver.active.get_benchmarker = lambda: partial(do_bench, warmup=TUNED_MS // 4, rep=TUNED_MS)
    prune, (k, n) = Autotuner.prune_configs, share

    def part(self: Autotuner, kwargs: dict) -> list:
        variants = prune(self, kwargs)
        return variants[k::n] or variants[:1]

    Autotuner.prune_configs = part


def recbole_alone() -> None:
    """RecBole where SciPy, scikit-learn or TensorBoard is missing: it imports them, and no step of training uses them.

    Raises:
        SystemExit: with a sentence, where a package that training does use is missing.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise SystemExit(
            f"training needs RecBole and what it imports; not found: {', '.join(missing)}. benchmarks/README.md "
            "has the command that fetches the wheels; unpack them into a folder and put it on PYTHONPATH"
        )
    sys.path.insert(0, str(ROOT))
    if find_spec("scipy") is None:  # recbole/data/dataset/dataset.py: matrices for models that are not sequential
        _unused("scipy")
        _unused("scipy.sparse", "coo_matrix")
    if find_spec("sklearn") is None:  # recbole/evaluator/metrics.py: AUC, MAE and RMSE
        _unused("sklearn")
        _unused("sklearn.metrics", "auc", "mean_absolute_error", "mean_squared_error")
    if find_spec("tensorboard") is None:  # recbole/utils/utils.py
        _unused("torch.utils.tensorboard", "SummaryWriter")


def _unused(module: str, *names: str) -> None:
    """A module whose names can be imported; using one of them fails."""
    made = module_from_spec(ModuleSpec(module, None, is_package=True))
    vars(made).update(dict.fromkeys(names))
    sys.modules[module] = made
