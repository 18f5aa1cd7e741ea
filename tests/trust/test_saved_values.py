"""Every value of the saved JSON files, removed or replaced by others: a ValueError that names the file, or harmless."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_world import task_of

from pyro_smat.cost import Calibration
from pyro_smat.files import content_digest
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.deployment.monitoring import RoutingMonitor

WRONG: tuple[Any, ...] = (None, True, -1, 10**30, 1e308, "", "a/b.py:C", [], {}, [[]], {"a": 1}, ["x", None])
REMOVED = object()


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value of nested JSON; of long lists of numbers only the first."""
    if path:
        yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    if isinstance(value, list):
        for index in range(min(len(value), 2)):
            yield from places(value[index], (*path, index))


def changed(values: dict[str, Any], path: tuple[Any, ...], new: Any) -> dict[str, Any]:
    """The values with another one at a place, and the digest that goes with it: what a forger would write."""
    found = copy.deepcopy(values)
    inner = found
    for key in path[:-1]:
        inner = inner[key]
    if new is REMOVED:
        del inner[path[-1]]
    else:
        inner[path[-1]] = new
    if path != ("digest",):
        found.pop("digest", None)
        found["digest"] = content_digest(found)
    return found


def problems(path: Path, use: Callable[[], object], wrong: tuple[Any, ...]) -> list[str]:
    """What happened otherwise than promised."""
    values, found = json.loads(path.read_text()), []
    for place in places(values):
        for new in (REMOVED, *wrong):
            path.write_text(json.dumps(changed(values, place, new)))
            try:
                use()
            except ValueError as error:
                if path.name not in str(error) and str(path.parent) not in str(error):
                    found.append(f"{place} = {new!r}: does not name the file: {error}")
            except Exception as error:
                found.append(f"{place} = {new!r}: {type(error).__name__}: {error}")
    return found


@pytest.fixture
def router_json(run: Path, tmp_path: Path) -> Path:
    shutil.copytree(run / "router", tmp_path / "router")
    return tmp_path / "router" / "router.json"


def use_router(folder: Path) -> Callable[[], object]:
    support, labels, queries = task_of(0)

    def use() -> object:
        router = RoutedClassifier.load(folder)
        task = router.adapt(support, labels)
        return task.predict_proba(queries), str(task.explain())

    return use


def test_router_json(router_json: Path) -> None:
    assert problems(router_json, lambda: RoutedClassifier.load(router_json.parent), (None,)) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pyro_smat.inference.deployment.inputs.InputWarning")  # a forged size of images
def test_router_json_that_is_used(router_json: Path) -> None:
    assert problems(router_json, use_router(router_json.parent), WRONG) == []


def test_a_router_of_format_3(router_json: Path) -> None:
    """Where values are looked up one by one, without a schema of their own."""
    values = {"format": 3, "network": "conv4", "network_options": {}, "source_names": ["a"], "catalog": None}
    values |= {"config": {"guide": {}, "experts": {}, "sources": {}}, "own_classes": {}, "abstention": {}}
    router_json.write_text(json.dumps(values))
    assert problems(router_json, use_router(router_json.parent), WRONG) == []


def test_a_changed_value_without_its_digest_is_refused(router_json: Path) -> None:
    values = json.loads(router_json.read_text())
    for place in places(values):
        if place in (("digest",), ("format",)):
            continue
        forged = changed(values, place, REMOVED)
        forged["digest"] = values["digest"]
        router_json.write_text(json.dumps(forged))
        with pytest.raises(ValueError, match=r"router\.json: .*digest"):
            RoutedClassifier.load(router_json.parent)


def test_monitor_json(tmp_path: Path) -> None:
    path = tmp_path / "monitor.json"
    monitor = RoutingMonitor.from_validation({"kl": [0.1, 0.2, 0.3], "entropy": torch.rand(4)})
    monitor.update({"kl": 0.1, "entropy": 0.5})
    monitor.save(path)

    def use() -> object:
        again = RoutingMonitor.load(path)
        scores = dict.fromkeys(again.martingales, 0.2)
        return str(again.update(scores)), again.save(tmp_path / "again.json")

    assert problems(path, use, WRONG) == []


def test_cost_json(tmp_path: Path) -> None:
    from pyro_smat.cost.calibration import BlockTimes, Machine
    from pyro_smat.cost.model import CostModel
    from pyro_smat.cost.timing import Line

    path = tmp_path / "cost.json"
    block = BlockTimes("all", 12, Line(0.1, 0.2, 0.9, 0.01), 0.1, 0.02)
    models = CostModel((0.1,), (0.1,), fixed=1.0, unit="ms"), CostModel((48.0,), (48.0,), unit="bytes")
    Calibration(*models, (block,), 0.9, 25, Machine("processor", "cpu", "2.8", 1)).save(path)
    assert problems(path, lambda: str(Calibration.load(path)), WRONG) == []
