import torch
import torch.nn.functional as F

from recbole_ssd.layers.split_linear import split_linear

SIZES = 5, 3, 1


def test_parts_and_gradients_are_those_of_one_product():
    x, weight = torch.randn(7, 4).double().requires_grad_(), torch.randn(sum(SIZES), 4).double().requires_grad_()
    parts, truth = split_linear(x, weight, SIZES), F.linear(x, weight)
    assert torch.allclose(torch.cat(parts, dim=1), truth)
    dy = torch.randn_like(truth)
    got = torch.autograd.grad(parts, (x, weight), dy.split(SIZES, dim=1))
    for here, there in zip(got, torch.autograd.grad(truth, (x, weight), dy), strict=True):
        assert torch.allclose(here, there)


def test_parts_are_contiguous_on_a_cpu_and_views_of_one_product_elsewhere():
    assert all(part.is_contiguous() for part in split_linear(torch.ones(7, 4), torch.ones(sum(SIZES), 4), SIZES))
    on_meta = split_linear(torch.ones(7, 4, device="meta"), torch.ones(sum(SIZES), 4, device="meta"), SIZES)
    assert [tuple(part.stride()) for part in on_meta] == [(sum(SIZES), 1)] * 3
