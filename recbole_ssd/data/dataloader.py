"""Loaders that RecBole's Trainer runs on: planned batches behind RecBole's names.

They are torch DataLoaders whose data set's k-th item is the k-th batch, so any number of workers gives the
same batches. `loader.dataset` is the RecBole data set, as AbstractDataLoader has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from logging import getLogger

import numpy as np
import torch
from recbole.data.dataloader import AbstractDataLoader, FullSortEvalDataLoader, TrainDataLoader
from recbole.data.transform import construct_transform

from recbole_ssd.data.batches import EvalBatches, TrainBatches
from recbole_ssd.data.candidates import RankingRule
from recbole_ssd.data.negatives import NegativeSampler
from recbole_ssd.data.plan import plan_batches
from recbole_ssd.data.segments import train_segments


def _as_it_is(batch):
    """torch would turn the tuples of evaluation into lists."""
    return batch


def _field_names(config):
    item = config["ITEM_ID_FIELD"]
    return {
        "user": config["USER_ID_FIELD"],
        "item": item,
        "stream": item + config["LIST_SUFFIX"],
        "negative": f"{config['NEG_PREFIX']}{item}",
    }


def _gaps(config, dataset):
    return dataset.inter_feat.events.gaps if config["time_gaps"] else None


class _PlannedLoader(AbstractDataLoader):
    """What both loaders share; AbstractDataLoader's own constructor can only cut equal numbers of rows."""

    def _start(self, config, dataset, batches, shuffle):
        self.config, self._dataset, self.batches, self.shuffle = config, dataset, batches, shuffle
        self._sampler = self.model = None
        self.is_sequential = True
        self.logger = getLogger()
        generator = torch.Generator()  # RecBole's: an iteration draws nothing from torch's global generator
        generator.manual_seed(config["seed"])
        torch.utils.data.DataLoader.__init__(
            self,
            dataset=batches,
            batch_size=None,
            num_workers=config["worker"] or 0,
            collate_fn=_as_it_is,
            generator=generator,
        )

    def _init_batch_size_and_step(self):
        """Nothing to do: the plan is the size of the batches."""


class PackedTrainDataLoader(_PlannedLoader):
    """Packed training batches of a model whose class says `packed = True`.

    Args:
        config (recbole.config.Config): Reads supervision, train_batch_size (in targets), max_batch_tokens,
            train_neg_sample_args, seed, worker.
        dataset (SequentialDataset): The training data set.
        counts (numpy.ndarray): Occurrences of each item in training, shape (n_items,).
        shuffle (bool): Whether users are mixed anew each epoch.

    Raises:
        ValueError: If the split does not fit the supervision, or fewer than two items can be negatives.
    """

    def __init__(self, config, dataset, counts, shuffle=True):
        caps = config["max_batch_tokens"], config["train_batch_size"]
        segments = train_segments(dataset.inter_feat, config["supervision"])
        sampler = _negative_sampler(config, counts)
        names, gaps = _field_names(config), _gaps(config, dataset)
        batches = TrainBatches(dataset, segments, sampler, names, caps, config["seed"], shuffle, gaps)
        self._start(config, dataset, batches, shuffle)
        self._log_long(segments, caps)

    def _log_long(self, segments, caps):
        alone = (segments.lengths > caps[0]) | (segments.n_targets > caps[1])
        if alone.any():
            self.logger.info(
                f"{alone.sum()} training segments are longer than max_batch_tokens ({caps[0]}) or "
                "train_batch_size "
                f"({caps[1]}) and travel alone; the longest has {segments.lengths.max()} events."
            )

    def set_epoch(self, epoch):
        """Plan the batches of an epoch; the trainer calls this before it iterates."""
        self.batches.set_epoch(epoch)

    @property
    def n_targets(self):
        """Targets per epoch."""
        return int(self.batches.segments.n_targets.sum())

    @property
    def n_tokens(self):
        """Tokens of the stream per epoch."""
        return int(self.batches.segments.lengths.sum())


def _negative_sampler(config, counts):
    args = config["train_neg_sample_args"]
    if args["distribution"] == "none":
        return None
    return NegativeSampler(args["distribution"], args["alpha"], args["sample_num"], counts)


class PaddedTrainDataLoader(TrainDataLoader):
    """RecBole's train loader for its own models, which tells what an epoch costs."""

    @property
    def n_targets(self):
        """Targets per epoch."""
        return len(self._dataset)

    @property
    def n_tokens(self):
        """Padded positions per epoch."""
        return len(self._dataset) * self._dataset.max_item_list_len


class SequentialEvalDataLoader(_PlannedLoader, FullSortEvalDataLoader):
    """Evaluation of packed models and of RecBole's own, under one ranking rule.

    Args:
        config (recbole.config.Config): Reads eval_batch_size, max_batch_tokens, eval_args.mode,
            exclude_history, candidate_seed, worker.
        dataset (SequentialDataset): The data set of the phase.
        phase (str): `valid` or `test`.
        counts (numpy.ndarray): Occurrences of each item in training, shape (n_items,).

    Raises:
        ValueError: If there are fewer items than candidates asked for.
    """

    def __init__(self, config, dataset, phase, counts):
        self.uid_field, self.iid_field = dataset.uid_field, dataset.iid_field
        self.sample_size = len(dataset)
        self.transform = construct_transform(config)
        packed = is_packed(config)
        rows = dataset.inter_feat
        lengths = rows.lengths() if packed else np.full(len(rows), dataset.max_item_list_len)
        cap = config["max_batch_tokens"]
        plan = plan_batches(np.arange(len(rows)), lengths, np.ones_like(lengths), cap, config["eval_batch_size"])
        rule = RankingRule(config, rows, phase, counts)
        names, gaps = _field_names(config), _gaps(config, dataset)
        self._start(config, dataset, EvalBatches(dataset, rule, names, plan, packed, self.transform, gaps), False)
        self._log_long(lengths, cap, phase)

    @contextmanager
    def other_history(self) -> Iterator[None]:
        """Excludes the history while it lasts, or keeps it where the config excludes it. For full ranking."""
        rule = self.batches.rule
        rule.exclude_history = not rule.exclude_history
        try:
            yield
        finally:
            rule.exclude_history = not rule.exclude_history

    def _log_long(self, lengths, cap, phase):
        if (lengths > cap).any():
            self.logger.info(
                f"{int((lengths > cap).sum())} {phase} histories are longer than max_batch_tokens ({cap}) "
                f"and travel alone."
            )


def is_packed(config):
    """Whether the model's class says that it takes packed streams."""
    return bool(getattr(config.model_class, "packed", False))
