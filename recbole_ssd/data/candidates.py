"""What must not rank: one rule for all models, handed to RecBole's trainer as `history_index`.

    full                      nothing: RecBole's rule for sequential models
    exclude_history: True     the user's earlier items, without the target (protocol B)
    uniN, popN                all but the target and N candidates

RecBole draws new candidates at every evaluation, with repeats; here N distinct items that are not the target
are drawn once per phase from `candidate_seed`: `uni` with equal weights, `pop` with their count in the
training events. With `exclude_history` no earlier item of the user is a candidate.
"""

from __future__ import annotations

import numpy as np
import torch

from recbole_ssd.data.events import slices_index
from recbole_ssd.data.plan import generator

PHASES = ("valid", "test")
KEYS_IN_MEMORY = 2**22  # random keys drawn at once: 16 MB


def history_items(rows):
    """Earlier items of each row's user, the whole past even where the window is cut.

    Args:
        rows (Rows): Rows of evaluation.

    Returns:
        tuple[numpy.ndarray, numpy.ndarray]: Row number and item, int64, one entry per event that
        is not the target's item.
    """
    lengths = rows.history_lengths()
    row = np.repeat(np.arange(len(rows)), lengths)
    item = rows.events.items[slices_index(rows.targets - lengths, lengths)]
    keep = item != rows.target_items()[row]
    return row[keep], item[keep]


def draw_candidates(rows, weights, number, rng, exclude_history=False):
    """Distinct candidates of every row, without the target.

    Exponential draws divided by the weights: the smallest keys are a draw without replacement with these
    weights (Efraimidis and Spirakis, Information Processing Letters 97(5), 2006).

    Args:
        rows (Rows): Rows of evaluation.
        weights (numpy.ndarray): Weight of each item, shape (n_items,); 0 is never drawn.
        number (int): Candidates per row.
        rng (numpy.random.Generator): Where the randomness comes from.
        exclude_history (bool): Whether earlier items of the user are no candidates either.

    Returns:
        numpy.ndarray: Item ids, int32, shape (r, number). Where a row has too few items left, some are of its
            history.
    """
    items = np.flatnonzero(weights)
    place = np.full(len(weights), -1)
    place[items] = np.arange(len(items))
    scale = weights[items].astype(np.float32)
    step = max(1, KEYS_IN_MEMORY // len(items))
    drawn = [np.empty((0, number), dtype=np.int32)]
    for begin in range(0, len(rows), step):
        block = rows[begin : begin + step]
        keys = rng.standard_exponential((len(block), len(items)), dtype=np.float32) / scale
        _rule_out(keys, place, np.arange(len(block)), block.target_items(), np.inf)
        if exclude_history:
            _rule_out(keys, place, *history_items(block), np.finfo(np.float32).max)
        drawn.append(items[np.argpartition(keys, number - 1, axis=1)[:, :number]].astype(np.int32))
    return np.concatenate(drawn)


def _rule_out(keys, place, row, item, value):
    """Give items a key that is never among the smallest."""
    known = place[item] >= 0
    keys[row[known], place[item[known]]] = value


class RankingRule:
    """What must not rank in a batch of evaluation.

    Args:
        config (recbole.config.Config): Reads eval_args.mode, exclude_history and candidate_seed.
        rows (Rows): Rows of the phase.
        phase (str): `valid` or `test`.
        counts (numpy.ndarray): Occurrences of each item in training, shape (n_items,); entry 0 is the
            padding.

    Raises:
        ValueError: If there are fewer items than candidates asked for.
    """

    def __init__(self, config, rows, phase, counts):
        self.rows, self.n_items = rows, len(counts)
        self.exclude_history = bool(config["exclude_history"])
        mode = config["eval_args"]["mode"][phase]
        self.candidates = None
        if mode != "full":
            number, weights = _number_and_weights(mode, counts)
            rng = generator(config["candidate_seed"], PHASES.index(phase))
            self.candidates = draw_candidates(rows, weights, number, rng, self.exclude_history)

    def __call__(self, index):
        """What `scores[...] = -inf` takes.

        Args:
            index (numpy.ndarray): The batch's rows, shape (b,).

        Returns:
            None | torch.Tensor | tuple: Nothing; a bool mask (b, n_items), True where no item may rank; or
            row and item numbers.
        """
        rows = self.rows[index]
        history = tuple(map(torch.from_numpy, history_items(rows))) if self.exclude_history else None
        if self.candidates is None:
            return history
        barred = torch.ones(len(rows), self.n_items, dtype=torch.bool)
        barred.scatter_(1, torch.from_numpy(self.candidates[index].astype(np.int64)), False)
        if history is not None:
            barred[history] = True
        barred[torch.arange(len(rows)), torch.from_numpy(rows.target_items())] = False
        return barred


def _number_and_weights(mode, counts):
    """How many candidates `uni100` or `pop100` asks for, and each item's weight."""
    kind, digits = mode[:3], mode[3:]
    weights = np.ones(len(counts)) if kind == "uni" else counts.astype(np.float64)
    weights[0] = 0
    left = int((weights > 0).sum()) - 1
    if left < int(digits):
        where = " in the training events" if kind == "pop" else ""
        raise ValueError(
            f"eval_args.mode: {mode} asks for {digits} items besides the target, there are {left}{where}: "
            "set a smaller number, or full"
        )
    return int(digits), weights
