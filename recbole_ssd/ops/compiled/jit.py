"""How a kernel for CPUs is compiled, how its work is shared out, and the exponential that they all need.

A kernel goes through a segment from one end to the other, as the definitions of the ops do, and keeps what is on its
way in a core's cache: where torch makes a dozen passes over memory, it makes one. Segments are the unit of work.
Consecutive ones form blocks; what is summed over the whole stream, such as the gradient of a weight, is summed block by
block and then over the blocks, so that the number of threads does not change a bit of any result.

numba (https://numba.pydata.org) compiles with LLVM, no compiler is needed, and keeps what it compiled on the disk. Its
threads are torch's own where both use OpenMP; a pool of our own lost its cores to torch's idle threads, which spin.

What makes LLVM use vectors: rows that are contiguous; few arrays in one loop, or scratch of a constant row length, made
in the function that the loop is `inlined` into; ranges that count up, around the innermost loop too.
"""

from __future__ import annotations

import math
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Lock

import numba
import numpy as np
import torch
from numba import njit, types
from numba.extending import overload
from torch import Tensor

from ..backends import log_once
from ..packing import Segments
from . import support

BLOCK = 256  # tokens of a block, about: 50 microseconds of work
FEW = 32  # tokens that are summed up before their sum goes into one of float64


def _can_be_kept() -> bool:
    """False where numba finds no folder that it may write to; kernels are then compiled in every process."""
    try:
        njit(cache=True)(_can_be_kept)
    except RuntimeError:
        return False
    return True


OPTIONS = {
    "nogil": True,
    "cache": _can_be_kept(),
    "error_model": "numpy",  # a division checks nothing
    "fastmath": {"reassoc", "contract", "nsz"},  # sums in any order, so that they use vectors; NaN and inf stay
}
# What only kernels call: nothing is made to call it from Python, and nothing of it is kept. An eighth less to compile.
INNER = OPTIONS | {"cache": False, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
kernel = njit(**INNER)
bare = njit(_nrt=False, **INNER)  # makes no array, so that no references are counted, row by row


def loop(function):
    """Decorates a `bare` kernel, whose arrays lie apart where it writes to one: the innermost loops.

    LLVM, told so, compares no addresses before it takes vectors: a row of 32 numbers takes a fifth of the time. Around
    other loops it does harm.
    """
    dispatcher = bare(function)

    def apart(flags):
        if hasattr(flags, "noalias"):  # it is none of numba's public options
            flags.noalias = True
        return flags

    dispatcher._compiler._customize_flags = apart
    return dispatcher


inlined = njit(inline="always", **INNER)  # where LLVM must see that rows of one scratch array are apart
parallel_kernel = njit(parallel=True, **OPTIONS)
_one_at_a_time = Lock()  # numba's simplest threading layer ends the process when two threads enter it


class Work:
    """The segments of a stream, shared out.

    Attributes:
        n_blocks: blocks of consecutive segments.
        arrays: what a kernel takes, int64 each: `borders` of the segments, (S + 1,); `blocks`, the first segment of
            each block and the end; `order`, the numbers of the blocks, worker by worker; `workers`, where in `order`
            each worker begins, and the end. A kernel does
            `for b in order[workers[w]:workers[w + 1]]: for s in range(blocks[b], blocks[b + 1]): ...`
    """

    def __init__(self, borders: np.ndarray, threads: int):
        owner = borders[:-1] // BLOCK  # a block begins with the first segment that begins in another stretch of tokens
        begins = np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]])
        blocks = np.r_[begins, len(borders) - 1]
        self.n_blocks = len(begins)
        size, load = np.diff(borders[blocks]), np.zeros(threads, np.int64)
        shares: list[list[int]] = [[] for _ in range(threads)]
        for block in np.argsort(-size, kind="stable"):  # the largest first, each to whom has least
            lightest = int(load.argmin())
            shares[lightest].append(block)
            load[lightest] += size[block]
        workers = np.cumsum([0, *map(len, shares)])
        self.arrays = borders, blocks, np.array(sum(shares, []), np.int64), workers

    @classmethod
    def of(cls, segments: Segments) -> Work:
        """The work of a stream for as many threads as torch uses."""
        threads = _threads()
        key = "work", threads
        if key not in segments.layouts:
            segments.layouts[key] = cls(segments.borders.numpy().astype(np.int64), threads)
        return segments.layouts[key]


def _threads() -> int:
    """As many as torch uses, if numba has them."""
    return min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)


