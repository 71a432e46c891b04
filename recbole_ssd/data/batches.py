"""A batch is one packed row: the k-th item of these map-style data sets is the k-th batch of the epoch.

Fields of a packed batch have different lengths, which RecBole's Interaction carries.
"""

from __future__ import annotations

import numpy as np
import torch
from recbole.data.interaction import Interaction
from torch.utils.data import Dataset

from recbole_ssd.data.events import slices_index
from recbole_ssd.data.plan import generator, plan_batches, shuffled
from recbole_ssd.data.segments import ALL_POSITIONS

NEGATIVES = 1  # keeps the generator of the negatives apart from the plan's


def packed_stream(items, start, lengths, gaps=None):
    """The input fields of a packed batch.

    Args:
        items (numpy.ndarray): Items of the log, shape (n,).
        start (numpy.ndarray): First event of each segment, shape (s,).
        lengths (numpy.ndarray): Inputs of each segment, shape (s,).
        gaps (numpy.ndarray or None): `EventLog.gaps`, if the model reads them, shape (n,).

    Returns:
        tuple[dict[str, torch.Tensor], numpy.ndarray]: `stream` (t,) int64, `cu_seqlens` (s+1,) int32, with
        gaps `time_gaps` (t,) float32; and the stream's positions in the log, shape (t,).
    """
    cu_seqlens = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=cu_seqlens[1:])
    position = slices_index(start, lengths)
    fields = {
        "stream": torch.from_numpy(items[position]),
        "cu_seqlens": torch.from_numpy(cu_seqlens),
    }
    if gaps is not None:
        fields["time_gaps"] = torch.from_numpy(gaps[position])
    return fields, position


class TrainBatches(Dataset):
    """The packed batches of one epoch, planned from (seed, epoch).

    Args:
        dataset (SequentialDataset): The training data set.
        segments (Segments): What to train on.
        sampler (NegativeSampler or None): Draws negatives if the loss needs them.
        names (dict[str, str]): Field names: user, item, stream, negative.
        caps (tuple[int, int]): Most tokens and most targets of one batch.
        seed (int): Seed of the plan and of the negatives.
        shuffle (bool): Whether users are mixed anew each epoch.
        gaps (numpy.ndarray or None): As `packed_stream` takes them.
    """

    def __init__(self, dataset, segments, sampler, names, caps, seed, shuffle, gaps=None):
        self.items, self.gaps = dataset.inter_feat.events.items, gaps
        self.segments, self.sampler, self.names = segments, sampler, names
        self.caps, self.seed, self.shuffle = caps, seed, shuffle
        self.set_epoch(0)

    def set_epoch(self, epoch):
        """Plan the batches of an epoch."""
        self.epoch = epoch
        number = len(self.segments)
        order = shuffled(number, self.seed, epoch) if self.shuffle else np.arange(number)
        self.plan = plan_batches(order, self.segments.lengths, self.segments.n_targets, *self.caps)

    def __len__(self):
        return len(self.plan)

    def __getitem__(self, k):
        chosen = self.plan[k]
        start, end = self.segments.start[chosen], self.segments.end[chosen]
        fields, position = packed_stream(self.items, start, end - start, self.gaps)
        targets = self.items[position + 1 if self.segments.supervision == ALL_POSITIONS else end]
        batch = {
            self.names["user"]: torch.from_numpy(self.segments.user[chosen]),
            self.names["stream"]: fields.pop("stream"),
            **fields,
            self.names["item"]: torch.from_numpy(targets),
        }
        if self.sampler is not None:
            rng = generator(self.seed, self.epoch, NEGATIVES, k)
            batch[self.names["negative"]] = torch.from_numpy(self.sampler.draw(targets, rng))
        return Interaction(batch)


class EvalBatches(Dataset):
    """The batches of one evaluation, rows in their order, as the tuples of RecBole's FullSortEvalDataLoader.

    Args:
        dataset (SequentialDataset): The data set of the phase.
        rule (RankingRule): What must not rank.
        names (dict[str, str]): Field names: user, item, stream.
        plan (list[numpy.ndarray]): Rows of each batch.
        packed (bool): Packed streams, or RecBole's padded windows.
        transform (Callable): RecBole's transform of padded batches.
        gaps (numpy.ndarray or None): As `packed_stream` takes them.
    """

    def __init__(self, dataset, rule, names, plan, packed, transform, gaps=None):
        self.recbole_dataset, self.rule, self.names = dataset, rule, names
        self.plan, self.packed, self.transform, self.gaps = plan, packed, transform, gaps

    def __len__(self):
        return len(self.plan)

    def __getitem__(self, k):
        index = self.plan[k]
        if self.packed:
            interaction = self._packed(index)
        else:
            interaction = self.transform(self.recbole_dataset, self.recbole_dataset[index])
        return interaction, self.rule(index), torch.arange(len(index)), interaction[self.names["item"]]

    def _packed(self, index):
        rows = self.recbole_dataset.inter_feat[index]
        fields, _ = packed_stream(rows.events.items, rows.starts, rows.lengths(), self.gaps)
        return Interaction(
            {
                self.names["user"]: torch.from_numpy(rows.users.copy()),
                self.names["stream"]: fields.pop("stream"),
                **fields,
                self.names["item"]: torch.from_numpy(rows.target_items()),
            }
        )
