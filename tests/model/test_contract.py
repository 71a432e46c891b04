"""What every packed model owes its users. A new model is one more line in MODELS."""

import pytest
import torch
import torch.nn.functional as F

from recbole_ssd.data.prefetch import moved
from recbole_ssd.model import abstract_recommender
from recbole_ssd.ops.cross_entropy import linear_cross_entropy

from .broken import FORGETS_BORDERS, READS_THE_FUTURE
from .conftest import N_ITEMS, packed, padded, random_histories

MODELS = {
    "SSD4Rec": ("SSD4Rec", {}),
    "SSD4Rec, one layer": ("SSD4Rec", {"num_layers": 1, "norm_embedding": True}),
    "SSD4Rec, repeats": ("SSD4Rec", {"repeat_bias": True, "dropout_place": "residual"}),
    "SSD4Rec, forward only": ("SSD4Rec", {"bidirectional": "none"}),
    "SSD4Rec, flip": ("SSD4Rec", {"bidirectional": "flip", "supervision": "prefixes"}),
    "MambaRec": ("MambaRec", {}),
    "MambaRec, one bare block": ("MambaRec", {"block": "full", "num_layers": 1}),
    "MambaRec, three full blocks": ("MambaRec", {"block": "full", "num_layers": 3, "max_position": 20}),
    "MambaRec, Mamba-2": ("MambaRec", {"ssm": "mamba2"}),
    "MoEMaTrRec": ("MoEMaTrRec", {}),
    "MoEMaTrRec, token": ("MoEMaTrRec", {"gate": "token", "num_layers": 2, "max_position": None}),
    "MoEMaTrRec, top1": ("MoEMaTrRec", {"gate": "top1", "ssm": "mamba2"}),
    "Mamba4Rec": ("Mamba4Rec", {}),
    "Mamba4Rec, one layer": ("Mamba4Rec", {"num_layers": 1, "dt_init": "paper"}),
    "RecMamba": ("RecMamba", {"loss_type": "CE"}),
    "PackedSASRec": ("PackedSASRec", {}),
}
DROPOUT = ("dropout_prob", "hidden_dropout_prob", "attn_dropout_prob")
CAUSAL = {name: entry for name, entry in MODELS.items() if "flip" not in name}
SUPERVISED = {
    **{f"{name}, all positions": (*entry, "all_positions") for name, entry in CAUSAL.items()},
    **{f"{name}, prefixes": (*entry, "prefixes") for name, entry in MODELS.items()},
}


@pytest.fixture(params=MODELS.values(), ids=MODELS)
def model(request, build):
    name, settings = request.param
    return build(name, **settings)


def encode(model, histories):
    with torch.no_grad():
        return model.encode(model.stream(packed(histories)))


def moves_past_when_the_future_changes(model) -> bool:
    first = random_histories((70,))[0]
    second = first[:40] + random_histories((30,), seed=1)[0]
    before, after = encode(model, [first]), encode(model, [second])
    assert not torch.equal(before[40:], after[40:]), "the change itself must be felt"
    return not torch.equal(before[:40], after[:40])


def moves_neighbours(model) -> bool:
    histories = random_histories()
    changed = [histories[0], histories[1], random_histories((70,), seed=1)[0], *histories[3:]]
    with torch.no_grad():
        before, after = (model.full_sort_predict(packed(h)) for h in (histories, changed))
    assert not torch.equal(before[2], after[2]), "the change itself must be felt"
    others = [0, 1, 3, 4]
    return not torch.equal(before[others], after[others])


@pytest.mark.parametrize(("name", "settings"), CAUSAL.values(), ids=CAUSAL)
def test_the_future_never_moves_the_past(build, name, settings):
    assert not moves_past_when_the_future_changes(build(name, **settings))


def test_one_user_never_moves_another(model):
    assert not moves_neighbours(model)


@pytest.mark.parametrize("model_class", FORGETS_BORDERS)
def test_models_that_forget_borders_are_caught(build, model_class):
    assert moves_neighbours(build(model_class.__base__.__name__, model_class))


