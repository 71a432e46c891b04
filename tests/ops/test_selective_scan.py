import logging
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from recbole_ssd.ops import backends, selective_scan_mamba, selective_scan_torch
from recbole_ssd.ops import selective_scan as door
from recbole_ssd.ops.packing import Segments
from recbole_ssd.ops.selective_scan import selective_scan

from .streams import LENGTHS, ORDERS, assert_threads_change_no_bit, borders, error, run, run_alone

GENTLE, STEEP = {}, {"dt_max": 20.0}
PER_TOKEN = (0, 1, 3, 4)  # x, dt, B, C
ON_CPU = ("torch", "numba")


@pytest.fixture(params=ON_CPU)
def name(request):
    """A backend that runs on a CPU."""
    if request.param == "numba":
        pytest.importorskip("numba")
    return request.param


def inputs(length, channels=6, state=5, decay=16.0, dt_max=0.1, batch=1, seed=0):
    """x, dt, A, B, C, D in float64."""
    g = torch.Generator().manual_seed(seed)
    f64 = {"dtype": torch.float64, "generator": g}
    return [
        torch.randn(batch, length, channels, **f64),
        torch.rand(batch, length, channels, **f64) * (dt_max - dt_max / 100) + dt_max / 100,
        -0.1 - torch.rand(channels, state, **f64) * (decay - 0.1),
        torch.randn(batch, length, state, **f64),
        torch.randn(batch, length, state, **f64),
        torch.randn(channels, **f64),
    ]


def backend(name, cu_seqlens):
    return lambda *tensors: selective_scan(*tensors, cu_seqlens=cu_seqlens, backend=name)


def assert_equal_to_recurrence(name, cu_seqlens, tensors, below=1e-12):
    dy = torch.randn_like(tensors[0])
    want = run(backend("reference", cu_seqlens), tensors, dy)
    for got, truth in zip(run(backend(name, cu_seqlens), tensors, dy), want):
        assert error(got, truth) < below


