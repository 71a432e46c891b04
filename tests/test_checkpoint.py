"""Checkpoints: what they give back, what goes on from them, and what they are refused on."""

import shutil
from pathlib import Path

import pytest
import torch

from recbole_ssd import Config, Trainer, create_dataset, data_preparation, load_data_and_model, run_recbole_ssd
from recbole_ssd.checkpoint import write_checkpoint
from recbole_ssd.model_lookup import own_models


@pytest.mark.parametrize("model", ["GRU4Rec", *own_models()])
def test_checkpoint_gives_back_data_and_model(run_folder, tiny, model):
    result = run_recbole_ssd(model, config_dict=tiny)
    config, loaded, dataset, train, valid, test = load_data_and_model(result["checkpoint"])
    assert config["model"] == model and config.given() == result["config"]
    trainer = Trainer(config, loaded)
    again = trainer.evaluate(test, load_best_model=False)
    assert {name: float(value) for name, value in again.items()} == result["test_result"]
    assert len(train) > 0 and len(valid) > 0 and dataset.item_num == 41


def test_a_checkpoint_finds_its_data_elsewhere(run_folder, tiny):
    checkpoint = run_recbole_ssd("GRU4Rec", config_dict={**tiny, "epochs": 1})["checkpoint"]
    shutil.copytree(Path(tiny["data_path"]) / "tiny", run_folder / "there" / "tiny")
    config, *_ = load_data_and_model(checkpoint, config_dict={"data_path": str(run_folder / "there")})
    assert Path(config["data_path"]) == run_folder / "there" / "tiny"


def test_bfloat16_is_loaded_again_without_a_word(run_folder, tiny):
    """What was trained in another precision is the same model: its checkpoint's settings must not be refused."""
    result = run_recbole_ssd("SSD4Rec", config_dict={**tiny, "enable_amp": True})
    assert load_data_and_model(result["checkpoint"])[0]["enable_amp"] is True
    assert result["config"]["amp_dtype"] == "bfloat16"


def test_training_goes_on_from_a_checkpoint(run_folder, tiny):
    """The two calls that the README shows: load, then `resume_checkpoint` and `fit`."""
    result = run_recbole_ssd("SSD4Rec", config_dict=tiny)
    config, model, _, train, valid, _ = load_data_and_model(result["checkpoint"])
    config["epochs"] = 3
    trainer = Trainer(config, model)
    trainer.resume_checkpoint(result["checkpoint"])
    trainer.fit(train, valid, verbose=False)
    assert list(trainer.train_loss_dict) == [1, 2]
    assert trainer.train_loss_dict[2] < result["train_loss"][0]


def test_a_checkpoint_is_refused_on_data_whose_items_are_numbered_otherwise(run_folder, tiny):
    """A model knows items by their number, which is their place in the file: sorted lines would mix them up."""
    place = run_folder / "own" / "tiny" / "tiny.inter"
    place.parent.mkdir(parents=True)
    header, *lines = (Path(tiny["data_path"]) / "tiny" / "tiny.inter").read_text().splitlines()
    place.write_text("\n".join([header, *lines]))
    result = run_recbole_ssd("SSD4Rec", config_dict={**tiny, "data_path": "own"})
    config, model, _, train, valid, test = load_data_and_model(result["checkpoint"])
    place.write_text("\n".join([header, *sorted(lines, reverse=True)]))
    with pytest.raises(ValueError, match="was trained on other data: its item 1 is"):
        load_data_and_model(result["checkpoint"])

    config = Config("SSD4Rec", config_dict={**tiny, "data_path": "own", "epochs": 2})
    train, valid, test = data_preparation(config, create_dataset(config))
    trainer = Trainer(config, model)
    with pytest.raises(ValueError, match="was trained on other data"):
        trainer.evaluate(test, model_file=result["checkpoint"])
    trainer.resume_checkpoint(result["checkpoint"])
    with pytest.raises(ValueError, match="was trained on other data"):
        trainer.fit(train, valid, verbose=False)


def test_a_checkpoint_that_cannot_be_written_leaves_nothing(run_folder, monkeypatch):
    def full(state, part):
        Path(part).write_bytes(b"half of it")
        raise RuntimeError("unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(ValueError, match=r"'a.pth' cannot be written, [\d,]+ MB are free there \(unexpected"):
        write_checkpoint({}, "a.pth")
    assert not list(run_folder.iterdir())
