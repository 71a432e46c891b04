"""What a trained model recommends: to users of the data set or to anybody else, a history is all it takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from numbers import Integral
from threading import Lock
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from recbole.data.interaction import Interaction

from recbole_ssd.model_lookup import did_you_mean

AT_ONCE = 1024  # histories that are scored together

_scoring: WeakKeyDictionary = WeakKeyDictionary()  # model -> (threads that score with it, its mode before them)
_counting = Lock()


def recommend(
    model: torch.nn.Module,
    dataset,
    histories: Sequence[Sequence[str]],
    k: int = 10,
    exclude_history: bool = True,
    times: Sequence[Sequence[float]] | None = None,
) -> list[list[tuple[str, float]]]:
    """The best items to follow each history.

    Args:
        model: a sequential model, ours or RecBole's, as `load_model` or `load_data_and_model` give it. Its weights are
            not changed.
        dataset: the items beside it that `load_model` gives, or the data set that it was trained on.
        histories: of item names, as the data set's file spells them, the latest last. RecBole's models read as many of
            the latest as their MAX_ITEM_LIST_LENGTH, ours what they read in training.
        k: how many.
        exclude_history: whether what is in a history is left out.
        times: of the events of each history, in the unit of the data set's file; models with `time_gaps` need them.

    Returns:
        for each history k pairs of an item's name and its score, the best first; fewer where not so many are left.

    Raises:
        ValueError: if a history is empty or has an item that the data set does not know, its times do not fit, or the
            model needs more than items to score one.

    Threads may call it at the same time with one model.
    """
    if not isinstance(k, Integral) or isinstance(k, bool) or k < 1:
        raise ValueError(f"k should be a whole number of 1 or more, it is {k}")
    rows = [_numbers(history, place, dataset) for place, history in enumerate(histories)]
    gaps = _gaps(rows, times) if getattr(model, "time_gap", None) is not None else None
    found = []
    with torch.no_grad(), _evaluating(model):
        for begin in range(0, len(rows), AT_ONCE):
            part = slice(begin, begin + AT_ONCE)
            found += _best(model, dataset, rows[part], gaps and gaps[part], k, exclude_history)
    return found


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """The model without dropout and masks; the last thread that scores with it brings its mode back."""
    with _counting:
        threads, training = _scoring.get(model, (0, model.training))
        _scoring[model] = threads + 1, training
        model.eval()
    try:
        yield
    finally:
        with _counting:
            threads, training = _scoring.pop(model)
            if threads > 1:
                _scoring[model] = threads - 1, training
            else:
                model.train(training)


def _numbers(history: Sequence[str], place: int, dataset) -> torch.Tensor:
    """The items of a history as the model numbers them, int64."""
    if isinstance(history, (str, Set, Mapping)) or not hasattr(history, "__len__") or not len(history):
        raise ValueError(f"history {place} should be a list of item names, it is {history!r}")
    known = dataset.field2token_id[dataset.iid_field]
    for item in history:
        if known.get(str(item), 0) == 0:  # 0 is the padding
            names = known.keys() - {"[PAD]"}
            raise ValueError(f"history {place}: the data set has no item '{item}'{did_you_mean(str(item), names)}")
    return torch.tensor([known[str(item)] for item in history])


def _gaps(rows: list, times: Sequence[Sequence[float]] | None) -> list[torch.Tensor]:
    """Time since the event before, 0 at the first of a history, float32."""
    if times is None:
        raise ValueError(
            "this model reads the time between events (time_gaps): give the times of the histories' events"
        )
    if len(times) != len(rows):
        raise ValueError(f"times should hold a list for each of the {len(rows)} histories, it holds {len(times)}")
    gaps = []
    for place, (row, own) in enumerate(zip(rows, times)):
        own = np.asarray(own, np.float64)
        if own.shape != (len(row),) or not np.isfinite(own).all() or (np.diff(own) < 0).any():
            raise ValueError(
                f"the times of history {place} should be {len(row)} numbers that do not fall, they are {own.tolist()}"
            )
        gaps.append(torch.from_numpy(np.diff(own, prepend=own[0]).astype(np.float32)))
    return gaps


def _best(model, dataset, rows: list, gaps: list | None, k: int, exclude_history: bool) -> list:
    batch = _packed(model, rows, gaps) if getattr(model, "packed", False) else _padded(model, rows)
    try:
        scores = model.full_sort_predict(batch.to(model.device)).view(len(rows), -1).float().cpu()
    except KeyError as error:
        raise ValueError(f"{type(model).__name__} reads {error} beside the items of a history") from error
    scores[:, 0] = -torch.inf  # the padding
    if exclude_history:
        owner = torch.arange(len(rows)).repeat_interleave(torch.tensor([len(row) for row in rows]))
        scores[owner, torch.cat(rows)] = -torch.inf
    best = scores.topk(min(k, scores.shape[1]))
    names = dataset.id2token(dataset.iid_field, best.indices.numpy())  # of a tensor of one it gives no array
    return [
        [(str(name), score) for name, score in zip(*row) if score > -torch.inf]
        for row in zip(names, best.values.tolist())
    ]


def _packed(model, rows: list, gaps: list | None) -> Interaction:
    """One stream, as our models read it."""
    rows, gaps = ([row[-(model.max_seq_length or len(row)) :] for row in part or ()] for part in (rows, gaps))
    borders = torch.tensor([0, *map(len, rows)], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    with_gaps = {"time_gaps": torch.cat(gaps)} if gaps else {}
    return Interaction({model.ITEM_SEQ: torch.cat(rows), "cu_seqlens": borders, **with_gaps})


def _padded(model, rows: list) -> Interaction:
    """A row of a fixed width for each history, as RecBole's models read it."""
    width = model.max_seq_length
    rows = [row[-width:] for row in rows]
    table = torch.stack([F.pad(row, (0, width - len(row))) for row in rows])
    return Interaction({model.ITEM_SEQ: table, model.ITEM_SEQ_LEN: torch.tensor([len(row) for row in rows])})
