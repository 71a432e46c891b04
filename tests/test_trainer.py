"""The trainer: what it keeps beside RecBole's, and checkpoints as plain data."""

import pickle
from pathlib import Path

import pytest
import torch
from recbole.trainer import Trainer as RecBoleTrainer

from recbole_ssd import (
    Config,
    Trainer,
    create_dataset,
    data_preparation,
    get_model,
    get_trainer,
    init_seed,
    load_data_and_model,
)


@pytest.fixture
def build(run_folder, tiny):
    """A function that gives a trainer of GRU4Rec and its three loaders."""

    def make(model="GRU4Rec", **settings):
        config = Config(model, config_dict={**tiny, **settings})
        init_seed(config["seed"], config["reproducibility"])
        loaders = data_preparation(config, create_dataset(config))
        network = get_model(config["model"])(config, loaders[0].dataset)
        return get_trainer(config["MODEL_TYPE"], config["model"])(config, network), loaders

    return make


def test_tells_the_loader_each_epoch(build, monkeypatch):
    trainer, (train, valid, _) = build("SSD4Rec", epochs=3)
    told = []
    set_epoch = train.set_epoch
    monkeypatch.setattr(train, "set_epoch", lambda epoch: (told.append(epoch), set_epoch(epoch)))
    trainer.fit(train, valid, verbose=False)
    assert told == [0, 1, 2]
    assert len(trainer.epoch_s) == 3 and all(seconds > 0 for seconds in trainer.epoch_s)


def test_keeps_the_validation_curve(build):
    trainer, (train, valid, _) = build(epochs=4, eval_step=2)
    score, result = trainer.fit(train, valid, verbose=False)
    assert [entry["epoch"] for entry in trainer.valid_by_epoch] == [1, 3]
    seconds = [entry["seconds"] for entry in trainer.valid_by_epoch]
    assert 0 < seconds[0] < seconds[1]
    assert score == max(entry["result"]["ndcg@10"] for entry in trainer.valid_by_epoch)
    best = next(entry for entry in trainer.valid_by_epoch if entry["epoch"] == trainer.best_epoch)
    assert best["result"] == result


def test_logs_the_models_own_figures(build, monkeypatch, caplog):
    trainer, (train, _, _) = build()
    seen = []
    trainer.model.epoch_figures = lambda: {"gate": 0.25}
    monkeypatch.setattr(trainer.tensorboard, "add_scalar", lambda *args: seen.append(args))
    with caplog.at_level("INFO"):
        trainer.fit(train, saved=False)
    assert ("Model/gate", 0.25, 0) in seen
    assert "gate : 0.25" in caplog.text


def test_checkpoint_is_plain_data(build):
    trainer, (train, valid, _) = build()
    trainer.fit(train, valid, verbose=False)
    state = torch.load(trainer.saved_model_file, weights_only=True)
    assert state["config"] == trainer.config.given()
    assert state["epoch"] == trainer.best_epoch
    assert isinstance(state["best_valid_score"], float)


def test_checkpoint_keeps_what_is_no_parameter(build):
    trainer, (_, _, test) = build()
    trainer.model.other_parameter_name = ["history", "module"]
    trainer.model.history, trainer.model.module = torch.arange(3), trainer.model.emb_dropout
    trainer._save_checkpoint(0, verbose=False)
    trainer.model.history = None
    trainer.evaluate(test)
    assert trainer.model.history.tolist() == [0, 1, 2]
    trainer.model.history = object()
    with pytest.raises(ValueError, match="GRU4Rec keeps a object as 'history' in other_parameter_name"):
        trainer._save_checkpoint(0)


def test_recboles_own_evaluate_and_resume_read_the_checkpoint(build):
    trainer, (train, valid, test) = build()
    trainer.fit(train, valid, verbose=False)
    ours = trainer.evaluate(test)
    theirs, _ = build(epochs=2)
    plain = RecBoleTrainer(theirs.config, theirs.model)
    plain.eval_collector = trainer.eval_collector
    assert plain.evaluate(test, model_file=trainer.saved_model_file) == ours
    plain.resume_checkpoint(trainer.saved_model_file)
    assert plain.start_epoch == 1


