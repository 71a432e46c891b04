"""Fetch a data set of RecBole's list, in one process.

RecBole's own `_download` ends in torch.distributed.barrier(), which dies outside of a process group: the
first command of every new user. Here the archive is unpacked beside its place and renamed when it is
whole.
"""

from __future__ import annotations

import difflib
import os
import socket
import tempfile
import zipfile
from functools import cache
from importlib.resources import files
from pathlib import Path

import yaml
from recbole.utils.url import decide_download, download_url, extract_zip, rename_atomic_files

TIMEOUT_S = 30


@cache
def known_datasets():
    """RecBole's names of data sets and where their archives lie: dict[str, str]."""
    text = files("recbole").joinpath("properties/dataset/url.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def where_to_put(name, folder):
    """The sentence that tells where a data set's file belongs."""
    return (
        f"put {name}.inter into {os.path.abspath(folder)}{os.sep}, or give --data_path=FOLDER "
        f"where FOLDER{os.sep}{name}{os.sep}{name}.inter exists"
    )


def check_known(name, folder):
    """Refuse a data set that lies nowhere and cannot be downloaded.

    Args:
        name (str): The data set's name.
        folder (str): Where it belongs.

    Raises:
        ValueError: If there is no such folder and the name is not on RecBole's list.
    """
    if os.path.isdir(folder) or name in known_datasets():
        return
    place = Path(folder).resolve().parent
    if (place / f"{name}.inter").is_file():  # --data_path names the data set's own folder
        hint = f"The file lies in {place}: put it into a folder of its name, and give the folder above as --data_path. "
        if place.name == name:
            hint = f"The file lies in {place}: give --data_path={place.parent}. "
    else:
        close = difflib.get_close_matches(
            name.removesuffix(".inter"), [*_local_datasets(folder), *known_datasets()], n=3
        )
        hint = f"Did you mean {' or '.join(dict.fromkeys(close))}? " if close else ""
    raise ValueError(
        f"there is no data set '{name}': the folder {os.path.abspath(folder)} does not exist and "
        f"RecBole's list of downloads does not have it. {hint}For your own data, "
        f"{where_to_put(name, folder)}"
    )


def fetch(name, folder, logger):
    """Download and unpack a data set.

    Args:
        name (str): The data set's name.
        folder (str): Where it belongs; must not exist yet.
        logger (logging.Logger): Told what is fetched.

    Raises:
        ValueError: If the name is not on RecBole's list.
        RuntimeError: If the download fails or is declined. No folder is left behind.
    """
    check_known(name, folder)
    urls = known_datasets()
    logger.info(f"Download the data set [{name}] from [{urls[name]}].")
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_S)  # urlopen without one waits forever behind a firewall
    try:
        _fetch_whole(name, folder, urls[name])
    # OSError: no network, no room. RuntimeError: RecBole's word for an interrupted download. EOFError: nobody
    # there to answer its question about sizes above 1 GB. TypeError: a server that does not say the size.
    except (OSError, RuntimeError, EOFError, TypeError, zipfile.BadZipFile) as error:
        if os.path.isfile(os.path.join(folder, f"{name}.inter")):
            return  # another process was faster
        raise RuntimeError(
            f"the data set '{name}' could not be downloaded from {urls[name]} ({error}): {where_to_put(name, folder)}"
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def _local_datasets(folder):
    """Names of the data sets that lie beside a folder."""
    parent = Path(folder).resolve().parent
    return sorted(file.parent.name for file in parent.glob("*/*.inter") if file.stem == file.parent.name)


def _fetch_whole(name, folder, url):
    if not decide_download(url):
        raise RuntimeError("the download was declined")
    parent = os.path.dirname(os.path.abspath(folder))
    is_new = not os.path.isdir(parent)
    os.makedirs(parent, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=parent) as scratch:
            os.rename(_unpack(name, url, scratch), folder)
    finally:
        if is_new and not os.listdir(parent):
            os.rmdir(parent)


def _unpack(name, url, scratch):
    """Download into a scratch folder and give the folder that holds the data set's files."""
    archive = download_url(url, scratch)
    unpacked = os.path.join(scratch, name)
    extract_zip(archive, unpacked)
    rename_atomic_files(unpacked, os.path.splitext(os.path.basename(archive))[0], name)
    if not os.path.isfile(os.path.join(unpacked, f"{name}.inter")):
        raise RuntimeError(f"the archive holds no {name}.inter")
    return unpacked
