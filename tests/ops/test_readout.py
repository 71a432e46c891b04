import pytest
import torch

from recbole_ssd.ops.causal_conv1d import causal_conv1d
from recbole_ssd.ops.readout import prefix_readout
from recbole_ssd.ops.ssd import ssd

from .streams import assert_threads_change_no_bit, borders, error, run

LENGTHS = (1, 2, 3, 4, 5, 9, 1, 17, 70)
TOTAL = sum(LENGTHS)
BACKENDS = ("torch", "numba")
HEADS, HEADDIM, STATE = 4, 3, 5


def inputs_of(width, groups, length=TOTAL):
    f64 = {"dtype": torch.float64}
    channels = HEADS * HEADDIM + 2 * groups * STATE
    return [
        torch.randn(length, channels, **f64),
        torch.rand(length, HEADS, **f64) * 0.5,
        -torch.rand(HEADS, **f64) * 3,
        torch.randn(HEADS, **f64),
        torch.randn(channels, width, **f64),
        torch.randn(channels, **f64),
    ]


def readout(groups, lengths=LENGTHS, backend="torch"):
    cu = borders(lengths)
    return lambda *inputs: prefix_readout(*inputs, headdim=HEADDIM, ngroups=groups, cu_seqlens=cu, backend=backend)


def flipped_scan_of_every_prefix(groups):
    """The definition: flip each prefix, convolve, scan, and take the last step."""

    def last_step(xBC, dt, A, D, weight, bias):
        xBC, dt = xBC.flip(0)[None], dt.flip(0)[None]
        inner = HEADS * HEADDIM
        convolved = causal_conv1d(xBC, weight, bias, backend="torch")
        x, B, C = convolved.split([inner, groups * STATE, groups * STATE], dim=-1)
        parts = (
            x.unflatten(-1, (HEADS, -1)),
            dt,
            A,
            B.unflatten(-1, (groups, -1)),
            C.unflatten(-1, (groups, -1)),
        )
        return ssd(*parts, D, backend="reference")[0, -1]

    def every(xBC, dt, *shared):
        ends = [(begin, t) for begin, end in zip(cu, cu[1:]) for t in range(begin + 1, end + 1)]
        return torch.stack([last_step(xBC[begin:t], dt[begin:t], *shared) for begin, t in ends])

    cu = borders(LENGTHS).tolist()
    return every


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("width", [1, 2, 4, 7])
def test_readout_is_the_flipped_scan_of_every_prefix(width, groups):
    inputs = inputs_of(width, groups)
    dy = torch.randn(TOTAL, HEADS, HEADDIM, dtype=torch.float64)
    truth = run(flipped_scan_of_every_prefix(groups), inputs, dy)
    for backend in BACKENDS:
        for got, want in zip(run(readout(groups, backend=backend), inputs, dy), truth):
            assert error(got, want) < 1e-12, backend


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend):
    inputs = [t.requires_grad_() for t in inputs_of(4, 1, length=10)]
    assert torch.autograd.gradcheck(readout(1, (2, 1, 7), backend), inputs)


def test_numba_takes_D_by_channel_too():
    inputs, dy = inputs_of(4, 2), torch.randn(TOTAL, HEADS, HEADDIM, dtype=torch.float64)
    inputs[3] = torch.randn(HEADS, HEADDIM, dtype=torch.float64)
    for got, want in zip(run(readout(2, backend="numba"), inputs, dy), run(readout(2), inputs, dy), strict=True):
        assert error(got, want) < 1e-12


def test_threads_change_no_bit_of_numba():
    lengths = (300, 7, 280, 260, 1, 500)
    dy = torch.randn(sum(lengths), HEADS, HEADDIM)
    assert_threads_change_no_bit(readout(1, lengths, "numba"), inputs_of(4, 1, sum(lengths)), dy)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("changed", ["future", "neighbour"])
def test_nothing_leaks_not_even_in_rounding(changed, backend):
    inputs = [t.float() for t in inputs_of(4, 1)]
    rows = slice(60, 112) if changed == "future" else slice(25, 42)  # the long segment's end, or the one before it
    mixed = [t.clone() for t in inputs]
    mixed[0][rows] = torch.randn_like(mixed[0][rows])
    mixed[1][rows] = torch.rand_like(mixed[1][rows])
    before, after = (readout(1, backend=backend)(*tensors) for tensors in (inputs, mixed))
    same = torch.ones(len(before), dtype=torch.bool)
    same[rows] = False
    assert torch.equal(before[same], after[same])
    assert not torch.equal(before[rows], after[rows])


@pytest.mark.parametrize("backend", BACKENDS)
def test_long_segment_stays_accurate_in_float32(backend):
    lengths = (3000, 20)
    inputs = inputs_of(4, 1, sum(lengths))
    truth = readout(1, lengths)(*inputs)
    assert error(readout(1, lengths, backend)(*(t.float() for t in inputs)).double(), truth) < 2e-6


def test_numba_stays_as_accurate_as_torch_on_a_long_history():
    lengths = (8000,)
    inputs, dy = inputs_of(4, 1, 8000), torch.rand(8000, HEADS, HEADDIM, dtype=torch.float64)
    truth = run(readout(1, lengths), inputs, dy)
    for got, plain, want in zip(
        *(run(readout(1, lengths, name), inputs, dy, torch.float32) for name in ("numba", "torch")), truth, strict=True
    ):
        assert error(got, want) <= max(2 * error(plain, want), 5e-7)


@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_shapes_are_refused_in_a_sentence(backend):
    def called(*inputs, groups=1, lengths=LENGTHS):
        return readout(groups, lengths, backend)(*inputs)

    xBC, dt, A, D, weight, bias = inputs_of(4, 1)
    with pytest.raises(ValueError, match="for these cu_seqlens and A, got"):
        called(xBC, dt, A, D, weight, bias, lengths=(3, 4))
    with pytest.raises(ValueError, match="for these cu_seqlens and A, got"):
        called(xBC, dt[:, 1:], A, D, weight, bias)
    with pytest.raises(ValueError, match="h be a multiple of ngroups, got 22 channels"):
        called(xBC, dt, A, D, weight, bias, groups=3)
    with pytest.raises(ValueError, match=r"weight must be \(22, K\)"):
        called(xBC, dt, A, D, weight, bias[1:])
