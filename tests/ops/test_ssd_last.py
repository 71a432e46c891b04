import pytest
import torch

from recbole_ssd.ops.packing import Segments
from recbole_ssd.ops.ssd import ssd
from recbole_ssd.ops.ssd_last import ssd_last

from .streams import LENGTHS, ORDERS, borders, error, run, ssd_inputs


def last_of_all(cu, reverse):
    """The definition: the scan over the stream, or over the flipped one, read at the last token of every segment."""

    def op(*inputs):
        segments = Segments(cu)
        if reverse:
            inputs = [t[:, segments.flip] if t.dim() > 2 else t for t in inputs]
        return ssd(*inputs, cu_seqlens=segments, backend="reference")[0, segments.last]

    return op


def last_alone(cu, reverse):
    def op(x, dt, A, B, C, D):
        segments = Segments(cu)
        read = segments.first if reverse else segments.last
        return ssd_last(x[0], dt[0], A, B[0], C[0, read], D, cu_seqlens=segments, reverse=reverse)

    return op


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", ORDERS.values(), ids=ORDERS)
def test_equals_the_last_step_of_the_recurrence(lengths, reverse, groups):
    inputs, cu = ssd_inputs(sum(lengths), groups=groups), borders(lengths)
    dy = torch.randn(len(lengths), *inputs[0].shape[2:], dtype=torch.float64)
    truth = run(last_of_all(cu, reverse), inputs, dy)
    for got, want in zip(run(last_alone(cu, reverse), inputs, dy), truth, strict=True):
        assert error(got, want) < 1e-12


@pytest.mark.parametrize("decay", [{}, {"decay": 16.0, "dt_max": 20.0}], ids=["gentle", "steep"])
def test_is_as_accurate_as_the_recurrence_in_float32(decay):
    inputs, cu = ssd_inputs(sum(LENGTHS), **decay), borders(LENGTHS)
    dy = torch.randn(len(LENGTHS), *inputs[0].shape[2:], dtype=torch.float64)
    truth = run(last_of_all(cu, False), inputs, dy)
    ours, recurrence = (run(op(cu, False), inputs, dy, torch.float32) for op in (last_alone, last_of_all))
    for got, plain, want in zip(ours, recurrence, truth):
        assert error(got, want) <= max(2 * error(plain, want), 1e-6)


def test_changing_one_segment_leaves_all_others_bit_identical():
    cu = borders(ORDERS["mixed"])
    inputs = [t.float() for t in ssd_inputs(int(cu[-1]))]
    mixed = [t.clone() for t in inputs]
    for t in (mixed[0], mixed[1], mixed[3], mixed[4]):
        t[:, cu[2] : cu[3]] *= 2
    before, after = (last_alone(cu, False)(*t) for t in (inputs, mixed))
    same = torch.arange(len(cu) - 1) != 2
    assert torch.equal(before[same], after[same])
    assert not torch.equal(before[2], after[2])


def test_skip_per_channel_and_no_skip():
    *inputs, _ = ssd_inputs(9)
    for skip in (torch.randn(4, 8, dtype=torch.float64), None):
        got = last_alone(borders([4, 5]), False)(*inputs, skip)
        want = ssd(*inputs, skip, cu_seqlens=borders([4, 5]), backend="reference")[0, [3, 8]]
        assert error(got, want) < 1e-12


def test_one_row_of_C_a_segment():
    x, dt, A, B, C, D = (t[0] if t.dim() > 2 else t for t in ssd_inputs(9))
    with pytest.raises(ValueError, match="each of the 2 segments"):
        ssd_last(x, dt, A, B, C, D, cu_seqlens=borders([4, 5]))
