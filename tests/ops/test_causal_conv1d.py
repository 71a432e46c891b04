from functools import partial
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F

from recbole_ssd.ops.causal_conv1d import causal_conv1d

from .streams import LENGTHS, ORDERS, assert_threads_change_no_bit, borders, error, run

with_numba = pytest.mark.skipif(find_spec("numba") is None, reason="numba is not installed")
on_cpu = pytest.mark.parametrize("backend", ["torch", pytest.param("numba", marks=with_numba)])


def inputs_of(length, width, channels=5):
    f64 = {"dtype": torch.float64}
    return [
        torch.randn(1, length, channels, **f64),
        torch.randn(channels, width, **f64),
        torch.randn(channels, **f64),
    ]


def torch_conv(cu, reverse):
    """torch's own depthwise convolution, one segment at a time."""

    def op(x, weight, bias):
        parts = []
        for begin, end in zip(cu, cu[1:]):
            part = x[:, begin:end].flip(1) if reverse else x[:, begin:end]
            padded = F.pad(part.transpose(1, 2), (weight.shape[1] - 1, 0))
            y = F.silu(F.conv1d(padded, weight[:, None], bias, groups=len(weight))).transpose(1, 2)
            parts.append(y.flip(1) if reverse else y)
        return torch.cat(parts, dim=1)

    return op


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("width", [1, 2, 4, 7])
@pytest.mark.parametrize("lengths", ORDERS.values(), ids=ORDERS)
@on_cpu
def test_equals_torch_segment_by_segment(backend, lengths, width, reverse):
    cu = borders(lengths)
    inputs = inputs_of(sum(lengths), width)
    dy = torch.randn_like(inputs[0])
    ours = run(lambda *i: causal_conv1d(*i, cu_seqlens=cu, reverse=reverse, backend=backend), inputs, dy)
    for got, want in zip(ours, run(torch_conv(cu, reverse), inputs, dy)):
        assert error(got, want) < 1e-13


@pytest.mark.parametrize("activation", ["silu", None])
@on_cpu
def test_float32_is_as_accurate_as_torchs_form(backend, activation):
    cu, inputs = borders([700, *LENGTHS]), inputs_of(700 + sum(LENGTHS), 4)
    dy = torch.randn_like(inputs[0])
    form = lambda name: partial(causal_conv1d, cu_seqlens=cu, activation=activation, backend=name)  # noqa: E731
    truth, plain = (run(form("torch"), inputs, dy, dtype) for dtype in (torch.float64, torch.float32))
    for got, other, want in zip(run(form(backend), inputs, dy, torch.float32), plain, truth, strict=True):
        assert error(got, want) <= max(2 * error(other, want), 5e-7)


@on_cpu
def test_stream_shorter_than_the_filter(backend):
    inputs = inputs_of(2, 7)
    dy = torch.randn_like(inputs[0])
    for got, want in zip(
        run(partial(causal_conv1d, backend=backend), inputs, dy), run(torch_conv(borders([2]), False), inputs, dy)
    ):
        assert error(got, want) < 1e-13


@on_cpu
def test_dense_batch_without_bias_and_activation(backend):
    x, weight, _ = inputs_of(24, 4)
    rows = x.view(3, 8, 5)
    want = F.conv1d(F.pad(rows.transpose(1, 2), (3, 0)), weight[:, None], groups=5).transpose(1, 2)
    assert error(causal_conv1d(rows, weight, activation=None, backend=backend), want) < 1e-13


@on_cpu
def test_a_slice_of_columns_equals_a_tensor_of_its_own(backend):
    cu, inputs = borders(LENGTHS), inputs_of(sum(LENGTHS), 4)
    wide, dy = torch.cat([inputs[0], inputs[0]], 2), torch.randn_like(inputs[0])
    op = partial(causal_conv1d, cu_seqlens=cu, backend=backend)
    sliced = run(lambda x, *others: op(x[..., 3:8], *others), [wide.roll(-2, 2), *inputs[1:]], dy)
    for got, want in zip((sliced[0], *sliced[2:]), (whole := run(op, inputs, dy))[:1] + whole[2:], strict=True):
        assert torch.equal(got, want)


def test_numba_gives_the_same_bits_whatever_the_number_of_threads():
    lengths = [700, *LENGTHS]
    inputs = inputs_of(sum(lengths), 4)
    op = partial(causal_conv1d, cu_seqlens=borders(lengths), backend="numba")
    assert_threads_change_no_bit(op, inputs, torch.randn_like(inputs[0]))


@on_cpu
def test_neighbours_stay_bit_identical(backend):
    cu, inputs = borders(LENGTHS), [t.float() for t in inputs_of(sum(LENGTHS), 4)]
    mixed = [t.clone() for t in inputs]
    mixed[0][:, 15:46] = 7.0  # the sixth segment
    before, after = (causal_conv1d(*i, cu_seqlens=cu, backend=backend) for i in (inputs, mixed))
    same = torch.ones(sum(LENGTHS), dtype=torch.bool)
    same[15:46] = False
    assert torch.equal(before[:, same], after[:, same])


def test_wrong_input_gets_a_sentence():
    x, weight, bias = inputs_of(9, 4)
    for change, sentence in (
        ({"weight": weight[:3]}, "weight"),
        ({"activation": "relu"}, "silu"),
        ({"cu_seqlens": borders([4])}, r"\(1, 4"),
        ({"backend": "cuda"}, "auto, torch, triton, numba, causal_conv1d; got 'cuda'"),
    ):
        with pytest.raises(ValueError, match=sentence):
            causal_conv1d(**({"x": x, "weight": weight, "bias": bias} | change))


def test_the_package_asked_for_without_a_gpu_gets_a_sentence():
    x, weight, bias = inputs_of(9, 4)
    with pytest.raises(RuntimeError, match="'causal_conv1d': it needs a CUDA device and the tensors are on cpu"):
        causal_conv1d(x, weight, bias, backend="causal_conv1d")
