"""mamba-ssm and causal-conv1d as an oracle: their Python, imported where their compiled parts are missing."""

from __future__ import annotations

import contextlib
import importlib
import os
import subprocess
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from types import SimpleNamespace

import pytest
import torch

from tests.conftest import ROOT

PACKAGES = ("mamba_ssm", "causal_conv1d", "einops", "triton")
MISSING = [name for name in PACKAGES if find_spec(name) is None]
COMPILED = ("selective_scan_cuda", "causal_conv1d_cuda")
MODULES = {
    "conv": "causal_conv1d.causal_conv1d_interface",
    "scan": "mamba_ssm.ops.selective_scan_interface",
    "ssd": "mamba_ssm.ops.triton.ssd_combined",
    "minimal": "mamba_ssm.modules.ssd_minimal",
    "norm": "mamba_ssm.ops.triton.layernorm_gated",
    "mamba": "mamba_ssm.modules.mamba_simple",
    "mamba2": "mamba_ssm.modules.mamba2",
}


@contextlib.contextmanager
def their_modules():
    """Their modules by the names above. On leaving, `sys.modules` holds no module that was made up or half imported."""
    before = set(sys.modules)
    if "mamba_ssm" not in sys.modules:  # its __init__ imports Mamba-3, transformers and the compiled parts: left out
        sys.modules["mamba_ssm"] = module_from_spec(find_spec("mamba_ssm"))
    for name in (*COMPILED, "huggingface_hub"):
        if name not in sys.modules and find_spec(name) is None:
            sys.modules[name] = module_from_spec(ModuleSpec(name, None))
    hub = importlib.import_module("huggingface_hub")
    if not hasattr(hub, "PyTorchModelHubMixin"):  # a base class of Mamba2 that loads from the hub
        hub.PyTorchModelHubMixin = type("PyTorchModelHubMixin", (), {})
    try:
        yield SimpleNamespace(**{short: importlib.import_module(name) for short, name in MODULES.items()})
    finally:
        roots = {"mamba_ssm", "causal_conv1d", "huggingface_hub", *COMPILED}
        for name in set(sys.modules) - before:
            if name.split(".")[0] in roots:
                del sys.modules[name]


@pytest.fixture(scope="module")
def theirs():
    """Their modules, every kernel that needs a GPU replaced by the plain torch form that they ship beside it."""
    with their_modules() as modules, pytest.MonkeyPatch.context() as patch:
        scan, conv, norm = modules.scan.selective_scan_ref, modules.conv.causal_conv1d_ref, modules.norm.rms_norm_ref
        for user in (modules.scan, modules.mamba):
            patch.setattr(user, "selective_scan_fn", scan)
        for user in (modules.mamba, modules.mamba2, modules.ssd):
            patch.setattr(user, "causal_conv1d_fn", conv)
        for user in (modules.norm, modules.ssd):  # the first is what RMSNormGated calls
            patch.setattr(user, "rmsnorm_fn", norm)

        def chunk_scan(x, *args, chunk_size, seq_idx, cu_seqlens, return_final_states, return_varlen_states, **kwargs):
            assert seq_idx is None and cu_seqlens is None  # ssd_chunk_scan_combined_ref knows no segments,
            length = x.shape[1]  # and fails where the chunks do not fill the length: one chunk
            return modules.ssd.ssd_chunk_scan_combined_ref(x, *args, chunk_size=length, **kwargs)

        def split_conv1d_scan(*args, seq_idx, **kwargs):
            assert seq_idx is None  # nor does mamba_split_conv1d_scan_ref
            return modules.ssd.mamba_split_conv1d_scan_ref(*args, **kwargs)

        patch.setattr(modules.mamba2, "mamba_chunk_scan_combined", chunk_scan)
        patch.setattr(modules.mamba2, "mamba_split_conv1d_scan_combined", split_conv1d_scan)
        yield modules


@contextlib.contextmanager
def in_float64():
    """Their references compute in float32, by calls of `.float()`: here these give float64. Also a decorator."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        yield


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def interpreted(tmp_path):
    """interpreted(function, *arguments) is function(their modules, *arguments) with Triton's kernels run on the CPU.

    In a process of its own: TRITON_INTERPRET must be set before Triton is imported.
    """

    def call(function, *arguments):
        torch.save((function.__module__, function.__name__, arguments), tmp_path / "call.pt")
        # MAMBA_DETERMINISTIC leaves one configuration to each kernel, so that nothing is timed; see _answer
        environment = os.environ | {"TRITON_INTERPRET": "1", "MAMBA_DETERMINISTIC": "1"}
        command = [sys.executable, "-c", f"from {__name__} import _answer; _answer({str(tmp_path)!r})"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return torch.load(tmp_path / "result.pt")

    return call


def _answer(folder: str) -> None:
    torch.cuda.device = contextlib.nullcontext  # the kernels are launched inside `with torch.cuda.device(index)`
    torch.cuda.get_device_properties = lambda device: SimpleNamespace(multi_processor_count=1)
    module, function, arguments = torch.load(f"{folder}/call.pt")
    with their_modules() as modules:
        importlib.import_module("mamba_ssm.utils.determinism").set_deterministic_mode(False)  # sums as on a GPU
        result = getattr(importlib.import_module(module), function)(modules, *arguments)
    torch.save(result, f"{folder}/result.pt")
