"""From a Config to a data set, and from a data set to three loaders, under RecBole's names."""

from __future__ import annotations

from logging import getLogger

from recbole.sampler import RepeatableSampler
from recbole.utils import set_color

from recbole_ssd.data.dataloader import (
    PackedTrainDataLoader,
    PaddedTrainDataLoader,
    SequentialEvalDataLoader,
    is_packed,
)
from recbole_ssd.data.dataset import SequentialDataset
from recbole_ssd.data.fingerprint import split_fingerprint
from recbole_ssd.data.needs import check_features, check_items
from recbole_ssd.data.negatives import training_counts


def create_dataset(config):
    """Read, filter and remap the data set of a sequential model.

    Args:
        config (recbole_ssd.Config): The configuration.

    Returns:
        SequentialDataset: Ready for `data_preparation`.

    Raises:
        ValueError: If the data cannot be used.
    """
    dataset = SequentialDataset(config)
    check_features(config, dataset)
    return dataset


def data_preparation(config, dataset):
    """Split the data set and make its loaders.

    Args:
        config (recbole_ssd.Config): The configuration.
        dataset (SequentialDataset): What `create_dataset` gave.

    Returns:
        tuple: Training, validation and test loader.

    Raises:
        ValueError: If the split leaves nothing to train or test on.
    """
    train, valid, test = dataset.build()
    counts = training_counts(train.inter_feat, dataset.item_num)
    loaders = (
        _train_loader(config, dataset, train, counts),
        SequentialEvalDataLoader(config, valid, "valid", counts),
        SequentialEvalDataLoader(config, test, "test", counts),
    )
    check_items(config, dataset)
    _log(config, loaders)
    return loaders


def _train_loader(config, dataset, train, counts):
    if is_packed(config):
        return PackedTrainDataLoader(config, train, counts, shuffle=config["shuffle"])
    args = config["train_neg_sample_args"]
    sampler = None
    if args["distribution"] != "none":
        sampler = RepeatableSampler(["train", "valid", "test"], dataset, args["distribution"], args["alpha"])
        sampler = sampler.set_phase("train")
    return PaddedTrainDataLoader(config, train, sampler, shuffle=config["shuffle"])


def _log(config, loaders):
    """RecBole's two lines, and two of ours."""
    train, valid, test = loaders
    _line("Training", config, "train_batch_size", "train_neg_sample_args")
    _line("Evaluation", config, "eval_batch_size", "eval_args")
    sizes = ", ".join(
        f"{name} {len(loader.dataset)}" for name, loader in zip(("train", "valid", "test"), loaders, strict=True)
    )
    getLogger().info(f"{_title('Split')}{sizes} rows; fingerprint {split_fingerprint(valid, test)}")
    getLogger().info(f"{_title('Epoch')}{train.n_targets} targets, {train.n_tokens} tokens, {len(train)} batches")


def _line(title, config, *keys):
    settings = " ".join(f"{set_color(key, 'cyan')} = {set_color(f'[{config[key]}]', 'yellow')}" for key in keys)
    getLogger().info(_title(title) + settings)


def _title(word):
    return set_color(f"[{word}]: ", "pink")