def test_resume_goes_on_after_the_checkpoint(build):
    trainer, (train, valid, _) = build()
    trainer.fit(train, valid, verbose=False)
    later, (train, valid, _) = build(epochs=2)
    later.resume_checkpoint(trainer.saved_model_file)
    assert later.best_epoch == 0 and later.best_valid_result == dict(trainer.best_valid_result)
    later.fit(train, valid, verbose=False)
    assert [entry["epoch"] for entry in later.valid_by_epoch] == [1]


def test_a_resume_with_nothing_left_to_train_leaves_the_checkpoint_alone(build):
    trainer, loaders = build()
    trainer.fit(*loaders[:2], verbose=False)
    before = Path(trainer.saved_model_file).read_bytes()
    later, loaders = build()
    later.resume_checkpoint(trainer.saved_model_file)
    with pytest.raises(ValueError, match="checkpoint is of epoch 0, counted from 0, and 'epochs' is 1; set config"):
        later.fit(*loaders[:2], verbose=False)
    assert Path(trainer.saved_model_file).read_bytes() == before


def test_a_resumed_training_ends_bit_by_bit_as_one_that_never_stopped(build):
    """Dropout and masks are drawn on from where the checkpoint was written."""
    settings = {"epochs": 4, "dropout_prob": 0.3, "mask_ratio": 0.2, "train_batch_size": 128, "lr_schedule": "cosine"}
    whole, loaders = build("SSD4Rec", **settings)
    whole.fit(*loaders[:2], verbose=False)
    first, loaders = build("SSD4Rec", **settings)
    first.epochs = 2
    first.fit(*loaders[:2], verbose=False, saved=False)
    first._save_checkpoint(1)
    later, loaders = build("SSD4Rec", **settings)
    torch.rand(7)  # whatever is drawn meanwhile
    later.resume_checkpoint(first.saved_model_file)
    later.fit(*loaders[:2], verbose=False)
    assert list(later.train_loss_dict) == [2, 3]
    assert later.train_loss_dict == {epoch: whole.train_loss_dict[epoch] for epoch in (2, 3)}
    for one, other in zip(whole.model.parameters(), later.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_other_groups_of_weights_are_refused_in_a_sentence(build):
    first, loaders = build("SSD4Rec", weight_decay=0.1)
    first.fit(loaders[0], verbose=False)
    later, _ = build("SSD4Rec")
    with pytest.raises(ValueError, match="give both runs the same 'weight_decay'"):
        later.resume_checkpoint(first.saved_model_file)
    same, _ = build("SSD4Rec", weight_decay=0.1)
    same.resume_checkpoint(first.saved_model_file)


def test_two_trainers_of_one_second_never_share_a_checkpoint(build, monkeypatch):
    for module in ("recbole.trainer.trainer", "recbole_ssd.trainer"):
        monkeypatch.setattr(f"{module}.get_local_time", lambda: "now")
    first, (train, _, _) = build()
    first.fit(train, verbose=False)
    second, _ = build()
    assert first.saved_model_file != second.saved_model_file


def test_ranks_count_the_items_that_score_as_high(build, monkeypatch):
    trainer, (_, _, test) = build()
    scores = torch.randn(60, 41, generator=torch.Generator().manual_seed(0)).round(decimals=1)  # with ties
    rows = iter(scores)
    monkeypatch.setattr(
        trainer.model, "full_sort_predict", lambda batch: torch.stack([next(rows) for _ in range(len(batch))])
    )
    trainer.ranks = []
    trainer.evaluate(test, load_best_model=False)
    users, items, ranks = (torch.cat(part) for part in zip(*trainer.ranks, strict=True))
    assert len(users.unique()) == len(ranks) == 60
    expected = [sum(other >= row[item] for other in row[1:]) for row, item in zip(scores, items, strict=True)]
    assert ranks.tolist() == [int(rank) for rank in expected]


def test_scores_that_are_no_numbers_are_refused(build, monkeypatch):
    trainer, (_, valid, _) = build()
    monkeypatch.setattr(trainer.model, "full_sort_predict", lambda batch: torch.full((len(batch), 41), float("nan")))
    with pytest.raises(ValueError, match="GRU4Rec scores items with NaN: lower 'learning_rate'"):
        trainer.evaluate(valid, load_best_model=False)


def test_loss_that_is_no_number_is_refused(build, monkeypatch):
    trainer, (train, _, _) = build()
    weights = trainer.model.dense.weight
    monkeypatch.setattr(trainer.model, "calculate_loss", lambda batch: weights.sum() * float("nan"))
    with pytest.raises(ValueError, match=r"the training loss is not a number \(NaN\) in epoch 0"):
        trainer.fit(train, verbose=False)


def test_an_interrupted_run_knows_where_its_best_epoch_lies(build, monkeypatch):
    trainer, (train, valid, _) = build(epochs=3)
    assert "no epoch" in trainer.interrupted()
    run_epoch = RecBoleTrainer._train_epoch

    def stop_in_the_second(self, data, epoch, *args):
        if epoch == 1:
            raise KeyboardInterrupt
        return run_epoch(self, data, epoch, *args)

    monkeypatch.setattr(RecBoleTrainer, "_train_epoch", stop_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(train, valid, verbose=False)
    assert trainer.interrupted().endswith(f"(epoch 0) is in {trainer.saved_model_file}")


@pytest.fixture
def checkpoint(build):
    trainer, (train, _, _) = build()
    trainer.fit(train, verbose=False)
    return Path(trainer.saved_model_file)


class _Malice:
    def __reduce__(self):
        return open, ("spoiled", "w")


def _truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _lose_a_key(path):
    state = torch.load(path, weights_only=True)
    del state["state_dict"]
    torch.save(state, path)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_truncate, "is truncated or no checkpoint"),
        (lambda path: path.write_bytes(b""), "is truncated or no checkpoint"),
        (lambda path: path.write_text("key: value\n" * 100), "is no checkpoint"),
        (lambda path: path.write_text("hello"), "is truncated or no checkpoint"),
        (lambda path: torch.save({"config": _Malice()}, path), "holds something else than tensors"),
        (lambda path: path.write_bytes(pickle.dumps(_Malice())), "is no checkpoint"),
        (lambda path: torch.save([1, 2], path), "it lacks config"),
        (_lose_a_key, "it lacks state_dict"),
        (Path.unlink, "does not exist"),
    ],
    ids=["truncated", "empty", "text", "word", "code", "pickle", "list", "key", "missing"],
)
def test_a_spoiled_checkpoint_is_refused_in_a_sentence(checkpoint, build, spoil, words):
    spoil(checkpoint)
    trainer, (_, _, test) = build()
    for read in (
        load_data_and_model,
        trainer.resume_checkpoint,
        lambda path: trainer.evaluate(test, model_file=path),
    ):
        with pytest.raises(ValueError, match=words) as refusal:
            read(str(checkpoint))
        assert str(checkpoint) in str(refusal.value)
    assert not Path("spoiled").exists()


