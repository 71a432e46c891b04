"""The readout is the authors' function: the flipped scan on every prefix, at all positions in one pass."""

import pytest
import torch

from recbole_ssd.model.ssd4rec import SSD4RecLayer

from .conftest import N_ITEMS, packed, random_histories

EXACT = {"num_layers": 1, "dropout_prob": 0.0, "mask_ratio": 0.0}


def pair(build, **settings):
    """The same weights twice: read out in one pass, and flipped prefix by prefix."""
    readout = build(**EXACT, **settings).double()
    flip = build(**EXACT, **settings, bidirectional="flip", supervision="prefixes").double()
    flip.load_state_dict(readout.state_dict())
    return readout, flip


def prefixes(histories):
    return [history[:t] for history in histories for t in range(1, len(history) + 1)]


@pytest.mark.parametrize("masked", [False, True])
def test_readout_equals_the_flipped_scan_on_every_prefix(build, masked):
    readout, flip = pair(build, beta=0.7)
    histories = random_histories()
    if masked:
        histories = [[0 if t % 3 == 0 else item for t, item in enumerate(history)] for history in histories]
    with torch.no_grad():
        got = readout.encode(readout.stream(packed(histories)))
        want = flip(flip.stream(packed(prefixes(histories))))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_one_pass_has_the_loss_and_gradient_of_all_prefixes(build):
    readout, flip = pair(build, repeat_bias=True)
    histories = random_histories()
    targets = torch.randint(1, N_ITEMS, (sum(map(len, histories)),))
    losses = [
        model.train().calculate_loss(packed(h, targets))
        for model, h in ((readout, histories), (flip, prefixes(histories)))
    ]
    torch.testing.assert_close(*losses, rtol=1e-13, atol=0)
    for loss in losses:
        loss.backward()
    for one, other in zip(readout.parameters(), flip.parameters()):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-10, atol=1e-13)


def test_the_backward_direction_is_felt(build):
    histories = packed(random_histories())
    with_it, without = build(beta=0.5), build(bidirectional="none")
    without.load_state_dict(with_it.state_dict())
    with torch.no_grad():
        assert not torch.allclose(with_it.full_sort_predict(histories), without.full_sort_predict(histories), atol=1e-3)


def test_mask_is_for_training_only_and_hides_inputs(build):
    model = build(mask_ratio=0.5, dropout_prob=0.0)
    batch = packed(random_histories())
    with torch.no_grad():
        assert torch.equal(model.full_sort_predict(batch), model.full_sort_predict(batch))
        model.train()
        assert not torch.equal(model.full_sort_predict(batch), model.full_sort_predict(batch))


def test_layer_refuses_an_unknown_direction():
    with pytest.raises(ValueError, match="readout, flip, none"):
        SSD4RecLayer(None, None, "sideways", 0.1, 0.0, "output", 1e-12)


@pytest.mark.parametrize(("place", "drops_scores"), [("output", True), ("residual", False)])
def test_dropout_place_decides_whether_the_state_that_scores_is_dropped(build, place, drops_scores):
    model = build(dropout_place=place, dropout_prob=0.5, mask_ratio=0.0, num_layers=1).train()
    batch = packed(random_histories())
    with torch.no_grad():
        first, second = (model.encode(model.stream(batch)) for _ in range(2))
    assert not torch.equal(first, second)
    assert bool((first == 0).float().mean() > 0.4) is drops_scores


def test_layer_refuses_an_unknown_place_of_dropout():
    with pytest.raises(ValueError, match="output, residual"):
        SSD4RecLayer(None, None, "none", 0.1, 0.0, "input", 1e-12)
