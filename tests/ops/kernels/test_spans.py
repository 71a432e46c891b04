import pytest
import torch

from recbole_ssd.ops.kernels.spans import STEPS, spans_of
from recbole_ssd.ops.packing import Segments

from ..streams import ORDERS, borders

CPU = torch.device("cpu")


@pytest.mark.parametrize("chunk", [1, 16, 64, 1000])
@pytest.mark.parametrize("lengths", ORDERS.values(), ids=ORDERS)
def test_spans_are_the_stream_in_few_pieces_of_at_most_two_chunks(lengths, chunk):
    plan = spans_of(Segments(borders(lengths)), CPU, chunk)
    begin, end, before, after, blocks = plan.table.unbind(1)
    assert begin[0] == 0 and end[-1] == sum(lengths) and torch.equal(begin[1:], end[:-1])
    assert (end - begin).max() <= max(1, 2 * chunk - 1)
    assert len(plan) <= sum(lengths) // chunk + 1
    counts = -(-(end - begin) // STEPS)
    assert torch.equal(blocks, counts.cumsum(0) - counts) and plan.blocks == counts.sum()


@pytest.mark.parametrize("lengths", ORDERS.values(), ids=ORDERS)
def test_a_span_knows_the_chunk_before_it_and_after_it(lengths):
    plan, first = spans_of(Segments(borders(lengths)), CPU, 16), borders(lengths).tolist()
    for begin, end, before, after, _ in plan.table.tolist():
        assert (before < 0) == (begin in first) and (after < 0) == (end in first)
        if before >= 0:
            assert plan.chunks[before].tolist() == [begin - 16, begin]
        if after >= 0:
            assert plan.chunks[after][0] == end


@pytest.mark.parametrize("lengths", ORDERS.values(), ids=ORDERS)
def test_chains_are_the_chunks_of_the_segments_that_were_cut(lengths):
    cu = borders(lengths)
    plan = spans_of(Segments(cu), CPU, 16)
    long = [(begin, end) for begin, end in zip(cu.tolist(), cu[1:].tolist()) if end - begin > 16]
    assert len(plan.chains) == len(long)
    for (row, count), (begin, end) in zip(plan.chains.tolist(), long):
        chunks = plan.chunks[row : row + count].tolist()
        assert chunks == [[start, min(start + 16, end)] for start in range(begin, end, 16)]


def test_every_token_knows_its_segment_and_its_place():
    segments = Segments(borders([3, 1, 40]))
    plan = spans_of(segments, CPU, 16)
    assert torch.equal(plan.position.long(), segments.position)
    assert torch.equal(plan.owner.long(), segments.number)


def test_a_stream_is_planned_once():
    segments = Segments(borders([3, 1, 40]))
    assert spans_of(segments, CPU) is spans_of(segments, CPU)
    assert spans_of(segments, CPU) is not spans_of(segments, CPU, 16)
