"""The epoch of packed models: RecBole's numbers, without its two reads of the device each step."""

from types import SimpleNamespace

import pytest
import torch
from recbole.trainer import Trainer as RecBoleTrainer

from recbole_ssd import Config, Trainer, create_dataset, data_preparation, get_model, init_seed
from recbole_ssd.data.prefetch import batches_on
from recbole_ssd.precision import Precision
from recbole_ssd.training_loop import READ_EVERY, train_epoch

CPU = torch.device("cpu")


class Looked(Exception):
    """The loop wants to read the sum of losses."""


@pytest.fixture
def build(run_folder, tiny):
    """A function that gives a trainer of SSD4Rec, its optimizer RecBole's own, and its loaders."""

    def make(**settings):
        config = Config("SSD4Rec", config_dict={**tiny, "epochs": 2, "train_batch_size": 128, **settings})
        init_seed(config["seed"], config["reproducibility"])
        loaders = data_preparation(config, create_dataset(config))
        trainer = Trainer(config, get_model("SSD4Rec")(config, loaders[0].dataset))
        trainer.optimizer = RecBoleTrainer._build_optimizer(trainer)
        return trainer, loaders

    return make


def recboles_loop(trainer, monkeypatch):
    monkeypatch.setattr(
        trainer,
        "_train_packed_epoch",
        lambda data, loss, show: RecBoleTrainer._train_epoch(trainer, data, trainer._epoch, loss, show),
    )


@pytest.mark.parametrize("clip", [None, {"max_norm": 0.01}], ids=["whole", "clipped"])
@pytest.mark.parametrize("learner", ["adam", "sgd"])
def test_two_epochs_equal_recboles_loop_bit_by_bit(build, monkeypatch, learner, clip):
    runs = []
    for loop in ("ours", "RecBole's"):
        trainer, (train, valid, _) = build(learner=learner, clip_grad_norm=clip)
        if loop != "ours":
            recboles_loop(trainer, monkeypatch)
        init_seed(1, True)
        trainer.fit(train, valid, verbose=False, saved=False)
        runs.append(trainer)
    ours, theirs = runs
    assert len(train) > 3 and list(ours.train_loss_dict) == [0, 1]
    assert ours.train_loss_dict == theirs.train_loss_dict
    assert all(type(loss) is float for loss in ours.train_loss_dict.values())
    assert [entry["result"] for entry in ours.valid_by_epoch] == [entry["result"] for entry in theirs.valid_by_epoch]
    for (name, one), other in zip(ours.model.named_parameters(), theirs.model.parameters(), strict=True):
        assert torch.equal(one, other), name


def network(device=CPU):
    """A small network without a random start, an optimizer of it, and its loss on one batch."""
    layer = torch.nn.Linear(4, 3, device=device)
    with torch.no_grad():
        layer.weight.copy_(torch.arange(12.0, device=device).view(3, 4) / 12)
        layer.bias.zero_()
    return layer, torch.optim.SGD(layer.parameters(), lr=0.01), lambda batch: layer(batch).pow(2).mean()


def test_reads_nothing_of_the_device_between_two_looks():
    """A tensor on `meta` has no values: `.item()`, `bool()`, `float()` and `.cpu()` of it are errors."""
    meta = torch.device("meta")
    layer, optimizer, loss = network(meta)
    batches = [torch.empty(5, 4, device=meta)] * (READ_EVERY + 3)

    def look(done, total):
        assert total.device == meta
        raise Looked(done)

    with pytest.raises(Looked, match=f"^{READ_EVERY}$"):
        train_epoch(batches, loss, optimizer, Precision(CPU, None), {"max_norm": 1}, look)


@pytest.mark.parametrize("read", [torch.Tensor.item, bool, float, torch.Tensor.cpu, torch.Tensor.tolist])
def test_a_loss_that_reads_the_device_is_noticed(read):
    """What makes the test above one that can fail."""
    layer, optimizer, loss = network(torch.device("meta"))
    batches = [torch.empty(5, 4, device="meta")]
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        train_epoch(batches, lambda batch: read(loss(batch).detach()), optimizer, Precision(CPU, None))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("amp_dtype", [None, "bfloat16", "float16"])
def test_cuda_sees_no_synchronisation_between_two_looks(amp_dtype):
    device = torch.device("cuda")
    layer, _, loss = network(device)
    optimizer = torch.optim.Adam(layer.parameters(), fused=True)
    batches = [torch.randn(5, 4, device=device) for _ in range(READ_EVERY - 1)]
    precision = Precision(device, amp_dtype)
    train_epoch(batches[:2], loss, optimizer, precision, {"max_norm": 1})  # what is made once may wait
    looks = []

    def look(done, total):
        torch.cuda.set_sync_debug_mode("default")
        looks.append(done)

    torch.cuda.set_sync_debug_mode("error")
    try:
        train_epoch(batches, loss, optimizer, precision, {"max_norm": 1}, look)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert looks == [READ_EVERY - 1]