@pytest.mark.parametrize("model_class", READS_THE_FUTURE)
def test_models_that_read_the_future_are_caught(build, model_class):
    assert moves_past_when_the_future_changes(build(model_class.__base__.__name__, model_class))


def test_packed_padded_and_alone_give_the_same_scores(model):
    model, histories = model.double(), random_histories()
    with torch.no_grad():
        scores = model.full_sort_predict(packed(histories))
        torch.testing.assert_close(model.full_sort_predict(padded(histories)), scores, rtol=0, atol=0)
        alone = torch.cat([model.full_sort_predict(packed([history])) for history in histories])
    assert scores.shape == (len(histories), N_ITEMS)
    torch.testing.assert_close(alone, scores, rtol=1e-11, atol=1e-12)


def test_predict_is_a_column_of_full_sort_predict(model):
    histories, targets = random_histories(), torch.tensor([3, 1, 4, 1, 5])
    with torch.no_grad():
        scores = model.full_sort_predict(packed(histories))
        column = model.predict(packed(histories, targets))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(model.full_sort_predict(packed(histories)), scores)
            assert torch.equal(model.predict(packed(histories, targets)), column)
    torch.testing.assert_close(column, scores[torch.arange(5), targets], rtol=1e-4, atol=1e-5)
    assert scores.dtype == torch.float32


def test_last_tokens_are_those_of_all(model):
    stream = model.double().stream(packed(random_histories()))
    with torch.no_grad():
        last, every = model.encode(stream, last=True), model.encode(stream)
    torch.testing.assert_close(last, every[stream.segments.last], rtol=1e-10, atol=1e-11)


def test_order_matters(model):
    history = random_histories((9,))[0]
    swapped = [history[1], history[0], *history[2:]]
    assert not torch.allclose(encode(model, [history])[-1], encode(model, [swapped])[-1], atol=1e-4)


def test_save_and_load_give_identical_scores(model, build, tmp_path):
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    batch = packed(random_histories())
    with torch.no_grad():
        scores = model.full_sort_predict(batch)
        for parameter in model.parameters():
            parameter.add_(1.0)
        assert not torch.equal(model.full_sort_predict(batch), scores)
        model.load_state_dict(torch.load(tmp_path / "weights.pth", weights_only=True))
        assert torch.equal(model.full_sort_predict(batch), scores)


@pytest.mark.parametrize("loss_type", ["CE", "BPR", "BCE"])
@pytest.mark.parametrize(("name", "settings", "supervision"), SUPERVISED.values(), ids=SUPERVISED)
def test_gradients_reach_every_parameter(build, name, settings, supervision, loss_type):
    negatives = {} if loss_type == "CE" else {"train_neg_sample_args": {"distribution": "uniform", "sample_num": 2}}
    model = build(name, **{**settings, **negatives, "loss_type": loss_type, "supervision": supervision}).train()
    histories = random_histories((7, 1, 70, 2, 33) * 4)  # with top1 some of 20 prefixes end at either expert
    count = sum(map(len, histories)) if supervision == "all_positions" else len(histories)
    batch = packed(histories, torch.randint(1, N_ITEMS, (count,)), torch.randint(1, N_ITEMS, (count, 2)))
    loss = model.calculate_loss(batch)
    assert loss.shape == () and torch.isfinite(loss)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(("name", "settings"), CAUSAL.values(), ids=CAUSAL)
