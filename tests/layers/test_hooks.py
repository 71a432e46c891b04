import pytest
import torch
from torch import nn

from recbole_ssd.layers.add_norm import add_and_norm
from recbole_ssd.layers.dropout import Dropout
from recbole_ssd.layers.feed_forward import FeedForward
from recbole_ssd.layers.linear import split_linear


def feed_forward():
    block = FeedForward(8, 24, hidden_act="gelu", dropout_prob=0.3, layer_norm_eps=1e-12, inner_dropout_prob=0.4)
    return block, list(block.children()), lambda x: block(x)


def residual():
    norm, dropout = nn.LayerNorm(8), Dropout(0.3)
    return nn.ModuleList([norm, dropout]), [norm, dropout], lambda x: add_and_norm(2 * x, x, norm, dropout)


def projection():
    layer = nn.Linear(8, 9, bias=False)
    return layer, [layer], lambda x: torch.cat(split_linear(layer, x, [5, 3, 1]), dim=-1)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("listened", ["register_forward_hook", "register_forward_pre_hook"])
@pytest.mark.parametrize("make", [feed_forward, residual, projection])
def test_layers_that_somebody_listens_to_are_called_and_compute_the_same(make, listened, training):
    module, layers, call = make()
    module.double().train(training)
    x, seen = torch.randn(50, 8, dtype=torch.float64), []
    torch.manual_seed(1)
    silent = call(x)
    for layer in layers:
        hook = getattr(layer, listened)(lambda layer, *_: seen.append(layer))
        torch.manual_seed(1)
        torch.testing.assert_close(call(x), silent)
        hook.remove()
    assert seen == layers