@pytest.mark.parametrize(("steps", "looks"), [(1, [1]), (50, [50]), (120, [50, 100, 120])])
def test_looks_every_fifty_steps_and_after_the_last(steps, looks):
    layer, optimizer, loss = network()
    seen, sums = [], []
    batches = torch.randn(steps, 5, 4, generator=torch.Generator().manual_seed(0))

    def counted(batch):
        result = loss(batch)
        sums.append(result.item())
        return result

    total = train_epoch(batches, counted, optimizer, Precision(CPU, None), None, lambda *args: seen.append(args))
    assert [done for done, _ in seen] == looks
    assert [value.item() for _, value in seen] == [sum(sums[:done]) for done in looks]
    assert total == sum(sums) and type(total) is float


def test_a_loss_in_parts_gives_the_sum_of_each():
    results = []
    batches = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    for kind in ("parts", "whole"):
        layer, optimizer, loss = network()
        functions = {
            "parts": lambda batch, f=loss: (f(batch), 2 * f(batch)),
            "whole": lambda batch, f=loss: 3 * f(batch),
        }
        results.append((train_epoch(batches, functions[kind], optimizer, Precision(CPU, None)), layer.weight))
    (parts, in_parts), (whole, at_once) = results
    assert isinstance(parts, tuple) and parts == pytest.approx((whole / 3, 2 * whole / 3))
    torch.testing.assert_close(in_parts, at_once)


def test_the_bar_shows_the_loss(build, capsys):
    trainer, (train, _, _) = build(epochs=1)
    trainer.fit(train, saved=False, show_progress=True)
    shown = capsys.readouterr().err
    assert "Train     0" in shown and f"{len(train)}/{len(train)} " in shown
    assert f"loss {trainer.train_loss_dict[0] / len(train):.4f}" in shown


def test_the_model_takes_the_segments_that_came_with_the_batch(build):
    trainer, (train, _, _) = build()
    batch = next(batches_on(CPU, train))
    assert trainer.model.stream(batch).segments is batch.segments
    plain = trainer.model.stream(batch.to(CPU)).segments  # a copy has none: they are made again
    assert plain is not batch.segments and plain.borders.tolist() == batch.segments.borders.tolist()


def test_another_loss_function_is_taken(build):
    trainer, (train, _, _) = build()
    first = next(trainer.model.parameters())
    assert trainer._train_epoch(train, 0, loss_func=lambda batch: first.sum() * 0 + 2) == 2 * len(train)


def nan_at(step, model):
    """A loss that is NaN in one step and a plain number in the others."""
    calls = SimpleNamespace(count=0)
    weight = next(model.parameters())

    def loss(batch):
        calls.count += 1
        return weight.pow(2).mean() * (float("nan") if calls.count == step else 1.0)

    return loss, calls


@pytest.mark.parametrize("step", [1, 3])
def test_a_nan_anywhere_in_the_epoch_stops_before_anything_is_saved(build, monkeypatch, step):
    trainer, (train, valid, _) = build()
    loss, calls = nan_at(step, trainer.model)
    monkeypatch.setattr(trainer.model, "calculate_loss", loss)
    monkeypatch.setattr(trainer, "_save_checkpoint", lambda *args, **kwargs: pytest.fail("saved"))
    monkeypatch.setattr(trainer, "_valid_epoch", lambda *args, **kwargs: pytest.fail("validated"))
    with pytest.raises(ValueError, match=r"the training loss is not a number \(NaN\) in epoch 0: lower"):
        trainer.fit(train, valid, verbose=False)
    assert calls.count == len(train) > step


def test_a_nan_is_found_fifty_steps_later_at_the_latest(build):
    trainer, (train, _, _) = build(train_batch_size=1, supervision="prefixes")
    loss, calls = nan_at(READ_EVERY + 7, trainer.model)
    assert len(train) > 2 * READ_EVERY
    with pytest.raises(ValueError, match="NaN"):
        trainer._train_epoch(train, 0, loss_func=loss)
    assert calls.count == 2 * READ_EVERY


def test_weights_that_the_last_step_made_nan_are_never_saved(build, monkeypatch):
    trainer, (train, _, _) = build()
    weight = trainer.model.item_embedding.weight
    root = lambda batch: (weight * 0).sum().abs().sqrt()  # noqa: E731  its gradient is NaN, its value 0
    calls = iter([lambda batch: weight.sum()] * (len(train) - 1) + [root])
    monkeypatch.setattr(trainer.model, "calculate_loss", lambda batch: next(calls)(batch))
    monkeypatch.setattr(trainer, "_save_checkpoint", lambda *args, **kwargs: pytest.fail("saved"))
    with pytest.raises(ValueError, match=r"the weights are not numbers \(NaN\) after epoch 0"):
        trainer.fit(train, verbose=False)
