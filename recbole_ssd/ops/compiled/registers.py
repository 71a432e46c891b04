"""What a core does in its registers: a tile of a matrix product, and a square of numbers that is transposed.

numba has no vectors. LLVM makes some of a loop, but never a tile of sums, so both are written in its own instructions:
vectors of 64 bytes, which it takes apart where registers are shorter.

A tile is `rows` x `vectors` of sums. At each step k it takes the vectors of row k of b, and from each row of a one
number, spread over a vector:

    out[i : i + rows, j : j + columns]  (+)=  sum_k  a[i : i + rows, k] (outer) b[k, j : j + columns]

Where a and b hold int32, each is two numbers of bfloat16, of neighbouring k (`bfloat16.py`): CPUs that have the
instruction multiply and add both at once, in float32, which is twice as many operations.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic, overload

BYTES = 64  # of a vector
FEATURES = set(cpu_target.target_context.codegen().magic_tuple()[2].split(","))  # of the CPU that is compiled for
# Of a tile: with 32 registers of 64 bytes 16 hold sums; with 16 of 32 bytes 12 do, two for each vector.
ROWS, VECTORS = (8, 2) if "+avx512f" in FEATURES else (6, 1)
HAS_BFLOAT16, HAS_AMX = "+avx512bf16" in FEATURES, "+amx-bf16" in FEATURES


def lanes_of(x, size):
    """How many numbers of x make a vector of `size` bytes, one at least; inside a kernel."""


@overload(lanes_of)
def _lanes_of(x, size):
    number = x.dtype.bitwidth // 8  # known while it is compiled, unlike x.itemsize: nothing is divided
    return lambda x, size: max(1, size // number)


class _Matrix:
    """An array (m, n) of a kernel, whatever its strides, in the words of LLVM."""

    def __init__(self, context, builder, kind, value):
        array = context.make_array(kind)(context, builder, value)
        self.builder, self.number, self.data = builder, context.get_value_type(kind.dtype), array.data
        self.size = context.get_abi_sizeof(self.number)
        self.strides = cgutils.unpack_tuple(builder, array.strides)
        self.shape = cgutils.unpack_tuple(builder, array.shape)

    def at(self, i, j, lanes=1):
        """Where the vector that begins with [i, j] lies; i and j are LLVM's."""
        place = self.builder.add(self.builder.mul(i, self.strides[0]), self.builder.mul(j, self.strides[1]))
        return cgutils.pointer_add(self.builder, self.data, place, self.vector(lanes).as_pointer())

    def load(self, i, j, lanes=1):
        return self.builder.load(self.at(i, j, lanes), align=self.size)

    def store(self, vector, i, j):
        self.builder.store(vector, self.at(i, j, vector.type.count), align=self.size)

    def vector(self, lanes):
        return ir.VectorType(self.number, lanes)


def _shuffled(builder, a, b, lanes):
    """The vector of those lanes of a, and, counted on, of b."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), list(lanes)))


def _plus(builder, index, number):
    return builder.add(index, ir.Constant(index.type, number))


def _multiply_add(builder, left, right, total):
    """total + left * right, lane by lane; of pairs, both products are added."""
    kind, lanes = total.type, total.type.count
    if left.type.element == kind.element:
        name = f"llvm.fmuladd.v{lanes}f{32 if kind.element == ir.FloatType() else 64}"
        fused = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3), name)
        return builder.call(fused, [left, right, total])
    filled = [*range(lanes), *[0] * (BYTES // 4 - lanes)]  # the instruction has no form for a few numbers
    left, right, sums = (_shuffled(builder, x, x, filled) for x in (left, right, total))
    dot = ir.FunctionType(sums.type, [sums.type, left.type, left.type])
    dot = cgutils.get_or_insert_function(builder.module, dot, "llvm.x86.avx512bf16.dpbf16ps.512")
    sums = builder.call(dot, [sums, left, right])
    return _shuffled(builder, sums, sums, range(lanes))


def product_tile(rows: int, vectors: int, size: int):
    """An intrinsic (a, i, b, j, out, add): out = a b, or out += a b, for `rows` rows from i and the columns from j.

    Args:
        rows, vectors: of the tile.
        size: of a vector in bytes; one number at least. Those of b and out lie in one piece.
    """

    @intrinsic
    def tile(typing, a, i, b, j, out, add):
        def generate(context, builder, signature, values):
            a, b, out = (_Matrix(context, builder, signature.args[k], values[k]) for k in (0, 2, 4))
            i, j, add = values[1], values[3], values[5]
            lanes = max(1, size // out.size)
            across = [_plus(builder, j, v * lanes) for v in range(vectors)]
            down = [_plus(builder, i, r) for r in range(rows)]
            zeros = ir.Constant(out.vector(lanes), [0.0] * lanes)
            places = [(r, v) for r in range(rows) for v in range(vectors)]
            sums = {place: cgutils.alloca_once_value(builder, zeros) for place in places}
            with cgutils.for_range(builder, b.shape[0]) as step:
                row = [b.load(step.index, place, lanes) for place in across]
                for r in range(rows):
                    number = a.load(down[r], step.index)
                    number = _shuffled(builder, number, number, [0] * lanes)
                    for v in range(vectors):
                        total = _multiply_add(builder, number, row[v], builder.load(sums[r, v]))
                        builder.store(total, sums[r, v])
            for (r, v), total in sums.items():  # not added up from what is there: that would round more often
                before = builder.select(add, out.load(down[r], across[v], lanes), zeros)
                out.store(builder.fadd(before, builder.load(total)), down[r], across[v])
            return context.get_dummy_value()

        return types.void(a, i, b, j, out, add), generate

    return tile


@intrinsic
def transpose_square(typing, a, i, j, out):
    """out[j : j + n, i : i + n] = a[i : i + n, j : j + n].T, for as many n as a vector has; rows lie in one piece.

    Blocks of one number change places with their mirror image, then blocks of two, of four, ...
    """

    def generate(context, builder, signature, values):
        a, out = (_Matrix(context, builder, signature.args[k], values[k]) for k in (0, 3))
        i, j = values[1], values[2]
        n = BYTES // out.size
        rows = [a.load(_plus(builder, i, r), j, n) for r in range(n)]
        width = 1
        while width < n:
            upper = [lane + (n - width if lane & width else 0) for lane in range(n)]
            lower = [lane + (n if lane & width else width) for lane in range(n)]
            for r in range(n):
                if not r & width:
                    pair = rows[r], rows[r + width]
                    rows[r], rows[r + width] = (_shuffled(builder, *pair, lanes) for lanes in (upper, lower))
            width *= 2
        for r in range(n):
            out.store(rows[r], _plus(builder, j, r), i)
        return context.get_dummy_value()

    return types.void(a, i, j, out), generate
