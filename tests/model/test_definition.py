"""Each model is the equations at the top of its file, written out here with its own modules."""

import math

import pytest
import torch
import torch.nn.functional as F

from .conftest import packed, random_histories

EPS = 1e-5
LENGTHS = [len(history) for history in random_histories()]


def stream_of(model):
    return model.stream(packed(random_histories()))


def feed_forward(ffn, x, activation):
    return F.layer_norm(
        ffn.w_2(activation(ffn.w_1(x))) + x, x.shape[-1:], ffn.LayerNorm.weight, ffn.LayerNorm.bias, EPS
    )


def post_norm(norm, x):
    return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, EPS)


def mamba4rec(model, items, segments):
    x = post_norm(model.LayerNorm, model.item_embedding.weight[items])
    for layer in model.layers:
        y = layer.mixer(x, segments)
        h = post_norm(layer.LayerNorm, y + x if len(model.layers) > 1 else y)
        x = feed_forward(layer.feed_forward, h, F.gelu)
    return x


def scaled(model, items, segments):
    """sqrt(d) E + P."""
    x = math.sqrt(16) * model.item_embedding.weight[items]
    if model.position.embedding is None:
        return x
    table = model.position.embedding.weight
    places = [min(t, len(table) - 1) for length in segments.lengths.tolist() for t in range(length)]
    return x + table[places]


def mambarec_mixer(model, items, segments):
    x = scaled(model, items, segments)
    for layer in model.layers:
        h = post_norm(layer.LayerNorm, layer.mixer(x, segments) + x)
        x = feed_forward(layer.feed_forward, h, F.relu)
    return x


def mambarec_full(model, items, segments):
    x = scaled(model, items, segments)
    if len(model.layers) == 1:
        return model.layers[0].mixer(x, segments)
    for layer in model.layers:
        x = post_norm(layer.LayerNorm, layer.mixer(x, segments) + x)
    return x


def moematrrec(model, items, segments):
    x = scaled(model, items, segments)
    for layer in model.layers:
        means = torch.cat([part.cumsum(0) / torch.arange(1, len(part) + 1)[:, None] for part in x.split(LENGTHS)])
        weights = layer.gate.proj(means).softmax(-1)
        attention = post_norm(layer.attention.LayerNorm, layer.attention.mixer(x, segments) + x)
        y = weights[:, :1] * layer.mamba(x, segments) + weights[:, 1:] * attention
        x = feed_forward(layer.feed_forward, y, F.relu)
    return x


DEFINITIONS = {
    "Mamba4Rec": (mamba4rec, {}),
    "Mamba4Rec, one layer": (mamba4rec, {"num_layers": 1}),
    "MambaRec": (mambarec_mixer, {}),
    "MambaRec, full": (mambarec_full, {"block": "full", "max_position": 20}),
    "RecMamba": (mambarec_full, {"loss_type": "CE"}),
    "MoEMaTrRec": (moematrrec, {"num_layers": 2, "max_position": 20}),
}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_model_is_its_equations(build, name):
    definition, settings = DEFINITIONS[name]
    model = build(name.partition(",")[0], layer_norm_eps=EPS, **settings).double()
    stream = stream_of(model)
    with torch.no_grad():
        want = definition(model, stream.items, stream.segments)
        torch.testing.assert_close(model.encode(stream), want, rtol=1e-11, atol=1e-12)


def test_dropout_comes_before_the_norm_of_mamba4recs_items(build):
    model = build("Mamba4Rec", dropout_prob=0.5, num_layers=1).train()
    torch.manual_seed(0)
    x = model.embed(stream_of(model))
    assert x.mean(-1).abs().max() < 1e-5, "a norm leaves every token with mean 0, dropout behind it would not"


def test_recmamba_is_a_preset_of_mambarec(build):
    preset = {"block": "full", "ssm": "mamba1", "num_layers": 1, "max_position": 2000}
    recmamba, mambarec = build("RecMamba", loss_type="CE"), build("MambaRec", **preset)
    histories = packed(random_histories())
    with torch.no_grad():
        assert torch.equal(recmamba.full_sort_predict(histories), mambarec.full_sort_predict(histories))
