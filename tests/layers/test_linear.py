import torch
import torch.nn.functional as F
from torch import nn

from recbole_ssd.layers.linear import split_linear

SIZES = 5, 3, 1


def layer(**options):
    return nn.Linear(4, sum(SIZES), bias=False, **options)


def test_parts_and_gradients_are_those_of_one_product():
    projection, x = layer(dtype=torch.float64), torch.randn(7, 4).double().requires_grad_()
    parts, truth = split_linear(projection, x, SIZES), F.linear(x, projection.weight)
    assert torch.allclose(torch.cat(parts, dim=1), truth)
    dy = torch.randn_like(truth)
    got = torch.autograd.grad(parts, (x, projection.weight), dy.split(SIZES, dim=1))
    for here, there in zip(got, torch.autograd.grad(truth, (x, projection.weight), dy), strict=True):
        assert torch.allclose(here, there)


def test_parts_are_contiguous_on_a_cpu_and_views_of_one_product_elsewhere():
    assert all(part.is_contiguous() for part in split_linear(layer(), torch.ones(7, 4), SIZES))
    on_meta = split_linear(layer(device="meta"), torch.ones(7, 4, device="meta"), SIZES)
    assert [tuple(part.stride()) for part in on_meta] == [(sum(SIZES), 1)] * 3


def test_without_gradients_hooks_see_the_layer():
    projection, seen = layer(), []
    projection.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    with torch.no_grad():
        split_linear(projection, torch.ones(7, 4), SIZES)
    assert seen == [(7, sum(SIZES))]
