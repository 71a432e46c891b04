"""RecBole's own loaders and tools on our data set and our model."""

import logging

import pytest
import torch
from recbole.data.dataloader import FullSortEvalDataLoader, TrainDataLoader
from recbole.data.transform import construct_transform
from recbole.data.utils import create_samplers
from recbole.trainer import Trainer as RecBoleTrainer
from recbole.utils import get_flops
from recbole.utils.case_study import full_sort_scores, full_sort_topk

from recbole_ssd import Config, create_dataset, data_preparation, load_data_and_model, run_recbole_ssd

SMALL = {"hidden_size": 16, "inner_size": 32, "d_state": 8, "headdim": 8, "state": "ERROR"}


@pytest.fixture
def loaded(run_folder, tiny):
    """A function: settings -> what `load_data_and_model` gives after a short training of SSD4Rec."""

    def load(**settings):
        result = run_recbole_ssd("SSD4Rec", config_dict={**tiny, **SMALL, **settings})
        return load_data_and_model(result["checkpoint"])

    return load


def test_topk_and_scores_of_recboles_case_study(loaded):
    _, model, dataset, _, _, test = loaded()
    users = dataset.token2id("user_id", ["u7", "u2"])
    scores, items = full_sort_topk(users, model, test, k=5, device="cpu")
    every = full_sort_scores(users, model, test, device="cpu")
    assert every.shape == (2, dataset.item_num) and items.shape == (2, 5)
    assert torch.equal(every.gather(1, items), scores)
    model.eval()
    batch = next(iter(test))[0]
    rows = [batch["user_id"].tolist().index(user) for user in users]
    expected = model.full_sort_predict(batch)[rows, 1:]
    torch.testing.assert_close(every[:, 1:], expected, rtol=1e-5, atol=1e-6)


def test_get_flops_counts_our_model(loaded):
    config, model, dataset, train, _, _ = loaded()
    for part in (dataset, train.dataset):
        flops = get_flops(model, part, config["device"], logging.getLogger(), construct_transform(config))
        assert flops > 0


def test_recboles_evaluation_loader_gives_the_same_scores(loaded):
    config, model, _, _, _, test = loaded()
    model.eval()
    theirs = FullSortEvalDataLoader(config, test.dataset, None, shuffle=False)
    packed = torch.cat([model.full_sort_predict(batch[0]) for batch in test])
    padded = torch.cat([model.full_sort_predict(batch[0]) for batch in theirs])
    torch.testing.assert_close(padded, packed, rtol=1e-5, atol=1e-6)
    assert RecBoleTrainer(config, model).evaluate(theirs, load_best_model=False)["hit@10"] >= 0


@pytest.mark.parametrize("loss_type", ["CE", "BPR", "BCE"])
def test_recboles_train_loader_trains_our_model(loaded, loss_type):
    """Padded rows with one target each give the loss that packed prefixes give."""
    settings = {"loss_type": loss_type, "supervision": "prefixes", "mask_ratio": 0, "dropout_prob": 0}
    config, model, dataset, train, valid, test = loaded(**settings)
    sampler = None
    if loss_type != "CE":
        sampler = create_samplers(config, dataset, [train.dataset, valid.dataset, test.dataset])[0]
    theirs = TrainDataLoader(config, train.dataset, sampler, shuffle=False)
    losses = [model.calculate_loss(batch) for batch in theirs]
    assert all(torch.isfinite(loss) for loss in losses)
    torch.stack(losses).sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())
    if loss_type == "CE":
        packed = torch.stack([model.calculate_loss(batch) for batch in train]).mean()  # one batch each
        assert len(losses) == len(train) == 1
        torch.testing.assert_close(losses[0], packed, rtol=1e-5, atol=1e-6)


def test_recboles_trainer_fits_our_model_on_our_loaders(run_folder, tiny):
    config = Config("SSD4Rec", config_dict={**tiny, **SMALL, "epochs": 2})
    train, valid, test = data_preparation(config, create_dataset(config))
    model = config.model_class(config, train.dataset)
    trainer = RecBoleTrainer(config, model)
    trainer.fit(train, valid, saved=False, verbose=False)
    losses = list(trainer.train_loss_dict.values())
    assert losses[1] < losses[0]
    assert set(trainer.evaluate(test, load_best_model=False)) == {"hit@10", "ndcg@10", "mrr@10"}
