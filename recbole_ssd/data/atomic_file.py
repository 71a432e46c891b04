"""What an atomic file must look like before pandas reads it, and which line is to blame when pandas cannot.

An atomic file is RecBole's table: a header of name:type fields, one record per line.
https://recbole.io/docs/user_guide/data/atomic_files.html
"""

from __future__ import annotations

import csv
import os

import pandas as pd

TYPES = ("token", "float", "token_seq", "float_seq")


def check_header(path, separator, encoding):
    """Read the header and the first record.

    Args:
        path (str): The atomic file.
        separator (str): RecBole's `field_separator`.
        encoding (str or None): RecBole's `encoding`.

    Returns:
        dict[str, str]: Column name to type, in file order.

    Raises:
        ValueError: If the file is empty, is no text, or its header has no name:type fields between
            separators.
    """
    try:
        with open(path, encoding=encoding) as file:
            header, record = file.readline().rstrip("\n"), file.readline().rstrip("\n")
    except (UnicodeError, LookupError) as error:  # LookupError: no such encoding
        raise ValueError(f"{path} cannot be decoded ({error}): set `encoding` to the file's own") from error
    if not header:
        raise ValueError(f"{path} is empty: expected a header such as user_id:token{separator}item_id:token")
    if header.startswith("\ufeff"):
        raise ValueError(f"{path} starts with a byte order mark: save it without, or set --encoding=utf-8-sig")
    fields = header.split(separator)
    for number, field in enumerate(fields, 1):
        name, _, kind = field.partition(":")
        if not name or kind not in TYPES:
            raise ValueError(
                f"{path}, line 1, column {number}: expected name:type with a type of {', '.join(TYPES)}, "
                f"got {field!r}; write such as user_id:token, item_id:token and timestamp:float; columns are separated "
                f"by {separator!r}, or by what `field_separator` says"
            )
    names = [field.partition(":")[0] for field in fields]
    if len(set(names)) < len(names):
        raise ValueError(f"{path}, line 1: a column stands twice in {', '.join(names)}; rename one of them")
    if not record:
        raise ValueError(f"{path} has a header and no records: add at least one line of data")
    return dict(field.split(":") for field in fields)


def check_widths(path, separator, encoding, columns):
    """Refuse a line with more or fewer columns than the header.

    pandas would shift or drop values without a word. A quoted value may hold the separator; one that is not
    closed on its line would swallow the lines below it.

    Args:
        path (str): The atomic file.
        separator (str): As in `check_header`.
        encoding (str or None): As in `check_header`.
        columns (int): Columns of the header.

    Raises:
        ValueError: At the first such line.
    """
    with open(path, encoding=encoding, errors="replace") as file:
        for number, line in enumerate(file, 1):
            found = _width(line, separator) if '"' in line else line.count(separator) + 1
            if found is None:
                raise ValueError(
                    f"{path}, line {number}: a quoted value is not closed on its line: "
                    f"{line[:80].rstrip()!r}; take the quotation mark away"
                )
            if found != columns and line.strip():
                raise ValueError(
                    f"{path}, line {number}: expected {columns} columns separated by {separator!r} as in "
                    f"the header, got {found}: {line[:80].rstrip()!r}"
                )


def _width(line, separator):
    """Columns of a line with quotation marks, None if a quoted value stays open."""
    try:
        return len(next(csv.reader([line.rstrip("\r\n")], delimiter=separator, strict=True)))
    except csv.Error:
        return None


def blame(path, separator, encoding, header, error):
    """The sentence for a file that pandas refused.

    Args:
        path (str): The atomic file.
        separator (str): As in `check_header`.
        encoding (str or None): As in `check_header`.
        header (dict[str, str]): What `check_header` returned.
        error (ValueError): What pandas said.

    Returns:
        str: File, line, column and value of the first number that is none; otherwise pandas' own words.
    """
    if isinstance(error, UnicodeDecodeError):
        return f"{path} cannot be decoded ({error}): set `encoding` to the file's own"
    if isinstance(error, pd.errors.ParserError):  # names the line itself
        return f"{path} cannot be read: {error}"
    text = pd.read_csv(path, delimiter=separator, dtype=str, encoding=encoding, engine="python")
    for number, (name, kind) in enumerate(header.items()):
        if kind == "float":
            column = text.iloc[:, number]
            wrong = column.notna() & pd.to_numeric(column, errors="coerce").isna()
            if wrong.any():
                line = int(wrong.to_numpy().argmax())
                return (
                    f"{path}, line {line + 2}, column '{name}': expected a number, got "
                    f"{column.iloc[line]!r}; mend the line (a time is a number, such as seconds since 1970: in pandas "
                    "pd.to_datetime(column).map(pd.Timestamp.timestamp)), or declare text that is no time as "
                    f"{name}:token"
                )
    return f"{path} cannot be read: {error}"


def check_columns(path, header, loaded, needed):
    """Refuse a log that lacks a column we cannot do without.

    Args:
        path (str): The atomic file.
        header (dict[str, str]): What `check_header` returned.
        loaded (Callable[[str], bool]): Whether `load_col` and `unload_col` let a column through.
        needed (dict[str, tuple[str, str]]): Config key to (column name, type).

    Raises:
        ValueError: If a column is not set, not in the file, of another type, or not loaded.
    """
    for key, (name, kind) in needed.items():
        if name is None:
            raise ValueError(f"'{key}' is not set: name the column of {os.path.basename(path)} that holds it")
        if name not in header:
            raise ValueError(
                f"{path} has no column '{name}' ({key}): its columns are {', '.join(header)}; "
                f"set --{key}=NAME to the right one"
            )
        if header[name] != kind:
            raise ValueError(
                f"{path}, column '{name}' ({key}): expected type {kind}, the header says {header[name]}; "
                f"change the header to {name}:{kind}"
            )
        if not loaded(name):
            raise ValueError(
                f"{path}, column '{name}' ({key}) is not loaded: add it to `load_col: {{inter: [...]}}` "
                f"and leave it out of `unload_col`"
            )


def with_names(feat, path, separator, encoding, header):
    """Give back the names that pandas reads as missing, such as NA, null and None: missing is what is empty.

    Args:
        feat (pandas.DataFrame): What RecBole read, a row per record.
        path (str): The atomic file.
        separator (str): As in `check_header`.
        encoding (str or None): As in `check_header`.
        header (dict[str, str]): What `check_header` returned.

    Returns:
        pandas.DataFrame: The same.
    """
    gaps = [name for name in feat.columns if header[name] == "token" and feat[name].isnull().any()]
    if gaps:
        fields = {f"{name}:token": name for name in gaps}
        options = {"usecols": list(fields), "dtype": str, "keep_default_na": False, "na_values": [""]}
        text = pd.read_csv(path, delimiter=separator, encoding=encoding, engine="python", **options)
        feat[gaps] = text.rename(columns=fields)[gaps]
    return feat
