"""RecBole's log, once for every run."""

from __future__ import annotations

import logging
import time

from recbole.utils import get_local_time
from recbole.utils import init_logger as recbole_init_logger

from recbole_ssd.environment import check_folder
from recbole_ssd.ops.backends import log_once

_handlers = []  # those of the latest run of this process


def init_logger(config) -> None:
    """Opens the log of a run, `log/<Model>/<Model>-<dataset>-<time>-<hash>.log`, and names the files read.

    RecBole's own does nothing where the root logger has a handler: the second run of a process writes into
    the log of the first. Here the handlers of our earlier run are closed, and those of others (pytest, a
    notebook) stay where they are.

    Raises:
        ValueError: if the folder cannot be written.
    """
    check_folder(f"log/{config['model']}", "the folder of the log")
    root = logging.getLogger()
    for handler in _handlers:
        root.removeHandler(handler)
        handler.close()
    _wait_for_new_name()
    others, root.handlers = root.handlers, []
    recbole_init_logger(config)
    _handlers[:] = root.handlers
    root.handlers = others + _handlers
    log_once.cache_clear()
    for file in config.files_read:
        root.info(f"settings read from {file}")
    for note in config.notes:
        root.warning(note)


def log_file() -> str | None:
    """The path of the latest run's log."""
    return next((handler.baseFilename for handler in _handlers if hasattr(handler, "baseFilename")), None)


def _wait_for_new_name() -> None:
    """RecBole names a log by the second: two equal runs within one would share it."""
    while _handlers and get_local_time() in (log_file() or ""):
        time.sleep(0.05)
