"""Read a key of ours and refuse what cannot be meant."""

from __future__ import annotations


def choice(config, key, allowed):
    """The value of a key that takes one of a few words.

    Raises:
        ValueError: If it is another word or not set.
    """
    if config[key] not in allowed:
        raise ValueError(f"{key}: expected {' or '.join(allowed)}, got {config[key]!r}")
    return config[key]


def count(config, key):
    """The value of a key that takes a whole number above zero.

    Raises:
        ValueError: If it is none.
    """
    value = config[key]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{key}: expected a whole number above 0, got {value!r}")
    return value
