import pytest
import torch

from recbole_ssd.ops.gated_rms_norm import gated_rms_norm

from .streams import error, run


@pytest.mark.parametrize("groups", [1, 3])
def test_equals_its_definition(groups):
    def definition(y, gate, weight):
        v = (y * gate).view(len(y), groups, -1)
        return (v / (v.square().mean(-1, keepdim=True) + 1e-5).sqrt()).flatten(1) * weight

    inputs = [torch.randn(*shape, dtype=torch.float64) for shape in ((10, 12), (10, 12), (12,))]
    dy = torch.randn(10, 12, dtype=torch.float64)
    ours = run(lambda *i: gated_rms_norm(*i, groups=groups), inputs, dy)
    for got, want in zip(ours, run(definition, inputs, dy)):
        assert error(got, want) < 1e-13
