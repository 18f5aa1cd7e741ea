"""Run folders: config.json, history.csv, checkpoint.safetensors, router/ (the deployable router), monitor.json, and
for every evaluation evaluations/<name>/ with metrics.json, episodes.csv, figures/ and report.html."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyro_smat.distributed import World
from pyro_smat.files import locked, write_atomically
from pyro_smat.inference.assembly.config import RunConfig
from pyro_smat.inference.training.checkpoint import CHECKPOINT

SPLITS = ("train", "validation")
MONITOR = "monitor.json"  # of the validation episodes, for `pyro-smat monitor`
CATALOG = "catalog.safetensors"  # of a searched catalog


@contextmanager
def own_folder(folder: Path | None, *, wait: bool = False) -> Iterator[None]:
    """The folder is this run's own inside the block: the first of its processes locks it, see
    :func:`pyro_smat.files.locked`; None is no folder."""
    if folder is None or not World.current().leads:
        yield
        return
    with locked(folder, wait=wait):
        yield


def prepare_folder(folder: Path, config: RunConfig, *, resume: bool = False, replace: bool = False) -> None:
    """Make a run folder and write its config; the first process of a run does it.

    Args:
        folder: the run folder.
        config: the run.
        resume: the folder may hold this run already.
        replace: the folder may hold another run, which is then overwritten.

    Raises:
        ValueError: when the folder cannot be written, holds another run or is in use by another process, or ``resume``
            meets another config.
    """
    if World.current().leads:
        with locked(folder):
            _prepare(folder, config, resume=resume, replace=replace)


def _prepare(folder: Path, config: RunConfig, *, resume: bool, replace: bool) -> None:
    description = json.dumps(config.model_dump(mode="json"), indent=2)
    path = folder / "config.json"
    if not replace:
        if (folder / CHECKPOINT).exists() and not resume:
            raise ValueError(f"{folder}: already holds a run; pass --resume to continue it, or choose another --output")
        if resume and path.exists() and not _is_the_same_run(path.read_bytes(), description.encode()):
            raise ValueError(f"{folder}: holds a run with another config; resume with the same config and overrides")
    write_atomically(path, description.encode())


def _is_the_same_run(written: bytes, asked: bytes) -> bool:
    """Whether two texts of config.json are of the same training.

    An earlier version may have written the first: settings that it lacked are at their defaults, and splits without a
    name were called "train" and "validation". What evaluations report is no part of a training. Nothing that the text
    names is looked up.
    """
    if written == asked:
        return True
    try:
        configs = [json.loads(text) for text in (written, asked)]
        defaults = RunConfig().model_dump(mode="json") | {"evaluation": None}
        for config in configs:
            config["evaluation"] = None
            config["data"].update({name: name for name in SPLITS if config["data"].get(name) is None})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False
    first, second = (_filled(config, defaults) for config in configs)
    return first == second


def _filled(values: object, defaults: object) -> object:
    """Values with the defaults of the keys that they lack."""
    if isinstance(values, dict) and isinstance(defaults, dict):
        return defaults | {key: _filled(value, defaults.get(key)) for key, value in values.items()}
    return values


def router_folder(run: Path) -> Path:
    """The folder of the router of a run, or the folder itself where it holds a router."""
    return run if (run / "router.json").exists() else run / "router"
