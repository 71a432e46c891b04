"""Rows of a data set as four integers each, and the padded windows they stand for.

RecBole's SequentialDataset keeps a padded copy of every prefix. Here a row is (user, start, end, target): the
events start .. end-1 of the sorted log are its history, the event at `target` is to be predicted. Columns and
windows are gathered when somebody asks for them, with the values, dtypes and shapes that RecBole would have
stored.
"""

from __future__ import annotations

import numpy as np
import torch
from recbole.data.interaction import Interaction

USER, START, END, TARGET = range(4)


def history_rows(events, max_length):
    """All rows of a log: one for each event that has a past.

    Args:
        events (EventLog): The sorted log.
        max_length (int or None): Windows hold at most that many events; None means the whole past.

    Returns:
        numpy.ndarray: int64, shape (r, 4), in the log's order.
    """
    target = events.targets()
    start = events.first_event(target)
    if max_length is not None:
        start = np.maximum(start, target - max_length)
    return np.stack([events.users[target], start, target, target], axis=1)


class Rows:
    """Stands where RecBole keeps `inter_feat`: columns by name, rows by index, windows only on request.

    Args:
        events (EventLog): The sorted log, shared by all selections.
        table (numpy.ndarray): int64, shape (r, 4): user, start, end, target.
        max_length (int or None): Width of padded windows; None pads to the longest window asked for.
        length_field (str): Name of the column of window lengths.
        list_suffix (str): What makes a window's name of a column's name.
        list_widths (dict[str, int]): Values an event holds in each sequence column (token_seq, float_seq).
        dropped (frozenset[str]): Columns that are no longer to be seen (RecBole's `unused_col`).
    """

    def __init__(self, events, table, max_length, length_field, list_suffix, list_widths, dropped=frozenset()):
        self.events, self.table, self.max_length = events, table, max_length
        self.length_field, self.list_suffix, self.list_widths = length_field, list_suffix, list_widths
        self.dropped = dropped
        self._cache = {}

    def __getstate__(self):
        return {**self.__dict__, "_cache": {}}

    @property
    def columns(self):
        """Names of all columns, windows included, in RecBole's order."""
        names = list(self.events.columns)
        windows = [name + self.list_suffix for name in names if name != self.events.uid_field]
        return [name for name in [*names, self.length_field, *windows] if name not in self.dropped]

    def __iter__(self):
        return iter(self.columns)

    def __contains__(self, name):
        return name in self.columns

    def __len__(self):
        return len(self.table)

    def __getitem__(self, index):
        """A column for a name; for anything else the selected rows, still lazy (one row for an int)."""
        if isinstance(index, str):
            return self._column(index)
        if isinstance(index, (int, np.integer)):
            index = [index]
        return self._with(self.table[as_index(index)])

    def _with(self, table, dropped=None):
        return Rows(
            self.events,
            table,
            self.max_length,
            self.length_field,
            self.list_suffix,
            self.list_widths,
            self.dropped if dropped is None else dropped,
        )

    def _column(self, name):
        if name not in self.columns:
            raise KeyError(f"the data set has no column '{name}'; it has {', '.join(self.columns)}")
        if name not in self._cache:
            self._cache[name] = self._gather(name)
        return self._cache[name]

    def _gather(self, name):
        if name == self.length_field:
            return torch.from_numpy(self.lengths())
        if name in self.events.columns:
            return self.events.columns[name][self.table[:, TARGET]]
        return WindowColumn(self, name)

    @property
    def users(self):
        """User of each row, int64, shape (r,)."""
        return self.table[:, USER]

    @property
    def starts(self):
        """First event of each row's window, int64, shape (r,)."""
        return self.table[:, START]

    @property
    def targets(self):
        """Event to predict in each row, int64, shape (r,)."""
        return self.table[:, TARGET]

    def lengths(self):
        """Events in each row's window, int64, shape (r,)."""
        return self.table[:, END] - self.starts

    def history_lengths(self):
        """Events of each row's user before the target, in the window or not, int64, shape (r,)."""
        return self.targets - self.events.first_event(self.targets)

    def target_items(self):
        """Item to predict in each row, int64, shape (r,)."""
        return self.events.items[self.targets]

    def window(self, name):
        """The padded windows of one column.

        Args:
            name (str): A window's name, such as item_id_list.

        Returns:
            torch.Tensor: Shape (r, w, ...), zeros behind each history, dtype of the column.
        """
        return self._window(name, *self._positions())

    def _window(self, name, position, behind):
        # numpy, not torch: gathers of this size lose more to torch's threads than they gain
        window = self.events.columns[name[: -len(self.list_suffix)]].numpy()[position]  # (r, w, ...)
        window[behind] = 0
        return self._fill_width(torch.from_numpy(window), self.list_widths.get(name))

    def _positions(self):
        """Where in the log each place of the windows lies, and what lies behind its end, both (r, w)."""
        width = self.max_length or int(self.lengths().max(initial=0))
        place = self.table[:, START, None] + np.arange(width)
        end = self.table[:, END, None]
        # behind its end a window reads its last event, which always exists, and zeroes it later
        return np.minimum(place, end - 1), place >= end

    @staticmethod
    def _fill_width(window, width):
        """RecBole makes room for the longest sequence in the file, even if filtering removed that event."""
        if width is None or window.shape[2] >= width:
            return window
        room = window.new_zeros((*window.shape[:2], width - window.shape[2], *window.shape[3:]))
        return torch.cat([window, room], dim=2)

    def padded(self):
        """All columns and windows as RecBole's Interaction."""
        positions = self._positions()
        return Interaction(
            {
                name: self._window(name, *positions) if self._is_window(name) else self._column(name)
                for name in self.columns
            }
        )

    def _is_window(self, name):
        return name != self.length_field and name not in self.events.columns

    def sort(self, by, ascending=True):
        """Sort the rows in place and stably, as RecBole's Interaction does."""
        by = [by] if isinstance(by, str) else by
        ascending = [ascending] * len(by) if isinstance(ascending, bool) else ascending
        for name, up in zip(by[::-1], ascending[::-1], strict=True):
            key = self[name].numpy()
            order = np.argsort(key if key.ndim == 1 else key[..., 0], kind="stable")
            self._reorder(order if up else order[::-1])

    def shuffle(self):
        """Shuffle the rows in place, with RecBole's draw of random numbers."""
        self._reorder(torch.randperm(len(self)).numpy())

    def _reorder(self, order):
        self.table, self._cache = self.table[order], {}

    def in_time_order(self):
        """The rows by the time of their targets; ties stay in their order."""
        return self._with(self.table[np.argsort(self.target_time(), kind="stable")])

    def target_time(self):
        """Time of each row's target as the log was sorted by it, shape (r,)."""
        return self.events.time[self.table[:, TARGET]]

    def drop(self, columns, inplace=True):
        """Hide a column. RecBole's `unused_col` calls this with pandas' argument names."""
        self.dropped = self.dropped | {columns}


class WindowColumn:
    """One column's windows, padded when they are indexed: `inter_feat["item_id_list"][5]`.

    Args:
        rows (Rows): Whose windows.
        name (str): The window's name, such as item_id_list.
    """

    def __init__(self, rows, name):
        self.rows, self.name = rows, name

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        window = self.rows[index].window(self.name)
        return window[0] if np.ndim(index) == 0 and not isinstance(index, slice) else window


def as_index(index):
    """What numpy can index with, for RecBole's lists, ranges, tensors, arrays and slices."""
    if isinstance(index, slice):
        return index
    index = np.asarray(index)
    return index if index.dtype == bool else index.astype(np.int64).reshape(-1)
