"""Compiles kernels for GPUs that are not here, and reads what they will occupy.

In a process of its own: in the tests' process triton interprets its kernels, and those cannot be compiled. A test calls
`usages("recbole_ssd.ops.kernels.ssd", ...)`, which runs this file with the cases as JSON.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

CAPABILITIES = (80, 90)
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}  # bytes of shared memory a block may have


class Usage(NamedTuple):
    """What one kernel takes on one GPU: registers a thread, bytes of stack (spills), bytes of shared memory a block."""

    kernel: str
    capability: int
    registers: int
    stack: int
    shared: int


def usages(cases: list[dict]) -> list[Usage]:
    """Compiles every case for every capability.

    Args:
        cases: dicts of `module`, `kernel`, `arguments` (name -> a triton type such as "*bf16", "fp32", "i32", or the
            value of a constexpr), `num_warps` and `num_stages`.
    """
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.ops.kernels.compiler"]
    done = subprocess.run(command, input=json.dumps(cases), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [Usage(*fields) for fields in json.loads(done.stdout.splitlines()[-1])]


def _compile(case: dict, capability: int) -> Usage:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(import_module(case["module"]), case["kernel"])
    arguments, names = case["arguments"], kernel.arg_names
    assert set(names) == set(arguments), set(names) ^ set(arguments)
    constexprs = {p.name: arguments[p.name] for p in kernel.params if p.is_constexpr}
    signature = {name: "constexpr" if name in constexprs else arguments[name] for name in names}
    aligned = [i for i, name in enumerate(names) if str(signature[name]).startswith("*")]
    attrs = {(i,): [["tt.divisibility", 16]] for i in aligned}
    source = ASTSource(kernel, signature=signature, constexprs=constexprs, attrs=attrs)
    options = {key: case[key] for key in ("num_warps", "num_stages") if key in case}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, stack = _resources(compiled.asm["cubin"])
    return Usage(case["kernel"], capability, registers, stack, compiled.metadata.shared)


def _resources(cubin: bytes) -> tuple[int, int]:
    """(registers, bytes of stack) by the cuobjdump that triton brings."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        shown = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", shown.stdout).groups()
    return int(registers), int(stack)


if __name__ == "__main__":
    cases = json.load(sys.stdin)
    print(json.dumps([_compile(case, capability) for case in cases for capability in CAPABILITIES]))