def launch(kernel, *arguments) -> None:
    """Calls a parallel kernel with torch's number of threads; tensors, alone or in tuples, become arrays, uncopied."""
    if not kernel.overloads:  # its first call in this process
        support.started = True
        _forget_stale(kernel.stats.cache_path)
        if not _is_kept(kernel):
            kept = "keeps them for later runs" if OPTIONS["cache"] else "can keep them nowhere: set NUMBA_CACHE_DIR"
            log_once(f"numba compiles kernels for this CPU, which takes most of a minute, and {kept}")
    arrays = _as_arrays(arguments)
    threads = torch.get_num_threads()
    with _one_at_a_time:
        numba.set_num_threads(_threads())
        if torch.get_num_threads() != threads:  # numba's OpenMP layer, when it starts, sets the number for both
            torch.set_num_threads(threads)
        kernel(*arrays)


def _as_arrays(arguments: tuple) -> tuple:
    found = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            argument = argument.detach().numpy()
        elif isinstance(argument, tuple):
            argument = _as_arrays(argument)
        found.append(argument)
    return tuple(found)


def _is_kept(kernel) -> bool:
    """Whether numba has compiled the kernel in an earlier process, for whatever types."""
    folder, name = kernel.stats.cache_path, kernel.py_func.__module__.rpartition(".")[2]
    return folder is not None and any(Path(folder).glob(f"{name}.{kernel.py_func.__name__}-*.nbi"))


@cache
def _forget_stale(folder: str | None) -> None:
    """Drops kernels in `folder` that are older than a file here: numba looks at the one of a kernel alone."""
    newest = max(file.stat().st_mtime for file in Path(__file__).parent.glob("*.py"))
    for index in Path(folder).glob("*.nbi") if folder else ():
        with suppress(OSError):  # another process was faster, or nothing can be written here
            if index.stat().st_mtime < newest:
                index.unlink()


def over_blocks(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum over blocks, (b, ...) -> (...): by numpy, whose order does not depend on the number of threads."""
    return torch.from_numpy(parts.numpy().sum(0)).to(dtype)


def flat(x: Tensor) -> tuple[np.ndarray, int]:
    """What x (T, c) spans in memory as one row of numbers, and how far apart in it two tokens are.

    Loops over a piece of such a row become vectors; over a row of an array that is a slice of columns they do not.
    """
    x = x.detach() if x.stride(1) == 1 else x.detach().contiguous()
    tokens, channels = x.shape
    numbers = (tokens - 1) * x.stride(0) + channels if x.numel() else 0
    return x.as_strided((numbers,), (1,)).numpy(), x.stride(0)


def exp(x: float) -> float:
    """The exponential, for kernels: math.exp, and for float32 a form of which a loop makes vectors.

    x = n log 2 + r with a whole n and |r| <= log(2) / 2; e^r is its Taylor polynomial, whose rest is below float32's
    rounding; 2^n is made of bits. Off by an ulp at most. x is kept above -87, where float32's normal numbers end.
    """
    return math.exp(x)


# Not `reassoc` as in kernels: r is what rounding leaves of two differences.
@overload(exp, jit_options={"fastmath": {"contract"}, "error_model": "numpy"})
def _exp(x):
    if x != types.float32:
        return lambda x: math.exp(x)
    per_octave, low, high = np.float32(1 / math.log(2)), np.float32(-87), np.float32(88)
    octave = np.float32(0.693359375)  # log 2 to ten bits: n times it is exact
    rest = np.float32(math.log(2) - 0.693359375)
    round_to_whole = np.float32(1.5 * 2**23)
    c2, c3, c4, c5, c6, c7 = (np.float32(1 / math.factorial(k)) for k in range(2, 8))
    one, mantissa, bias = np.float32(1), np.int32(23), np.int32(127)

    def exp_of_float32(x):
        x = min(max(x, low), high)
        n = (x * per_octave + round_to_whole) - round_to_whole
        r = (x - n * octave) - n * rest
        power = ((((c7 * r + c6) * r + c5) * r + c4) * r + c3) * r + c2
        return ((power * r + one) * r + one) * np.int32((np.int32(n) + bias) << mantissa).view(np.float32)

    return exp_of_float32


def sigmoid(x: float) -> float:
    """1 / (1 + e^-x), for kernels, in the precision of x."""
    return 1 / (1 + math.exp(-x))


@overload(sigmoid, jit_options={"fastmath": {"contract"}, "error_model": "numpy"})
def _sigmoid(x):
    one = np.float32(1) if x == types.float32 else 1.0
    return lambda x: one / (one + exp(-x))
