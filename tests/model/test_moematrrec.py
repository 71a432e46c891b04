import copy

import pytest
import torch

from .conftest import N_ITEMS, packed, random_histories


def targets_of(histories):
    return packed(histories, torch.randint(1, N_ITEMS, (sum(map(len, histories)),)))


def trained_on(model, histories):
    return model.train().calculate_loss(targets_of(histories))


@pytest.mark.parametrize("gate", ["running_mean", "token", "top1"])
def test_shares_of_both_experts_are_told_for_each_layer(build, gate):
    model = build("MoEMaTrRec", gate=gate, num_layers=2)
    trained_on(model, random_histories())
    figures = model.epoch_figures()
    assert list(figures) == [f"share_of_{expert}/layer_{n}" for n in (0, 1) for expert in ("mamba", "attention")]
    for n in (0, 1):
        shares = [figures[f"share_of_{expert}/layer_{n}"] for expert in ("mamba", "attention")]
        assert sum(shares) == pytest.approx(1) and min(shares) > 0


def test_balancing_loss_has_its_weight_and_is_top1s_alone(build):
    def loss(**settings):
        model = build("MoEMaTrRec", dropout_prob=0.0, attn_dropout_prob=0.0, **settings)
        torch.manual_seed(3)
        return trained_on(model, random_histories()).item(), model

    with_it, model = loss(gate="top1", balance_weight=0.5)
    without, _ = loss(gate="top1", balance_weight=0.0)
    torch.manual_seed(3)
    trained_gate = model.layers[0].gate
    super(type(model), model).calculate_loss(targets_of(random_histories()))
    assert with_it - without == pytest.approx(0.5 * trained_gate.take_balance().item(), rel=1e-3)
    assert loss(gate="token", balance_weight=0.5)[0] == loss(gate="token", balance_weight=0.0)[0]


def test_shares_belong_to_the_experts_they_name(build):
    model = build("MoEMaTrRec", gate="token")
    with torch.no_grad():
        model.layers[0].gate.proj.weight.zero_()
        model.layers[0].gate.proj.bias.copy_(torch.tensor([50.0, -50.0]))
        before = model.full_sort_predict(packed(random_histories()))
        for parameter in model.layers[0].mamba.parameters():
            parameter.mul_(0.5)
        assert not torch.allclose(model.full_sort_predict(packed(random_histories())), before, atol=1e-4)
    trained_on(model, random_histories())
    assert model.epoch_figures()["share_of_mamba/layer_0"] == pytest.approx(1)
    assert model.epoch_figures() == {}


def test_a_model_in_training_can_be_copied(build):
    model = build("MoEMaTrRec", gate="top1")
    trained_on(model, random_histories()).backward()
    copy.deepcopy(model)


def test_each_expert_is_heard(build):
    histories = packed(random_histories())
    with torch.no_grad():
        for expert in ("mamba", "attention"):
            model = build("MoEMaTrRec")
            before = model.full_sort_predict(histories)
            for parameter in getattr(model.layers[0], expert).parameters():
                parameter.mul_(0.5)
            assert not torch.allclose(model.full_sort_predict(histories), before, atol=1e-4), expert
