"""Short names for data: two results whose splits have different ones are not comparable."""

from __future__ import annotations

import hashlib
from functools import cache
from glob import escape
from pathlib import Path


def split_fingerprint(valid, test):
    """Hash of the validation and test targets by raw token.

    It does not depend on internal ids, on the order of the file or on the training events, and changes when a
    user's target does.

    Args:
        valid, test (SequentialDataset): The built data sets, or their loaders.

    Returns:
        str: 12 hexadecimal digits of a SHA-256.
    """
    digest = hashlib.sha256()
    for phase, part in (("valid", valid), ("test", test)):
        dataset = getattr(part, "_dataset", part)
        rows = dataset.inter_feat
        users = dataset.field2id_token[dataset.uid_field][rows.users]
        items = dataset.field2id_token[dataset.iid_field][rows.target_items()]
        pairs = sorted(f"{user}\x1f{item}" for user, item in zip(users, items, strict=True))
        digest.update("\x1e".join([phase, *pairs, ""]).encode())
    return digest.hexdigest()[:12]


def files_fingerprint(folder, name):
    """Hash of what a data set is read from, all its files.

    Args:
        folder (str): Where they lie.
        name (str): The data set's.

    Returns:
        str: 12 hexadecimal digits of a SHA-256, or None where there is no file yet.
    """
    files = sorted(file for file in Path(folder).glob(f"{escape(name)}.*") if file.is_file())
    digests = [f"{file.name}\x1f{_digest(file, file.stat().st_size, file.stat().st_mtime_ns)}" for file in files]
    return hashlib.sha256("\x1e".join(digests).encode()).hexdigest()[:12] if files else None


@cache
def _digest(file, size, changed):
    """Of one file; size and time of change are there for the cache."""
    digest = hashlib.sha256()
    with open(file, "rb") as content:
        for block in iter(lambda: content.read(2**20), b""):
            digest.update(block)
    return digest.hexdigest()
