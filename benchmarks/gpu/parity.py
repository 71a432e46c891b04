"""Is every kernel right: errors against float64, bits that must not move, the same numbers every time.

For each op, dtype and stream of ugly lengths the output and all gradients are held against the definition in float64
(the chunked form in float64 on the long stream), and beside them the plain torch form in the same dtype, on the same
rounded inputs. Every op is checked in a process of its own: a kernel that crashes takes no other one with it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from recbole_ssd.ops.packing import Segments

from .op import REFUSALS, Draw, Op
from .ops import table
from .streams import borders, ugly

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TIMES_PLAIN = 3.0  # a kernel sums in another order than the plain form, and rounds at other places
# What is allowed where the plain form happens to be better, as a share of a tensor's largest entry. float32: 32 units
# of roundoff, for sums over thousands of tokens take some; a product in tf32 has 8192. bfloat16: the plain form
# computes in float32 and rounds once. A kernel on the matrix units rounds an operand, its product with a decay, and the
# result: 4 units of roundoff. A wrong decay or a missing term is far beyond both.
ALLOWED = {"float32": 32 * 2.0**-24, "bfloat16": 4 * 2.0**-8}
SLOW_TOKENS = 2000  # up to here a form that takes a step for every token is the truth
AT_ONCE = 8  # processes on a GPU: most of their time is compilation on the host


def run(op: Op, inputs: dict, segments: Segments, backend: str, dtype, rounding, **options) -> dict[str, Tensor]:
    """The output and the gradient of every input by name, in `dtype`; its own gradient is drawn, and rounded to one."""
    leaves = {name: t.detach().clone().requires_grad_(t.is_floating_point()) for name, t in inputs.items()}
    y = op.run(leaves, segments, backend, dtype, **options)
    y.backward(Draw(y.device, seed=1).normal(*y.shape).to(rounding).to(y.dtype))
    grads = {f"d{name}": leaf.grad for name, leaf in leaves.items() if leaf.requires_grad}
    # nobody asked: one token has no part in A
    return {"y": y.detach()} | {n: torch.zeros_like(leaves[n[1:]]) if g is None else g for n, g in grads.items()}


def check(op: Op, backend: str, lengths: tuple, dtype: torch.dtype, device: torch.device) -> dict:
    """Errors by tensor (ours, plain torch's, the peer's), and whether bits of neighbours, past and repetition stay."""
    segments = Segments(borders(lengths, device))
    inputs = rounded(op, op.draw(segments.total, Draw(device, seed=0)), dtype)
    slow = segments.total <= SLOW_TOKENS
    double = {name: t.double() if t.is_floating_point() else t for name, t in inputs.items()}
    truth = run(op, double, segments, op.definition if slow else "torch", torch.float64, dtype)
    plain = run(op, inputs, segments, "torch", dtype, dtype)
    once = partial(run, op, segments=segments, backend=backend, dtype=dtype, rounding=dtype)
    with nan_where_nothing_is_written():
        got = once(inputs)
    again = once(inputs)
    theirs, said = peer(op, inputs, segments, dtype)
    return {
        "errors": {name: [error(t[name], truth[name]) if t else None for t in (got, plain, theirs)] for name in truth},
        "peer": said,
        "repeats": all(torch.equal(got[name], again[name]) for name in got),
        "neighbours stay": neighbours_stay(op, once, inputs, again, segments),
        "past stays": past_stays(op, once, inputs, again, segments),
    }


def peer(op: Op, inputs: dict, segments: Segments, dtype: torch.dtype) -> tuple[dict | None, str]:
    """What the first of the op's peers gives, and its name, or its refusal."""
    backend, options = op.peers[0]
    if backend == "torch":
        return None, "none"
    try:
        return run(op, inputs, segments, backend, dtype, dtype, **options), backend
    except REFUSALS as refusal:
        return None, str(refusal)


def rounded(op: Op, inputs: dict, dtype: torch.dtype) -> dict:
    return {name: t.to(dtype) if name in op.narrow else t for name, t in inputs.items()}


def error(got: Tensor, truth: Tensor) -> float:
    """Largest error as a share of the largest entry; where all is 0, the largest error itself."""
    largest = truth.abs().max().item()
    return (got.double() - truth).abs().max().item() / (largest or 1.0)


