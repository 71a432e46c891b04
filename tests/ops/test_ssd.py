import pytest
import torch

from recbole_ssd.ops import ssd_torch
from recbole_ssd.ops.packing import Segments
from recbole_ssd.ops.ssd import ssd

from .streams import LENGTHS, ORDERS, assert_threads_change_no_bit, borders, error, run, run_alone, ssd_inputs

SHAPES = {"one group": {}, "two groups": {"groups": 2}, "a group a head": {"groups": 4}}
ON_CPU = ("torch", "numba")
STEEP = {"decay": 16.0, "dt_max": 20.0}  # decays that overflow when they are factored


@pytest.fixture(params=ON_CPU)
def name(request):
    """A backend that runs on a CPU."""
    if request.param == "numba":
        pytest.importorskip("numba")
    return request.param


def backend(name, cu_seqlens, **kwargs):
    return lambda *inputs: ssd(*inputs, cu_seqlens=cu_seqlens, backend=name, **kwargs)


def assert_equal_to_recurrence(name, inputs, cu_seqlens, below=1e-12):
    dy = torch.randn_like(inputs[0])
    want = run(backend("reference", cu_seqlens), inputs, dy)
    for got, truth in zip(run(backend(name, cu_seqlens), inputs, dy), want, strict=True):
        assert error(got, truth) < below