@pytest.mark.parametrize("lengths", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("name", [*ON_CPU, "reference"], indirect=True)
def test_packed_equals_alone(name, lengths):
    tensors, cu = inputs(sum(lengths)), borders(lengths)
    dy = torch.randn_like(tensors[0])
    packed, alone = run(backend(name, cu), tensors, dy), run_alone(backend("reference", None), tensors, dy, cu)
    for got, truth in zip(packed, alone, strict=True):
        assert error(got, truth) < 1e-12


def test_reference_is_the_sum_over_the_past():
    x, dt, A, B, C, D = (t.squeeze(0) for t in inputs(7, batch=1))
    log_decay = (dt[..., None] * A).cumsum(0)  # (T, i, n)
    want = D * x
    for t in range(7):
        for s in range(t + 1):
            want[t] += ((log_decay[t] - log_decay[s]).exp() * B[s] * C[t]).sum(-1) * dt[s] * x[s]
    got = selective_scan(x[None], dt[None], A, B[None], C[None], D, backend="reference")[0]
    assert error(got, want) < 1e-12


@pytest.mark.parametrize("room", [1, 2000, 2**17])
@pytest.mark.parametrize("chunk", [1, 5, 16, 64])
@pytest.mark.parametrize("decay", [GENTLE, STEEP], ids=["gentle", "steep"])
def test_torch_equals_recurrence_in_float64(decay, chunk, room, monkeypatch):
    monkeypatch.setattr(selective_scan_torch, "CHUNK", chunk)
    monkeypatch.setattr(selective_scan_torch, "ROOM", room)
    assert_equal_to_recurrence("torch", borders(LENGTHS), inputs(sum(LENGTHS), **decay))


@pytest.mark.parametrize("decay", [GENTLE, STEEP], ids=["gentle", "steep"])
def test_numba_equals_recurrence_in_float64(decay):
    pytest.importorskip("numba")
    assert_equal_to_recurrence("numba", borders(LENGTHS), inputs(sum(LENGTHS), **decay))


@pytest.mark.parametrize(("channels", "state"), [(1, 1), (1, 128), (70, 1), (3, 128), (300, 6)])
def test_odd_sizes_equal_recurrence(name, channels, state):
    lengths = (17, 1, 40, 16)
    assert_equal_to_recurrence(name, borders(lengths), inputs(sum(lengths), channels, state))


@pytest.mark.parametrize("length", [1, 63, 64, 65, 200])
def test_dense_batch_equals_recurrence(name, length):
    assert_equal_to_recurrence(name, None, inputs(length, batch=3))


def test_one_long_segment_equals_recurrence(name):
    assert_equal_to_recurrence(name, borders([5000, 3]), inputs(5003, channels=2, state=3))


@pytest.mark.parametrize("decay", [GENTLE, STEEP], ids=["gentle", "steep"])
def test_float32_is_as_accurate_as_recurrence(name, decay):
    cu, fast, recurrence = borders(LENGTHS), [], []
    for seed in range(3):
        tensors = inputs(sum(LENGTHS), channels=16, state=16, seed=seed, **decay)
        dy = torch.randn_like(tensors[0])
        truth = run(backend("reference", cu), tensors, dy)
        for form, errors in ((name, fast), ("reference", recurrence)):
            got = run(backend(form, cu), tensors, dy, torch.float32)
            errors.append([error(*pair) for pair in zip(got, truth)])
    fast, recurrence = (torch.tensor(errors).median(0).values for errors in (fast, recurrence))
    assert (fast <= (2 * recurrence).clamp(min=1e-6)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_decay_is_finite_and_right(name, dtype):
    lengths = (300, 7, 64)
    x, dt, A, B, C, D = inputs(sum(lengths))
    dt = 10 ** (torch.rand_like(dt) * 10 - 6)  # with A = -1 from 1e-6 to 1e4
    tensors = (x, dt, -torch.ones_like(A), B, C, D)
    dy = torch.randn_like(x)
    truth = run(backend("reference", borders(lengths)), tensors, dy)
    for got, want in zip(run(backend(name, borders(lengths)), tensors, dy, dtype), truth):
        assert got.isfinite().all()
        assert error(got, want) < (1e-12 if dtype == torch.float64 else 1e-5)


def test_gradcheck(name):
    tensors = [t.requires_grad_() for t in inputs(40, channels=2, state=2)]
    assert torch.autograd.gradcheck(backend(name, borders([1, 35, 4])), tensors)


def test_no_skip(name):
    *tensors, _ = inputs(sum(LENGTHS))
    got, want = (backend(form, borders(LENGTHS))(*tensors) for form in (name, "reference"))
    assert error(got, want) < 1e-12


def run_float32(name, tensors, cu, dy):
    """y, dx, ddt, dB, dC to the bit."""
    results = run(backend(name, cu), tensors, dy, torch.float32)
    return [results[0], *(results[1 + i] for i in PER_TOKEN)]


@pytest.mark.parametrize("decay", [GENTLE, STEEP], ids=["gentle", "steep"])
def test_changing_one_segment_leaves_all_others_bit_identical(name, decay):
    lengths = ORDERS["mixed"]
    cu = borders(lengths)
    before, other = (inputs(sum(lengths), seed=seed, **decay) for seed in (0, 1))
    changed = slice(cu[2], cu[3])
    same = torch.ones(sum(lengths), dtype=torch.bool)
    same[changed] = False
    after = [t.clone() for t in before]
    for i in PER_TOKEN:
        after[i][:, changed] = other[i][:, changed]
    dy = torch.randn_like(before[0])
    other_dy = torch.where(same[:, None], dy, 2 * dy)
    for one, two in zip(run_float32(name, before, cu, dy), run_float32(name, after, cu, other_dy)):
        assert torch.equal(one[:, same], two[:, same])
        assert not torch.equal(one[:, changed], two[:, changed])


@pytest.mark.parametrize("cut", [150, 144, 1])
@pytest.mark.parametrize("dt_max", [0.1, 20.0], ids=["gentle", "steep"])
def test_changing_the_future_leaves_the_past_bit_identical(name, dt_max, cut):
    before, after = inputs(200), [t.clone() for t in inputs(200)]
    for i, t in enumerate(inputs(200, dt_max=dt_max, seed=1)):
        if i in PER_TOKEN:
            after[i][:, cut:] = t[:, cut:]
    before, after = ([t.float() for t in tensors] for tensors in (before, after))
    one, two = (backend(name, borders([200]))(*tensors) for tensors in (before, after))
    assert torch.equal(one[:, :cut], two[:, :cut])
    assert not torch.equal(one[:, cut:], two[:, cut:])


def test_gradients_are_deterministic_and_no_scratch_is_read_before_it_is_written(name):
    cu = borders(LENGTHS)
    tensors = inputs(sum(LENGTHS))
    dy = torch.randn_like(tensors[0])
    first = run(backend(name, cu), tensors, dy, torch.float32)
    torch.use_deterministic_algorithms(True)  # fills what is empty with NaN
    try:
        second = run(backend(name, cu), tensors, dy, torch.float32)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(*pair) for pair in zip(first, second))


def test_numba_gives_the_same_bits_whatever_the_number_of_threads():
    lengths = [700, *ORDERS["mixed"], 300, 5]
    tensors = inputs(sum(lengths), channels=20)
    assert_threads_change_no_bit(backend("numba", borders(lengths)), tensors, torch.randn_like(tensors[0]))


def test_numba_sums_a_long_stream_as_exactly_as_a_short_one():
    pytest.importorskip("numba")
    *tensors, dy = [*inputs(50000, channels=2, state=3), torch.ones(1, 50000, 2, dtype=torch.float64)]
    short, long = (backend(form, borders([50000])) for form in ("torch", "numba"))
    for got, truth in zip(run(long, tensors, dy, torch.float32), run(short, tensors, dy)):
        assert error(got, truth) < 1e-6


def test_backward_can_run_twice(name):
    tensors = [t.requires_grad_() for t in inputs(70)]
    y = backend(name, borders([50, 20]))(*tensors)
    dy = torch.randn_like(y)
    first, second = (torch.autograd.grad(y, tensors, dy, retain_graph=True) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, second))