def test_both_supervisions_are_one_function(build, name, settings):
    """A pass over a history has the loss and the gradients of a pass over each of its prefixes."""
    exact = {"mask_ratio": 0.0, "balance_weight": 0.0, **dict.fromkeys(DROPOUT, 0.0)}
    model, histories = build(name, **exact, **settings).double().train(), random_histories((7, 1, 20, 2))
    targets = torch.randint(1, N_ITEMS, (sum(map(len, histories)),))
    gradients = []
    for batch in (histories, [history[:t] for history in histories for t in range(1, len(history) + 1)]):
        model.zero_grad()
        model.calculate_loss(packed(batch, targets)).backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for one, other in zip(*gradients):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_two_equal_steps_are_equal_to_the_bit(model):
    def gradients():
        torch.manual_seed(1)
        model.zero_grad()
        model.train().calculate_loss(packed(histories, torch.arange(1, 6))).backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    histories = random_histories()
    assert all(torch.equal(a, b) for a, b in zip(gradients(), gradients()))


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("SSD4Rec", {"bidirectional": "both"}, "'bidirectional' .* should be one of readout, flip, none"),
        ("SSD4Rec", {"mask_ratio": 1.0}, "mask_ratio"),
        ("SSD4Rec", {"headdim": 7}, "headdim"),
        ("SSD4Rec", {"loss_type": "MSE"}, "loss_type"),
        ("MambaRec", {"block": "half"}, "'block' .* should be one of full, mixer"),
        ("MambaRec", {"ssm": "mamba3"}, "'ssm' .* should be one of mamba1, mamba2"),
        ("MambaRec", {"ssm": "mamba2", "dt_init": "authors"}, "dt_init: authors is for Mamba-1"),
        ("MambaRec", {"hidden_act": "tanh"}, "hidden_act must be one of gelu, relu, silu"),
        ("Mamba4Rec", {"dt_init": "mine"}, "'dt_init' .* should be one of paper, authors"),
        (
            "Mamba4Rec",
            {"scan_backend": "fast"},
            "'scan_backend'.* should be one of auto, torch, numba, triton, mamba_ssm",
        ),
        ("Mamba4Rec", {"chunk_size": 16.5}, "chunk_size.* should be a whole number"),
        ("MoEMaTrRec", {"gate": "mean"}, "'gate' .* should be one of running_mean, token, top1"),
        ("MoEMaTrRec", {"balance_weight": -1}, "balance_weight"),
        ("PackedSASRec", {"n_heads": 3}, "n_heads"),
    ],
)
def test_wrong_settings_get_a_sentence(build, name, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        model = build(name, **settings)
        model.full_sort_predict(packed(random_histories()))


def some_targets(histories):
    return torch.randint(1, N_ITEMS, (sum(map(len, histories)),), generator=torch.Generator().manual_seed(0))


SCORES = [{}, {"cosine_temperature": 0.2}, {"label_smoothing": 0.1}, {"repeat_bias": True, "label_smoothing": 0.1}]


@pytest.mark.parametrize("settings", SCORES, ids=str)
def test_the_loss_is_the_cross_entropy_of_the_scores(build, settings):
    histories = random_histories()
    model = build("PackedSASRec", supervision="prefixes", **settings)
    targets = torch.tensor([histories[0][0], *range(1, len(histories))])  # the first is a repeat
    with torch.no_grad():
        scores = model.full_sort_predict(packed(histories))
        loss = model.calculate_loss(packed(histories, targets))
        one = model.predict(packed(histories, targets))
    smoothing = settings.get("label_smoothing", 0.0)
    torch.testing.assert_close(loss, F.cross_entropy(scores, targets, label_smoothing=smoothing))
    torch.testing.assert_close(one, scores[torch.arange(len(targets)), targets])
    if "cosine_temperature" in settings:
        assert scores.abs().max() <= 1 / 0.2 + 1e-5


def test_repeat_bias_moves_what_is_in_the_history_alone(build):
    model, histories = build("PackedSASRec", repeat_bias=True), random_histories()
    with torch.no_grad():
        before = model.full_sort_predict(packed(histories))
        model.repeat_bias += 0.3
        change = model.full_sort_predict(packed(histories)) - before
    for history, row in zip(histories, change, strict=True):
        torch.testing.assert_close(row[list(set(history))], torch.full((len(set(history)),), 3.0))
        row[history] = 0
        assert not row.any()


def test_what_was_seen_is_read_from_the_loaders_batch(build):
    """On `meta` there is nothing to read, as on a GPU without waiting for it."""
    model, batch = build("PackedSASRec", repeat_bias=True).to("meta"), packed(random_histories())
    stream = model.stream(moved(batch, torch.device("meta")))
    assert stream.items.is_meta and len(model._seen(stream, whole=False).places())
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        model._seen(stream._replace(items_on_host=stream.items), whole=False)


@pytest.mark.parametrize("loss_type", ["BPR", "BCE"])
def test_sampled_losses_are_those_of_the_scores(build, loss_type):
    histories = random_histories()
    model = build("PackedSASRec", repeat_bias=True, supervision="prefixes", loss_type=loss_type)
    targets = torch.tensor([histories[0][0], *range(1, len(histories))])  # the first is a repeat
    negatives = torch.tensor([8, histories[1][0], 9, 10, 11])  # and the second negative
    with torch.no_grad():
        scores = model.full_sort_predict(packed(histories))
        loss = model.calculate_loss(packed(histories, targets, negatives))
    rows = torch.arange(len(targets))
    good, bad = scores[rows, targets], scores[rows, negatives]
    parts = (good - bad,) if loss_type == "BPR" else (good, -bad)
    torch.testing.assert_close(loss, sum(-F.logsigmoid(part).mean() for part in parts))


@pytest.mark.parametrize("loss_type", ["BPR", "BCE"])
def test_sampled_losses_score_by_cosines_too(build, loss_type):
    histories = random_histories()
    targets = some_targets(histories)
    model = build("PackedSASRec", cosine_temperature=0.5, loss_type=loss_type, max_position=None)
    batch = packed(histories, targets, targets.flip(0))
    with torch.no_grad():
        before = model.calculate_loss(batch)
        model.item_embedding.weight[:] *= 3  # what embeds is normed too: no length of a vector matters
        torch.testing.assert_close(model.calculate_loss(batch), before, rtol=1e-4, atol=1e-5)


def test_loss_precision_and_label_smoothing_reach_the_loss(build, monkeypatch):
    asked = []

    def look(*args, **how):
        asked.append(how)
        return linear_cross_entropy(*args, **how)

    monkeypatch.setattr(abstract_recommender, "linear_cross_entropy", look)
    told = [
        {"label_smoothing": 0.0, "loss_precision": "float32"},
        {"label_smoothing": 0.1, "loss_precision": "bfloat16"},
    ]
    histories = random_histories()
    for settings in told:
        build("PackedSASRec", **settings).calculate_loss(packed(histories, some_targets(histories))).backward()
    assert [(how["label_smoothing"], how["precision"]) for how in asked] == [tuple(how.values()) for how in told]


GAPPED = {name: entry for name, entry in MODELS.items() if "," not in name}


def with_gaps(model, histories, gaps):
    with torch.no_grad():
        return model.encode(model.stream(packed(histories, gaps=gaps)))


@pytest.mark.parametrize(("name", "settings"), GAPPED.values(), ids=GAPPED)
def test_time_gaps_reach_the_later_tokens_of_their_history_alone(build, name, settings):
    model, histories = build(name, **settings, time_gaps=True), random_histories((30, 40))
    before, after = torch.zeros(70), torch.zeros(70)
    after[45] = 3600.0
    plain = encode(build(name, **settings), histories)
    assert torch.equal(with_gaps(model, histories, before), plain), "it starts as a model without them"
    assert torch.equal(with_gaps(model, histories, after), plain)
    torch.nn.init.normal_(model.time_gap.embedding.weight)
    one, other = with_gaps(model, histories, before), with_gaps(model, histories, after)
    assert torch.equal(one[:45], other[:45])
    assert not torch.equal(one[45:], other[45:])


def test_time_gaps_learn(build):
    histories = random_histories()
    total = sum(map(len, histories))
    model = build("SSD4Rec", time_gaps=True).train()
    gaps = 10.0 ** torch.arange(total).remainder(13)
    model.calculate_loss(packed(histories, some_targets(histories), gaps=gaps)).backward()
    octaves = torch.log2(gaps.double() + 1).long().unique()
    moved = model.time_gap.embedding.weight.grad.abs().sum(1).nonzero()[:, 0]
    assert torch.equal(moved, octaves) and len(octaves) == 13


def test_padded_rows_have_no_time_gaps(build):
    with pytest.raises(ValueError, match="'time_gaps' come with packed batches"):
        build(time_gaps=True).full_sort_predict(padded(random_histories()))