@pytest.mark.parametrize("lengths", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("name", [*ON_CPU, "reference"], indirect=True)
def test_packed_equals_alone(name, lengths):
    inputs, cu = ssd_inputs(sum(lengths)), borders(lengths)
    dy = torch.randn_like(inputs[0])
    packed, alone = run(backend(name, cu), inputs, dy), run_alone(backend("reference", None), inputs, dy, cu)
    for got, truth in zip(packed, alone, strict=True):
        assert error(got, truth) < 1e-12


@pytest.mark.parametrize("chunk_size", [None, 1, 16, 32, 100])
@pytest.mark.parametrize("shape", [*SHAPES.values(), STEEP], ids=[*SHAPES, "steep"])
def test_torch_equals_recurrence_in_float64(shape, chunk_size):
    inputs, cu = ssd_inputs(sum(LENGTHS), **shape), borders(LENGTHS)
    dy = torch.randn_like(inputs[0])
    truth = run(backend("reference", cu), inputs, dy)
    for got, want in zip(run(backend("torch", cu, chunk_size=chunk_size), inputs, dy), truth):
        assert error(got, want) < 1e-11


@pytest.mark.parametrize("shape", [*SHAPES.values(), STEEP], ids=[*SHAPES, "steep"])
def test_numba_equals_recurrence_in_float64(shape):
    pytest.importorskip("numba")
    assert_equal_to_recurrence("numba", ssd_inputs(sum(LENGTHS), **shape), borders(LENGTHS), below=1e-11)


@pytest.mark.parametrize(
    ("heads", "headdim", "groups", "state"),
    [(1, 1, 1, 1), (4, 3, 2, 5), (1, 300, 1, 7), (3, 100, 3, 2), (2, 5, 1, 130)],
)
def test_odd_sizes_equal_recurrence(name, heads, headdim, groups, state):
    lengths = (17, 1, 70, 32, 33)
    inputs = ssd_inputs(sum(lengths), heads=heads, headdim=headdim, groups=groups, state=state)
    assert_equal_to_recurrence(name, inputs, borders(lengths))


def test_one_long_segment_equals_recurrence(name):
    assert_equal_to_recurrence(name, ssd_inputs(3003, heads=2, headdim=2, state=3), borders([3000, 3]))


@pytest.mark.parametrize("shape", [*SHAPES.values(), STEEP], ids=[*SHAPES, "steep"])
def test_float32_is_as_accurate_as_recurrence(name, shape):
    cu = borders(LENGTHS)
    fast, recurrence = [], []
    for seed in range(3):
        torch.manual_seed(seed)
        inputs = ssd_inputs(sum(LENGTHS), seed=seed, **shape)
        dy = torch.randn_like(inputs[0])
        truth = run(backend("reference", cu), inputs, dy)
        for form, errors in ((name, fast), ("reference", recurrence)):
            got = run(backend(form, cu), inputs, dy, torch.float32)
            errors.append([error(*pair) for pair in zip(got, truth)])
    y, dx, ddt, dA, dB, dC, dD = torch.tensor(fast).median(0).values.tolist()
    limits = [2 * e for e in torch.tensor(recurrence).median(0).values.tolist()]
    assert y <= limits[0]
    assert all(grad <= max(limit, 1e-6) for grad, limit in zip((dx, ddt, dB, dC, dD), (*limits[1:3], *limits[4:])))
    # torch sums differences of nearly equal flows over whole chunks, which costs A's gradient a hundred ulps. How many
    # depends on the order in which a CPU adds: below 2e-5 on an Intel Xeon, 2.3e-5 on an AMD EPYC.
    assert dA <= {"torch": 5e-5, "numba": 1e-6}[name]


@pytest.mark.parametrize("per_token", [1.4, 1.5, 1.6, 1.86, 1.9, 2.5])
def test_float32_holds_where_the_decay_over_a_chunk_leaves_it(name, per_token):
    """e^-88 is its last normal number; the state before a chunk may be as large as that is small."""
    inputs, cu = ssd_inputs(200), borders([200])
    inputs[1], inputs[2] = torch.full_like(inputs[1], 0.1), torch.full_like(inputs[2], -10 * per_token)
    dy = torch.randn_like(inputs[0])
    truth = run(backend("reference", cu), inputs, dy)
    for part, got, want in zip(("y", "dx", "ddt", "dA"), run(backend(name, cu), inputs, dy, torch.float32), truth):
        assert error(got, want) < (1e-4 if part == "dA" else 3e-6), part


def test_tokens_without_a_memory_leave_the_gradient_of_A_alone(name):
    """What flows over them is nothing, and what rounding leaves of it meets a large dt."""
    inputs, cu = ssd_inputs(300), borders([200, 100])
    inputs[1] = torch.where(torch.rand_like(inputs[1]) < 0.1, 1000.0, 0.01).double()
    inputs[2] = torch.linspace(-16, -1, len(inputs[2])).double()
    dy = torch.randn_like(inputs[0])
    truth = run(backend("reference", cu), inputs, dy)
    assert error(run(backend(name, cu), inputs, dy, torch.float32)[3], truth[3]) < 1e-4


@pytest.mark.parametrize("length", [1, 63, 64, 65, 200])
def test_dense_batch_equals_recurrence(name, length):
    rows = [ssd_inputs(length, seed=seed) for seed in range(3)]
    shared = {2: rows[0][2], 5: rows[0][5]}
    inputs = [shared.get(i, torch.cat([row[i] for row in rows])) for i in range(6)]
    assert_equal_to_recurrence(name, inputs, None)


def test_gradcheck(name):
    inputs = [t.requires_grad_() for t in ssd_inputs(40, heads=2, headdim=2, state=3)]
    cu = borders([1, 35, 4])
    chunks = {} if name == "numba" else {"chunk_size": 4}
    assert torch.autograd.gradcheck(backend(name, cu, **chunks), inputs)


@pytest.mark.parametrize("shape", [{}, STEEP], ids=["gentle", "steep"])
def test_blocks_of_one_chunk_equal_recurrence(monkeypatch, shape):
    monkeypatch.setattr(ssd_torch, "ROOM", 1)
    lengths = (200, 3, 66, 190, 65, 200)  # chunks of one width and rank, with a state each
    inputs, cu = ssd_inputs(sum(lengths), **shape), borders(lengths)
    dy = torch.randn_like(inputs[0])
    for got, want in zip(run(backend("torch", cu), inputs, dy), run(backend("reference", cu), inputs, dy)):
        assert error(got, want) < 1e-11


@pytest.mark.parametrize("shape", [{}, STEEP], ids=["gentle", "steep"])
def test_second_backward_repeats_the_first(name, shape):
    leaves, cu = [t.requires_grad_() for t in ssd_inputs(sum(LENGTHS), **shape)], borders(LENGTHS)
    y = ssd(*leaves, cu_seqlens=cu, backend=name)
    first, second = (torch.autograd.grad(y, leaves, torch.ones_like(y), retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, first, second))


def test_numba_gives_the_same_bits_whatever_the_number_of_threads():
    lengths = [700, *ORDERS["mixed"], 300, 5]
    inputs = ssd_inputs(sum(lengths), groups=2)
    assert_threads_change_no_bit(backend("numba", borders(lengths)), inputs, torch.randn_like(inputs[0]))


def test_columns_of_one_tensor_equal_separate_tensors(name):
    inputs, cu = ssd_inputs(sum(LENGTHS)), borders(LENGTHS)
    wide = torch.cat([inputs[i].flatten(2) for i in (0, 3, 4)], dim=2)
    x, B, C = (part.view_as(inputs[i]) for i, part in zip((0, 3, 4), wide.split([32, 16, 16], dim=2)))
    columns = [x, *inputs[1:3], B, C, inputs[5]]
    assert not x.is_contiguous()
    got, want = (ssd(*tensors, cu_seqlens=cu, backend=name) for tensors in (columns, inputs))
    assert torch.equal(got, want)


def test_skip_per_channel_and_no_skip(name):
    *inputs, D = ssd_inputs(sum(LENGTHS))
    cu, per_channel = borders(LENGTHS), torch.randn(4, 8, dtype=torch.float64)
    for skip in ([per_channel], []):
        assert_equal_to_recurrence(name, inputs + skip, cu)


@pytest.mark.parametrize("shape", [{}, STEEP], ids=["gentle", "steep"])
def test_changing_one_segment_leaves_all_others_bit_identical(name, shape):
    lengths = ORDERS["mixed"]
    cu = borders(lengths)
    inputs = [t.float() for t in ssd_inputs(sum(lengths), **shape)]
    other = [t.float() for t in ssd_inputs(sum(lengths), seed=1, **shape)]
    changed = slice(cu[2], cu[3])
    mixed = [t.clone() for t in inputs]
    for i in (0, 1, 3, 4):
        mixed[i][:, changed] = other[i][:, changed]
    before, after = (ssd(*t, cu_seqlens=cu, backend=name) for t in (inputs, mixed))
    same = torch.ones(sum(lengths), dtype=torch.bool)
    same[changed] = False
    assert torch.equal(before[:, same], after[:, same])
    assert not torch.equal(before[:, changed], after[:, changed])


@pytest.mark.parametrize("dt_max", [0.1, 20.0], ids=["gentle", "steep"])
def test_changing_the_future_leaves_the_past_bit_identical(name, dt_max):
    cu = borders([200])
    inputs = [t.float() for t in ssd_inputs(200)]
    mixed = [t.clone() for t in inputs]
    for i, t in enumerate(ssd_inputs(200, dt_max=dt_max, seed=1)):
        if t.dim() > 1:
            mixed[i][:, 150:] = t[:, 150:]
    before, after = (ssd(*t, cu_seqlens=cu, backend=name) for t in (inputs, mixed))
    assert torch.equal(before[:, :150], after[:, :150])
    assert not torch.equal(before[:, 150:], after[:, 150:])


def test_a_longer_future_leaves_the_past_of_numba_bit_identical():
    pytest.importorskip("numba")
    inputs = [t.float() for t in ssd_inputs(200)]
    whole = ssd(*inputs, backend="numba")
    for length in (17, 32, 40, 150):  # up to 16 the products have another shape
        shorter = [t[:, :length] if t.dim() > 2 else t for t in inputs]
        assert torch.equal(ssd(*shorter, backend="numba"), whole[:, :length])


def test_numba_has_chunks_of_its_own():
    pytest.importorskip("numba")
    inputs = [t.float() for t in ssd_inputs(10)]
    with pytest.raises(RuntimeError, match="chunks of their own"):
        ssd(*inputs, chunk_size=16, backend="numba")
    assert torch.equal(ssd(*inputs, chunk_size=16), ssd(*inputs, chunk_size=16, backend="torch"))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"backend": "cuda"}, "backends"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"cu_seqlens": torch.tensor([0, 5])}, r"\(1, 5"),
        ({"cu_seqlens": torch.tensor([0, 4, 4, 10])}, "empty"),
        ({"cu_seqlens": torch.tensor([1, 10])}, "start at 0"),
        ({"dt": torch.ones(1, 10, 3)}, "dt must have shape"),
        ({"D": torch.ones(3)}, "D must have shape"),
        ({"B": torch.ones(1, 10, 3, 16), "C": torch.ones(1, 10, 3, 16)}, "multiple"),
        ({"x": torch.ones(1, 10, 4, 8, dtype=torch.bfloat16)}, "float32 or float64"),
    ],
)
def test_wrong_input_gets_a_sentence(change, sentence):
    names = ("x", "dt", "A", "B", "C", "D")
    arguments = dict(zip(names, (t.float() for t in ssd_inputs(10)))) | change
    with pytest.raises(ValueError, match=sentence):
        ssd(**arguments)


def test_segments_are_read_once():
    segments = Segments(borders(LENGTHS))
    assert Segments.of(segments) is segments
