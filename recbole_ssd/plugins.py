"""Models from other packages: a package that is installed names them as entry points, and they run by name.

    [options.entry_points]
    recbole_ssd.models =
        MyModel = my_package.mymodel:MyModel

Their settings lie beside their module: MyModel.yaml, and MyModel-<dataset>.yaml for one data set.
"""

from __future__ import annotations

import inspect
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

GROUP = "recbole_ssd.models"


def plugins() -> list[EntryPoint]:
    """The entry points, by name; nothing is imported."""
    return sorted(entry_points(group=GROUP), key=lambda entry: entry.name)


def load_plugin(entry: EntryPoint) -> type:
    """The class that an entry point names.

    Raises:
        ValueError: if its module cannot be imported, or holds no class of the entry point's name.
    """
    whose = f"the entry point '{entry.name} = {entry.value}' of {package_of(entry)}"
    try:
        item = entry.load()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{whose} cannot be loaded: {error}") from error
    if not isinstance(item, type) or item.__name__ != entry.name:
        raise ValueError(f"{whose} should name a class '{entry.name}', it names {item!r}")
    return item


def package_of(entry: EntryPoint) -> str:
    """The distribution that brings an entry point."""
    return f"package '{entry.dist.name}'" if entry.dist else "an installed package"


def folder_of(model_class: type) -> Path | None:
    """Where the settings of a model from outside lie; None for ours and RecBole's."""
    if model_class.__module__.partition(".")[0] in ("recbole_ssd", "recbole"):
        return None
    try:
        return Path(inspect.getfile(model_class)).parent
    except (TypeError, OSError):  # a class typed into an interpreter
        return None
