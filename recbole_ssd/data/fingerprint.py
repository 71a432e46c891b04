"""A short name for a split: two results with different fingerprints are not comparable."""

from __future__ import annotations

import hashlib


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