@contextmanager
def nan_where_nothing_is_written():
    """torch.empty gives NaN, so that what a kernel leaves unwritten does not look like yesterday's right answer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(False)


def replaced(op: Op, inputs: dict, begin: int, end: int) -> dict:
    """The inputs with other random tokens from begin to end."""
    tokens = len(inputs[op.per_token[0]])
    other, changed = op.draw(tokens, Draw(inputs[op.per_token[0]].device, seed=2)), dict(inputs)
    for name in op.per_token:
        changed[name] = inputs[name].clone()
        changed[name][begin:end] = other[name][begin:end].to(inputs[name].dtype)
    return changed


def neighbours_stay(op: Op, once, inputs: dict, before: dict, segments: Segments) -> bool | None:
    """Whether other tokens in one segment move no bit of the others' outputs and gradients."""
    if len(segments) == 1:
        return None
    begin, end = segments.borders[len(segments) // 2 :][:2].tolist()
    after = once(replaced(op, inputs, begin, end))
    names = [f"d{name}" for name in op.per_token] + ["y"]
    rows = [name for name in names if name in after and after[name].dim()]
    return all(_same_outside(before[name], after[name], begin, end) for name in rows)


def past_stays(op: Op, once, inputs: dict, before: dict, segments: Segments) -> bool | None:
    """Whether other tokens in the later half of the longest segment (`reverse`: the earlier) move nothing else."""
    longest = int(segments.borders.diff().argmax())
    begin, end = segments.borders[longest : longest + 2].tolist()
    if op.sees is None or end - begin == 1:
        return None
    middle = (begin + end) // 2
    changed = (middle, end) if op.sees == "past" else (begin, middle)
    return _same_outside(before["y"], once(replaced(op, inputs, *changed))["y"], *changed)


def _same_outside(a: Tensor, b: Tensor, begin: int, end: int) -> bool:
    return torch.equal(a[:begin], b[:begin]) and torch.equal(a[end:], b[end:])


def judged(record: dict, dtype: str) -> dict:
    """The record with the tensor that is nearest to its bound or beyond it, and whether all is well."""
    bounds = {name: max(TIMES_PLAIN * plain, ALLOWED[dtype]) for name, (_, plain, _) in record["errors"].items()}
    # NaN is the worst of all: it compares false with everything
    share = {name: e / bounds[name] if e == e else float("inf") for name, (e, _, _) in record["errors"].items()}
    worst = max(share, key=share.get)
    kept = all(record[what] is not False for what in ("repeats", "neighbours stay", "past stays"))
    figures = dict(zip(("error", "plain", "theirs"), record["errors"][worst]))
    return {**record, "worst": worst, **figures, "bound": bounds[worst], "passed": kept and share[worst] <= 1}


def check_op(name: str, backend: str, device: torch.device) -> Iterator[dict]:
    """Every dtype and stream of one op, each as soon as it is known."""
    small = device.type == "cpu"
    op = table(small)[name]
    for dtype in ("float32",) if small else op.dtypes:
        for stream, lengths in ugly(small).items():
            case = {"op": name, "backend": backend, "dtype": dtype, "stream": stream}
            try:
                found = judged(check(op, backend, lengths, DTYPES[dtype], device), dtype)
            except REFUSALS as refusal:
                found = refused(str(refusal))
            yield case | found


def refused(why: str) -> dict:
    return {"refused": why, "passed": False}


def in_its_own_process(arguments: list[str], deadline: float, name: str) -> list[dict]:
    """What `gpu_check.py parity --only=NAME` answers, or how it ended."""
    environment = os.environ | {"MAMBA_DETERMINISTIC": "1"}  # mamba-ssm tunes nothing then: a hundred kernels less
    script = Path(__file__).parents[1] / "gpu_check.py"
    command = [sys.executable, str(script), "parity", *arguments, f"--only={name}"]
    try:
        seconds = max(1.0, deadline - time.monotonic())
        child = subprocess.run(command, capture_output=True, timeout=seconds, env=environment)
    except subprocess.TimeoutExpired as late:
        return [*_records(late.stdout or b""), {"op": name, **refused("not finished when the time was up")}]
    ended = child.stderr.decode(errors="replace").strip()[-2000:] or f"ended with {child.returncode}"
    return _records(child.stdout) + ([{"op": name, **refused(ended)}] if child.returncode else [])


def _records(printed: bytes) -> list[dict]:
    """Those of whole lines: the last may have been cut."""
    return [json.loads(line) for line in printed.splitlines(keepends=True) if line[:1] == b"{" and line[-1:] == b"\n"]


def check_all(names: list[str], arguments: list[str], minutes: float, device: torch.device) -> list[dict]:
    """The records of all ops, in their order."""
    deadline = time.monotonic() + 60 * minutes
    with ThreadPoolExecutor(AT_ONCE if device.type == "cuda" else 1) as pool:
        answers = pool.map(partial(in_its_own_process, arguments, deadline), names)
        return [record for answer in answers for record in answer]
