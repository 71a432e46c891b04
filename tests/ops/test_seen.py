import pytest
import torch

from recbole_ssd.ops.packing import Segments
from recbole_ssd.ops.seen import Seen

from .streams import seen_by


@pytest.mark.parametrize("whole", [False, True])
def test_what_was_seen_is_found_without_a_look_at_the_device(whole):
    """A tensor on `meta` has no values: whatever reads one is an error."""
    lengths, items = [1, 64, 2, 3, 290, 5], 301
    here, mask = seen_by(lengths, items, whole)
    stream = torch.randint(items, (sum(lengths),), generator=torch.Generator().manual_seed(3))
    borders = torch.tensor([0, *lengths]).cumsum(0)
    there = Seen(stream, Segments(borders.to("meta"), borders=borders), items, whole)
    assert there.count() == here.count() == mask.sum()
    asked = torch.zeros(len(mask), 2, dtype=torch.long)
    found, places = there.has(asked.to("meta")), there.places()
    assert found.device == places.device == torch.device("meta")
    assert (found.shape, places.shape) == (here.has(asked).shape, here.places().shape)
    (tile, *_), rows = there.tiles(50), slice(0, 4)
    assert [t.shape for t in tile.places(rows)] == [t.shape for t in here.tiles(50)[0].places(rows)]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("width", [50, 301, 512])
def test_entries_name_what_each_row_has_seen_tile_by_tile(width, whole):
    seen, mask = seen_by([1, 64, 2, 3, 290, 5], 301, whole)
    low, high, item = seen.entries(width)
    got = torch.zeros_like(mask)
    for tile in range(len(low)):
        for row in range(len(mask)):
            got[row, tile * width + item[low[tile, row] : high[tile, row]]] += 1
    assert torch.equal(got, mask)  # once each