def test_a_checkpoint_of_another_model_or_size_is_refused(checkpoint, build):
    other, _ = build("SASRec")
    with pytest.raises(ValueError, match="is of model GRU4Rec, this run is of SASRec"):
        other.resume_checkpoint(checkpoint)
    wider, _ = build(hidden_size=16)
    with pytest.raises(ValueError, match="does not fit the model: hidden_size is 128 there and 16 here"):
        wider.resume_checkpoint(checkpoint)


def test_an_interrupted_save_leaves_the_older_checkpoint(checkpoint, build, monkeypatch):
    before = checkpoint.read_bytes()
    trainer, _ = build()
    trainer.saved_model_file = str(checkpoint)

    def half(state, path):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        trainer._save_checkpoint(1)
    assert checkpoint.read_bytes() == before


@pytest.mark.parametrize(("learner", "fused"), [("adam", True), ("adamw", True), ("sgd", True), ("rmsprop", None)])
def test_a_packed_model_takes_the_fused_optimizer_where_there_is_one(build, learner, fused):
    trainer, _ = build("SSD4Rec", learner=learner, learning_rate=0.01, weight_decay=0.1)
    plain = RecBoleTrainer._build_optimizer(trainer)
    assert type(trainer.optimizer) is type(plain)
    ours, (theirs,) = trainer.optimizer.param_groups, plain.param_groups
    assert [(g.get("fused"), g["lr"], g["weight_decay"]) for g in ours] == [(fused, 0.01, 0.1), (fused, 0.01, 0.0)]
    assert {id(weight) for group in ours for weight in group["params"]} == set(map(id, theirs["params"]))


