"""Batches where the model is: the loader's own, in its order, with borders that nobody reads back."""

from contextlib import contextmanager

import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_ssd.data import SequentialDataset, data_preparation
from recbole_ssd.data.prefetch import _one_ahead, batches_on, moved
from recbole_ssd.ops.packing import Segments
from tests.data.conftest import assert_same_interaction

CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.fixture
def loader(make_config, toy):
    config = make_config(packed=True, train_batch_size=32)
    return data_preparation(config, SequentialDataset(config))[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_on_a_cpu_the_batches_are_the_loaders(make_config, toy, workers):
    config = make_config(packed=True, train_batch_size=32, worker=workers)
    loader = data_preparation(config, SequentialDataset(config))[0]
    batches = list(batches_on(CPU, loader))
    assert len(batches) == len(loader) > 3
    for got, expected in zip(batches, loader, strict=True):
        assert_same_interaction(got, expected)
        assert got.segments.cu_seqlens.tolist() == got.segments.borders.tolist() == expected["cu_seqlens"].tolist()


def test_padded_batches_get_no_segments():
    batch = moved(Interaction({"item_id": torch.arange(3)}), CPU)
    assert batch["item_id"].tolist() == [0, 1, 2] and not hasattr(batch, "segments")


def test_segments_of_a_device_are_made_without_reading_it(loader):
    """`meta` has no values to read: the borders come from the host."""
    batch = next(iter(loader))
    there = moved(batch, META)
    assert {there[name].device for name in there.columns} == {META}
    assert there.segments.device == META and there.segments.borders.device == CPU
    assert there.segments.borders.tolist() == batch["cu_seqlens"].tolist()
    assert there.on_host is batch and batch["item_id_list"].device == CPU
    assert there.segments.total == len(batch["item_id_list"]) and len(there.segments) == len(batch["user_id"])


def test_segments_are_lost_with_a_copy_and_not_wrong(loader):
    batch = next(batches_on(CPU, loader))
    assert not hasattr(batch.to(CPU), "segments") and batch.to(CPU).columns == batch.columns


@pytest.mark.parametrize("borders", [torch.tensor([0, 3]), torch.empty(3, dtype=torch.int64, device="meta")])
def test_borders_that_are_no_copy_are_refused(borders):
    with pytest.raises(ValueError, match=r"borders must be cu_seqlens \(3,\) on the CPU, got"):
        Segments(torch.tensor([0, 3, 5]), borders)


@pytest.mark.parametrize("borders", [[1, 3, 5], [0, 3, 3]])
def test_bad_borders_are_found_on_the_host(borders):
    with pytest.raises(ValueError, match="must start at 0 and grow"):
        Segments(torch.empty(3, dtype=torch.int64, device="meta"), torch.tensor(borders))


@pytest.fixture
def cuda_calls(monkeypatch):
    """Streams and events that only tell the order in which they are used, tensors on `meta` in the GPU's place."""
    calls, current = [], ["computing"]

    class Stream:
        def __init__(self, device=None):
            self.copies = 0

        def record_event(self):
            self.copies += 1
            calls.append(("copied", self.copies - 1, current[-1]))
            return self.copies - 1

        def wait_event(self, event):
            calls.append(("wait", event, current[-1]))

    @contextmanager
    def stream(which):
        current.append("copying")
        yield
        current.pop()

    computing = Stream()
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: computing)
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda tensor, to: calls.append(("keep", tensor, to is computing))
    )
    return calls


def test_one_batch_is_copied_ahead_and_each_is_waited_for(cuda_calls):
    fields = [{"cu_seqlens": torch.tensor([0, k + 1], dtype=torch.int32), "item_id": torch.arange(k)} for k in range(3)]
    for k, batch in enumerate(_one_ahead(META, map(Interaction, fields))):
        assert len(batch["item_id"]) == k
        cuda_calls.append(("train", k, None))
        kept = [tensor for what, tensor, right in cuda_calls if what == "keep" and right]
        for tensor in (*batch.interaction.values(), batch.segments.cu_seqlens):
            assert any(tensor is other for other in kept)  # or its memory is given away while it is still read
    order = [call for call in cuda_calls if call[0] != "keep"]
    assert order == [
        ("copied", 0, "copying"),
        ("copied", 1, "copying"),
        ("wait", 0, "computing"),
        ("train", 0, None),
        ("copied", 2, "copying"),
        ("wait", 1, "computing"),
        ("train", 1, None),
        ("wait", 2, "computing"),
        ("train", 2, None),
    ]


def test_nothing_is_copied_ahead_of_no_batch(cuda_calls):
    assert list(_one_ahead(META, [])) == [] and not cuda_calls


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_batches_are_the_loaders_and_nothing_waits(loader):
    device = torch.device("cuda")
    list(batches_on(device, loader))  # what is made once may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        batches = list(batches_on(device, loader))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for got, expected in zip(batches, loader, strict=True):
        assert {got[name].device.type for name in got.columns} == {"cuda"}
        assert_same_interaction(got.cpu(), expected)
        assert torch.equal(got.segments.cu_seqlens.cpu(), got.segments.borders)
