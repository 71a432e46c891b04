"""The learning rate of every step, in our loop and in RecBole's."""

import pytest
import torch

from recbole_ssd import Config, Trainer, create_dataset, data_preparation, get_model, init_seed
from recbole_ssd.learning_rate import LearningRate


@pytest.fixture
def build(run_folder, tiny):
    """A function that gives a trainer that notes the rate of every step, and its loaders."""

    def make(model="SSD4Rec", **settings):
        config = Config(model, config_dict={**tiny, "epochs": 3, "train_batch_size": 128, **settings})
        init_seed(config["seed"], config["reproducibility"])
        loaders = data_preparation(config, create_dataset(config))
        trainer = Trainer(config, get_model(model)(config, loaders[0].dataset))
        trainer.rates = []
        trainer.optimizer.register_step_post_hook(lambda o, *_: trainer.rates.append({g["lr"] for g in o.param_groups}))
        return trainer, loaders

    return make


def fit(trainer, loaders):
    trainer.fit(loaders[0], loaders[1], verbose=False)
    return [rate for (rate,) in trainer.rates]


@pytest.mark.parametrize("model", ["SSD4Rec", "GRU4Rec"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_every_step_has_its_rate(build, model, schedule):
    settings = {"learning_rate": 0.01, "weight_decay": 0.1, "lr_schedule": schedule, "warmup_epochs": 0.5}
    rates = fit(*build(model, learner="adamw", **settings))
    top = max(rates)
    rise = rates[: rates.index(top) + 1]
    assert len(rates) > 6 and 0.006 < top <= 0.01
    assert rates[0] > 0 and rise == sorted(rise)
    assert rates[len(rise) - 1 :] == sorted(rates[len(rise) - 1 :], reverse=True)
    assert 0 < rates[-1] < 0.1 * top
    assert len(set(rates)) > len(rates) / 2


def test_the_rates_are_those_of_torchs_schedule(build):
    """Half a step later: torch's first step has the whole rate, ours that of the middle of the step."""
    trainer, loaders = build(learning_rate=0.01, lr_schedule="cosine", train_batch_size=10**6, epochs=8)
    weight = torch.nn.Parameter(torch.zeros(1))
    theirs = torch.optim.SGD([weight], lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(theirs, 2 * 8)
    expected = []
    for step in range(16):
        if step % 2:
            expected.append(theirs.param_groups[0]["lr"])
        theirs.step()
        schedule.step()
    assert len(loaders[0]) == 1
    assert fit(trainer, loaders) == pytest.approx(expected)


def test_a_warm_up_alone_stays_up(build):
    trainer, loaders = build(learning_rate=0.01, warmup_epochs=1.0)
    rates = fit(trainer, loaders)
    steps = len(rates) // 3
    assert rates[:steps] == pytest.approx([0.01 * (k + 0.5) / steps for k in range(steps)])
    assert set(rates[steps + 1 :]) == {0.01}


def test_a_constant_rate_is_the_configs_whatever_an_earlier_schedule_left(build):
    first, loaders = build(learning_rate=0.02, lr_schedule="cosine")
    fit(first, loaders)
    first._save_checkpoint(2)
    later, loaders = build(learning_rate=0.01, epochs=5)
    later.resume_checkpoint(first.saved_model_file)
    assert set(fit(later, loaders)) == {0.01}


def test_a_resumed_training_goes_on_as_it_would_have(build):
    settings = {"lr_schedule": "linear", "warmup_epochs": 1.0, "stopping_step": 0}
    whole, loaders = build(**settings)
    expected = fit(whole, loaders)
    first, loaders = build(**settings)
    first.epochs = 2
    fit(first, loaders)
    first._save_checkpoint(1)
    later, loaders = build(**settings)
    later.resume_checkpoint(first.saved_model_file)
    assert first.rates + later.rates == whole.rates[: len(first.rates)]
    assert [rate for (rate,) in first.rates] + fit(later, loaders) == expected


def test_the_rate_never_leaves_its_bounds():
    for schedule in ("linear", "cosine"):
        rate = LearningRate(0.1, schedule, 2, 2)
        assert rate.at(0) == 0 and rate.at(1) == 0.05 and rate.at(2) == 0 and rate.at(5) == 0
