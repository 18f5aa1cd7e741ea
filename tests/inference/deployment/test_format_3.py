"""Routers of format 3, as version 3 of the folder wrote them: the same router under today's names."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from format_3_router import GUIDE, PRIOR, as_format_3
from tiny_run import predictions, tiny_config, tiny_router

from pyro_smat.inference.assembly.config import build_config
from pyro_smat.inference.decision import Deployment
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.deployment.format_3 import from_format_3

TODAY = (
    "experts={count=2, sparsity=0.6}",
    "model={kind='routed', metric='euclidean', scale=4.0, gates='separate'}",
)


@pytest.mark.parametrize(
    ("guide", "prior", "today"),
    [
        ({}, {}, []),
        ({"covariance": "low_rank", "rank": 1}, {"scale": 3.0}, ["guide.covariance=low_rank", "guide.rank=1"]),
        ({"family": "point", "encoder": "deep_sets"}, {}, ["guide.kind=point", "guide.encoder.kind=deep_sets"]),
        ({"family": "concrete", "descriptors": False}, {}, ["guide.kind=concrete", "sources.descriptors=false"]),
        (
            {"family": "dirichlet"},
            {"kind": "cost_aware", "beta": 0.5},
            ["guide.kind=dirichlet", "prior={kind='cost_aware', beta=0.5}"],
        ),
        (
            {"family": "catalog", "catalog": {**GUIDE["catalog"], "max_sources": 2}},  # type: ignore[dict-item]
            {"kind": "mixture", "components": [PRIOR, {**PRIOR, "kind": "cost_aware", "beta": 3.0}]},
            [
                "guide={kind='catalog', catalog={kind='k_hot', max_sources=2}}",
                "prior={kind='mixture', components=['uniform', {kind='cost_aware', beta=3.0}]}",
            ],
        ),
        ({"family": "hierarchical"}, {"kind": "hierarchical"}, ["guide.kind=hierarchical", "prior=hierarchical"]),
    ],
)
def test_a_router_of_format_3_is_todays(
    guide: dict[str, Any], prior: dict[str, Any], today: list[str], tmp_path: Path
) -> None:
    """The tensors of a router keep their names: its folder with the old description predicts the same bits."""
    if "guide={" in "".join(today):
        today = [*today, "guide.encoder={kind='evidence', hidden=8}"]
    classifier = RoutedClassifier(tiny_router(tiny_config([*TODAY, *today])))
    classifier.save(tmp_path)
    catalog = None if classifier.router.catalog is None else list(classifier.router.catalog.names)
    (tmp_path / "router.json").write_text(json.dumps(as_format_3(guide=guide, prior=prior, catalog=catalog)))
    again = RoutedClassifier.load(tmp_path, network=classifier.router.network)
    assert torch.equal(predictions(again, "mean"), predictions(classifier, "mean"))
    assert again.router.model.scale.item() == pytest.approx(4.0)
    assert again.deployment == Deployment(
        rule={"kind": "posterior_predictive", "num_samples": 6},
        score="kl_to_prior",
        misrouting={"scores": [0.0, 1.0], "probabilities": [0.1, 0.3]},
    )
    assert again.save(tmp_path / "today").joinpath("router.json").read_text().startswith('{\n  "format": 4')
    converted = RoutedClassifier.load(tmp_path / "today", network=classifier.router.network)
    assert torch.equal(predictions(converted), predictions(again))


def test_settings_of_format_3_are_kept() -> None:
    config = build_config(from_format_3(as_format_3())["config"])
    assert [choice.to_dict() for choice in config.episodes.corruptions] == [
        {"kind": "class_imbalance", "imbalance": 0.2, "probability": 1.0},
        {"kind": "confounding", "probability": 0.3},
        {"kind": "label_noise", "fraction": [0.0, 0.5], "probability": 0.5},
    ]
    assert (config.training.orthogonality, config.model.gates, config.experts.count) == (0.25, "separate", 2)
    assert config.objective.episode_loss.kind == "predictive_nll"
    assert config.decision.rule.to_dict() == {"kind": "posterior_predictive", "num_samples": 6, "mass": 0.99}


@pytest.mark.parametrize(("old", "today"), [("never", math.inf), ("always", -math.inf), (0.25, 0.25)])
def test_thresholds_of_format_3(old: object, today: float) -> None:
    values = as_format_3()
    values["abstention"]["threshold"] = old
    assert Deployment.from_dict(from_format_3(values)["deployment"]).threshold == today


@pytest.mark.parametrize("missing", ["config", "abstention", "source_names", "network"])
def test_descriptions_of_format_3_that_lack_something_are_refused(missing: str, tmp_path: Path) -> None:
    values = as_format_3()
    del values[missing]
    (tmp_path / "router.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=rf"router\.json: '{missing}'; expected what RoutedClassifier.save wrote"):
        RoutedClassifier.load(tmp_path)