def test_recboles_models_keep_recboles_optimizer(build):
    trainer, _ = build("GRU4Rec")
    assert trainer.optimizer.param_groups[0]["fused"] is None


def test_the_fused_optimizer_changes_rounding_only(build):
    losses = []
    for own in (True, False):
        trainer, (train, _, _) = build("SSD4Rec", epochs=3, train_batch_size=128)
        if not own:
            trainer.optimizer = RecBoleTrainer._build_optimizer(trainer)
        init_seed(1, True)
        trainer.fit(train, verbose=False, saved=False)
        losses.append(trainer.train_loss_dict)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("was_fused", [True, False])
def test_training_goes_on_fused_with_the_state_of_either_optimizer(build, was_fused):
    trainer, (train, valid, _) = build("SSD4Rec")
    if not was_fused:
        trainer.optimizer = RecBoleTrainer._build_optimizer(trainer)
    trainer.fit(train, valid, verbose=False)
    later, (train, valid, _) = build("SSD4Rec", epochs=2)
    later.resume_checkpoint(trainer.saved_model_file)
    assert later.optimizer.param_groups[0]["fused"] is True
    states = trainer.optimizer.state.values(), later.optimizer.state.values()
    for before, after in zip(*states, strict=True):
        assert before["step"] == after["step"] > 0 and torch.equal(before["exp_avg"], after["exp_avg"])
    later.fit(train, valid, verbose=False)
    assert later.train_loss_dict[1] < trainer.train_loss_dict[0]


@pytest.fixture
def clock(monkeypatch):
    """Every look at the clock costs a second: an epoch takes one, a validation too."""
    seconds = iter(range(10**6))
    monkeypatch.setattr(Trainer, "_now", lambda trainer: float(next(seconds)))


@pytest.mark.parametrize("model", ["GRU4Rec", "SSD4Rec"])
def test_training_ends_after_the_first_validation_beyond_its_time(build, clock, caplog, model):
    whole, (train, valid, _) = build(model, epochs=5)
    whole.fit(train, valid, verbose=False, saved=False)
    assert not whole.cut
    limit = whole.valid_by_epoch[1]["seconds"] + 0.5  # over in the third epoch
    trainer, (train, valid, test) = build(model, epochs=5, max_train_s=limit)
    with caplog.at_level("INFO"):
        score, result = trainer.fit(train, valid, verbose=False)
    assert trainer.cut and [entry["epoch"] for entry in trainer.valid_by_epoch] == [0, 1, 2]
    best = trainer.best_epoch
    assert (
        f"training ends after epoch 2: max_train_s ({limit} s) is over; the best epoch so far is {best}" in caplog.text
    )
    assert (score, result) == (trainer.best_valid_score, trainer.best_valid_result)
    assert torch.load(trainer.saved_model_file, weights_only=True)["epoch"] == best
    assert trainer.evaluate(test)


def test_epochs_that_are_not_validated_yet_are_not_thrown_away(build, clock):
    trainer, (train, valid, _) = build(epochs=9, eval_step=3, max_train_s=0.5)
    for count in (3, 6):  # each fit anew
        trainer.fit(train, valid, verbose=False)
        assert trainer.cut and len(trainer.epoch_s) == count and trainer.best_epoch == 2


def test_without_validation_the_time_counts_after_each_epoch(build, clock):
    trainer, (train, _, _) = build(epochs=9, max_train_s=0.5)
    trainer.fit(train, verbose=False)
    assert trainer.cut and len(trainer.epoch_s) == 1
    assert torch.load(trainer.saved_model_file, weights_only=True)["epoch"] == 0


def test_time_that_is_over_in_the_last_epoch_cuts_nothing(build, clock):
    trainer, (train, valid, _) = build(epochs=1, max_train_s=0.5)
    trainer.fit(train, valid, verbose=False)
    assert not trainer.cut


@pytest.mark.parametrize("model", ["GRU4Rec", "SSD4Rec"])
def test_keeps_what_a_step_frees(build, monkeypatch, model):
    told = []
    monkeypatch.setattr("recbole_ssd.trainer.keep_freed_memory", lambda: told.append(model))
    trainer, (train, *_) = build(model, epochs=1)
    assert not told  # to evaluate changes nothing of the process
    trainer.fit(train)
    assert told == [model]
