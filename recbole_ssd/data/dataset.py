"""RecBole's SequentialDataset without its copies: reads, filters and remaps as RecBole, then keeps slices.

Documented rules, each logged: a user whose events fall away by filtering is gone; a user with one event gives
no row; repeated events are kept unless `rm_dup_inter` is set. `time_order: exact` sorts by the time as read
(float64, stable in file order), `time_order: recbole` by RecBole's float32 column, normalised as configured.
"""

from __future__ import annotations

import os

import numpy as np
import pandas as pd
from recbole.data.dataset import SequentialDataset as RecBoleSequentialDataset
from recbole.utils import FeatureSource, FeatureType

from recbole_ssd.data import atomic_file, download
from recbole_ssd.data.events import EventLog
from recbole_ssd.data.order import moved_test_targets
from recbole_ssd.data.rows import Rows, as_index, history_rows
from recbole_ssd.data.split import split_rows

FILTERS = (
    "val_interval",
    "user_inter_num_interval",
    "item_inter_num_interval",
    "filter_inter_by_user_or_item",
)


class SequentialDataset(RecBoleSequentialDataset):
    """Flat columns, sorted once, and rows of four integers.

    Before `build()` the attribute `inter_feat` is RecBole's DataFrame, afterwards `Rows`.

    Args:
        config (recbole.config.Config): RecBole's keys, and `time_order`.

    Raises:
        ValueError: If the data cannot be used as they are; the sentence names file, column and line.
    """

    def __init__(self, config):
        if config["benchmark_filename"] is not None:
            raise ValueError(
                f"benchmark_filename ({config['benchmark_filename']}) is not supported: give one .inter file "
                "with raw events, and a split in eval_args"
            )
        self.exact = config["time_order"] == "exact"
        super().__init__(config)

    # ---- reading -------------------------------------------------------------------------------------------

    def _load_data(self, token, dataset_path):
        if not os.path.exists(dataset_path):
            self._download()
        if not os.path.isfile(self._inter_path()):
            raise ValueError(
                f"{self._inter_path()} does not exist: {download.where_to_put(self.dataset_name, dataset_path)}"
            )
        super()._load_data(token, dataset_path)

    def _inter_path(self):
        return os.path.join(self.dataset_path, f"{self.dataset_name}.inter")

    def _download(self):
        download.fetch(self.dataset_name, self.dataset_path, self.logger)

    def _load_feat(self, filepath, source):
        separator, encoding = self.config["field_separator"], self.config["encoding"]
        if source != FeatureSource.INTERACTION and self._get_load_and_unload_col(source)[0] == set():
            return None  # no column of this file is asked for
        header = atomic_file.check_header(filepath, separator, encoding)
        if source == FeatureSource.INTERACTION:
            self._check_columns(filepath, header)
            atomic_file.check_widths(filepath, separator, encoding, len(header))
        try:
            feat = super()._load_feat(filepath, source)
        except ValueError as error:
            raise ValueError(atomic_file.blame(filepath, separator, encoding, header, error)) from error
        return feat if feat is None else atomic_file.with_names(feat, filepath, separator, encoding, header)

    def _check_columns(self, path, header):
        load, unload = self._get_load_and_unload_col(FeatureSource.INTERACTION)
        needed = {
            "USER_ID_FIELD": (self.uid_field, "token"),
            "ITEM_ID_FIELD": (self.iid_field, "token"),
            "TIME_FIELD": (self.time_field, "float"),
        }
        atomic_file.check_columns(
            path, header, lambda name: (load is None or name in load) and name not in (unload or ()), needed
        )

    # ---- filtering -----------------------------------------------------------------------------------------

    def _data_filtering(self):
        """RecBole's filters; what falls away is logged."""
        before = self._size()
        super()._data_filtering()
        after = self._size()
        if after != before:
            self.logger.info(f"Filtering keeps {after[0]} of {before[0]} events, {after[1]} of {before[1]} users.")

    def _filter_nan_user_or_item(self):
        """As RecBole's, which takes numbers of lines for places: once some lines are gone it drops others."""
        for kind, field in (("user", self.uid_field), ("item", self.iid_field)):
            for name in (f"{kind}_feat", "inter_feat"):
                feat = getattr(self, name)
                gone = () if feat is None else feat.index[feat[field].isnull()]
                if len(gone):
                    lines = ", ".join(map(str, gone[:5] + 2)) + (", ..." if len(gone) > 5 else "")
                    self.logger.warning(f"{len(gone)} lines of {name} without {field} are left out: {lines}")
                    feat.drop(gone, inplace=True)

    def _size(self):
        return len(self.inter_feat), self.inter_feat[self.uid_field].nunique()

    def _remove_duplication(self):
        """RecBole's with a stable sort: of two events at one time the file's order decides which stays."""
        keep = self.config["rm_dup_inter"]
        if keep is None or not self.exact:
            super()._remove_duplication()
            return
        self.inter_feat.sort_values(by=self.time_field, kind="stable", inplace=True)
        self.inter_feat.drop_duplicates(subset=[self.uid_field, self.iid_field], keep=keep, inplace=True)

    def _reset_index(self):
        """Last moment at which the index still tells the line in the file, and first one after filtering."""
        for name in self.feat_name_list:
            if getattr(self, name).empty:
                self._refuse_empty(name)
        self._check_times(self.inter_feat[self.time_field])
        super()._reset_index()
        self.exact_time = self.inter_feat[self.time_field].to_numpy(dtype=np.float64, copy=True)

    def _refuse_empty(self, name):
        filters = ", ".join(f"{key}: {self.config[key]}" for key in FILTERS if self.config[key] is not None)
        raise ValueError(
            f"{self._inter_path()}: filtering leaves nothing of {name}; loosen the filters ({filters}) and "
            "check that the user and item columns are filled"
        )

    def _check_times(self, time):
        wrong = ~np.isfinite(time.to_numpy())
        if wrong.any():
            lines = ", ".join(str(line + 2) for line in time.index[wrong][:3])
            more = f" and {int(wrong.sum()) - 3} more" if wrong.sum() > 3 else ""
            raise ValueError(
                f"{self._inter_path()}, column '{self.time_field}': expected a finite number, got "
                f"{time[wrong].iloc[0]} on line {lines}{more}. Mend the file, or drop such events with "
                f"val_interval: {{'{self.time_field}': '(-inf,inf)'}}"
            )

    def _filter_by_field_value(self):
        """RecBole's, which takes a list for a column of numbers as no filter at all."""
        for field, wanted in (self.config["val_interval"] or {}).items():
            kind = self.field2type.get(field)
            is_number = kind in (FeatureType.FLOAT, FeatureType.FLOAT_SEQ)
            if kind is not None and is_number != isinstance(wanted, str):
                expected = "numbers: give an interval such as '[3,inf)'" if is_number else "names: give a list of them"
                raise ValueError(f"val_interval of '{field}' is {wanted!r}, and the column holds {expected}")
        super()._filter_by_field_value()

    # ---- from events to rows -------------------------------------------------------------------------------

    def data_augmentation(self):
        """Sort the events and describe every row by four integers; RecBole copies each prefix here."""
        columns = self.inter_feat.interaction
        if self.time_field not in columns:
            raise ValueError(
                f"'{self.time_field}' (TIME_FIELD) was replaced by `threshold`: choose another column for it"
            )
        self.rounded_time = _first_channel(columns[self.time_field])
        time = self.exact_time if self.exact else self.rounded_time
        self.events = EventLog(columns, self.uid_field, self.iid_field, time)
        length = self.config["MAX_ITEM_LIST_LENGTH"]
        self.max_item_list_len = length or max(self.events.longest_history - 1, 1)
        self._aug_presets()
        suffix = self.config["LIST_SUFFIX"]
        widths = {
            name + suffix: self.field2seqlen[name]
            for name in columns
            if self.field2type[name] in (FeatureType.TOKEN_SEQ, FeatureType.FLOAT_SEQ)
        }
        table = history_rows(self.events, length)
        self.inter_feat = Rows(self.events, table, length, self.item_list_length_field, suffix, widths)
        self._log_rules()

    def _log_rules(self):
        sizes = self.events.stops - self.events.starts
        single, repeats = int((sizes == 1).sum()), self.events.repeats()
        if single:
            self.logger.info(f"{single} users have one event: nothing to predict, they give no row.")
        if repeats:
            self.logger.info(
                f"{repeats} events repeat user, item and time of the event before them and are kept; "
                f"rm_dup_inter: first (or last) keeps one event per user and item."
            )

    def build(self):
        """Sort the rows by time and split them.

        Returns:
            list[SequentialDataset]: Training, validation and test, in RecBole's order of rows.

        Raises:
            ValueError: If nothing is left to train or test on.
        """
        args = self.config["eval_args"]
        if isinstance(self.inter_feat, pd.DataFrame):
            self._change_feat_format()
            self._drop_unused_col()
        self.inter_feat = rows = self.inter_feat.in_time_order()
        split, group_by = args["split"], args["group_by"]
        parts = split_rows(rows.users, rows.target_time(), split, group_by)
        self._check_parts([len(part) for part in parts], split)
        if self.exact:
            self._log_moved(rows[parts[2]].targets, split, group_by)
        return [self.copy(rows[part]) for part in parts]

    def _check_parts(self, sizes, split):
        for phase, size in zip(("training", "validation", "test"), sizes, strict=True):
            unasked = phase != "training" and _asks_nothing(split, phase)
            if size or unasked:
                continue
            sentence = (
                f"{self._inter_path()}: no {phase} rows with eval_args.split {split} on {len(self.events)} "
                f"events of {self.user_num - 1} users: histories are too short; loosen the filters or change "
                "the split"
            )
            if phase == "validation":  # RecBole then trains without early stopping
                self.logger.warning(sentence)
            else:
                raise ValueError(sentence)

    def _log_moved(self, test_targets, split, group_by):
        rounded = self.rounded_time[self.events.place]
        moved = moved_test_targets(self.events, rounded, test_targets, split, group_by)
        self.logger.info(
            f"time_order: exact; {moved} of {len(test_targets)} test targets differ from RecBole's float32 order."
        )

    # ---- what models, loaders and users ask ----------------------------------------------------------------

    def token2id(self, field, tokens):
        """RecBole's numbers of tokens.

        Raises:
            ValueError: If the data set has no such token; the sentence names field and file.
        """
        if isinstance(tokens, str) and tokens not in self.field2token_id.get(field, {tokens: 0}):
            raise ValueError(
                f"{field} '{tokens}' is not in {self._inter_path()}, or filtering removed it: a model knows "
                "only what it was trained on"
            )
        return super().token2id(field, tokens)

    def __getitem__(self, index, join=True):
        """RecBole's padded Interaction of the rows asked for (without the row axis for an int)."""
        padded = self.inter_feat[index].padded()
        if np.ndim(index) == 0 and not isinstance(index, slice):
            padded = padded[0]
        return self.join(padded) if join else padded

    def inter_matrix(self, form="coo", value_field=None):
        """Users x items, one entry per event of the rows, as RecBole's.

        Args:
            form (str): `coo` or `csr`.
            value_field (str or None): Column of the entries; None counts ones.

        Returns:
            scipy.sparse.spmatrix: Shape (user_num, item_num).
        """
        target = self.inter_feat.targets
        first = target[target - 1 == self.events.first_event(target)] - 1  # seen in no other row as a target
        columns = self.events.columns
        names = [self.uid_field, self.iid_field] + ([value_field] if value_field else [])
        position = as_index(np.concatenate([target, first]))
        feat = {name: columns[name][position] for name in names}
        return self._create_sparse_matrix(_Feat(feat), self.uid_field, self.iid_field, form, value_field)


class _Feat(dict):
    """Columns with the length of one, which is what RecBole's matrix builder asks for."""

    def __len__(self):
        return len(next(iter(self.values())))


def _first_channel(time):
    """float32 times of shape (n,): `numerical_features` stores a float as a pair whose first is the value."""
    time = time.numpy()
    return time if time.ndim == 1 else np.ascontiguousarray(time[..., 0])


def _asks_nothing(split, phase):
    kind, value = next(iter(split.items()))
    if kind == "LS":
        return value == {"validation": "test_only", "test": "valid_only"}[phase]
    return value[{"validation": 1, "test": 2}[phase]] == 0