class Largest(TorchDispatchMode):
    """The most numbers that any tensor made inside has."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        made = result if isinstance(result, (tuple, list)) else [result]
        self.numbers = max(
            [self.numbers, *(t.untyped_storage().nbytes() // t.itemsize for t in made if hasattr(t, "itemsize"))]
        )
        return result


def largest_tensor(name, lengths):
    tensors = [t.float().requires_grad_() for t in inputs(sum(lengths), channels=16, state=32)]
    with Largest() as largest:
        backend(name, borders(lengths))(*tensors).sum().backward()
    return largest.numbers


def test_no_tensor_has_a_state_per_token(name):
    assert largest_tensor(name, [20000, 300] + 500 * [20]) <= 30300 * 16 * 32 / 15
    assert largest_tensor("reference", [200, 100]) >= 300 * 16 * 32


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"backend": "cuda"}, "backends auto, torch"),
        ({"cu_seqlens": torch.tensor([0, 5])}, r"\(1, 5"),
        ({"cu_seqlens": torch.tensor([0, 4, 4, 10])}, "empty"),
        ({"x": torch.ones(10, 6)}, r"\(b, l, i\)"),
        ({"dt": torch.ones(1, 10, 1)}, "dt must have shape"),
        ({"A": torch.ones(5, 6)}, "A must have shape"),
        ({"C": torch.ones(1, 10, 6)}, "C must have shape"),
        ({"D": torch.ones(5)}, "D must have shape"),
        ({"B": torch.ones(1, 10, 5).double()}, "B must be torch.float32"),
        ({"x": torch.ones(1, 10, 6, dtype=torch.float16)}, "float32, float64 or bfloat16"),
    ],
)
def test_wrong_input_gets_a_sentence(change, sentence):
    names = ("x", "dt", "A", "B", "C", "D")
    arguments = dict(zip(names, (t.float() for t in inputs(10)))) | change
    with pytest.raises(ValueError, match=sentence):
        selective_scan(**arguments)


def test_mamba_ssm_is_refused_in_a_sentence():
    with pytest.raises(RuntimeError, match="it needs a CUDA device and the tensors are on cpu"):
        selective_scan(*inputs(10), backend="mamba_ssm")


def on_cuda(dtype=torch.float32):
    return SimpleNamespace(is_cuda=True, device="cuda:0", dtype=dtype)


@pytest.fixture
def kernel(monkeypatch):
    """What `selective_scan_fn` computes, in its layout, by the dense recurrence; its list gets the shapes of u."""

    def selective_scan_fn(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
        selective_scan_fn.shapes.append(tuple(u.shape))
        state, ys = torch.zeros(u.shape[0], *A.shape, dtype=u.dtype), []
        for t in range(u.shape[2]):
            added = (delta[:, :, t] * u[:, :, t])[..., None] * B[:, None, :, t]
            state = torch.exp(delta[:, :, t, None] * A) * state + added
            ys.append((state * C[:, None, :, t]).sum(-1))
        y = torch.stack(ys, dim=2)
        return y if D is None else y + D[:, None] * u

    selective_scan_fn.shapes = []
    monkeypatch.setattr(selective_scan_mamba, "load_kernel", lambda: (selective_scan_fn, None))
    monkeypatch.setattr(selective_scan_mamba, "refusal", lambda x, A: None)
    return selective_scan_fn


@pytest.mark.parametrize("slowest", [-1.0, -1e-3, 0.0], ids=["usual", "slow", "still"])
def test_adapter_equals_packed_reference(kernel, slowest):
    lengths = ORDERS["mixed"]
    tensors, cu = inputs(sum(lengths)), borders(lengths)
    tensors[2][:, 0] = slowest
    dy = torch.randn_like(tensors[0])
    want = run(backend("reference", cu), tensors, dy)
    for got, truth in zip(run(backend("mamba_ssm", cu), tensors, dy), want):
        assert error(got, truth) < 1e-12
    assert kernel.shapes == [(1, 6, sum(lengths) + len(lengths) - 1)]


def test_adapter_lets_no_neighbour_through(kernel):
    cu = borders([40, 7, 30])
    tensors = [t.float() for t in inputs(77)]
    tensors[2] = tensors[2] * 1e-3
    loud = [t.clone() for t in tensors]
    loud[0][:, :40] *= 1e6
    one, two = (selective_scan(*t, cu_seqlens=cu, backend="mamba_ssm") for t in (tensors, loud))
    assert torch.equal(one[:, 40:], two[:, 40:])
    assert not torch.equal(one[:, :40], two[:, :40])


def test_adapter_runs_a_dense_batch_without_separators(kernel):
    tensors = inputs(64, batch=3)
    got, want = (selective_scan(*tensors, backend=name) for name in ("mamba_ssm", "reference"))
    assert error(got, want) < 1e-12
    assert kernel.shapes == [(3, 6, 64)]


def test_auto_on_a_cpu_takes_numba_where_it_can(monkeypatch):
    A, x = torch.ones(6, 5), torch.ones(10, 6)
    monkeypatch.setattr(door.on_cpu, "_missing", lambda: None)
    assert door._choose("auto", x, A) == "numba"
    monkeypatch.setattr(door.on_cpu, "_missing", lambda: "it is not installed")
    assert door._choose("auto", x, A) == "torch"


def test_auto_on_cuda_takes_the_best_kernel_that_runs_and_says_so_once(monkeypatch, caplog):
    backends.log_once.cache_clear()
    A = torch.ones(6, 5)
    with caplog.at_level(logging.INFO):
        monkeypatch.setattr(selective_scan_mamba, "load_kernel", lambda: (print, None))
        assert [door._choose("auto", on_cuda(), A) for _ in range(2)] == ["mamba_ssm", "mamba_ssm"]
        assert door._choose("auto", on_cuda(torch.float64), A) == "torch"
        assert door._choose("auto", on_cuda(), torch.ones(6, 300)) == "torch"
        monkeypatch.setattr(selective_scan_mamba, "load_kernel", lambda: (None, "it is not there"))
        assert [door._choose("auto", on_cuda(), A) for _ in range(2)] == ["triton", "triton"]
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 4
    assert "'mamba_ssm'" in said[0] and "float64" in said[1] and "300" in said[2]
    assert "'triton'; 'mamba_ssm' would be faster, but it is not there" in said[3]


def test_a_missing_or_broken_package_is_named(monkeypatch):
    load = selective_scan_mamba.load_kernel.__wrapped__
    monkeypatch.setattr(selective_scan_mamba, "find_spec", lambda name: None)
    assert "pip install" in load()[1]
    monkeypatch.setattr(selective_scan_mamba, "find_spec", lambda name: "found")
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    assert "importing mamba_ssm fails" in load()[1]


def test_a_segments_is_planned_once(name):
    segments = Segments(borders(LENGTHS))
    for _ in range(2):
        backend(name, segments)(*inputs(sum(LENGTHS)))
    assert len(segments.layouts) == 1
