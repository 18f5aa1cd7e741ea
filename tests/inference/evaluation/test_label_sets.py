"""Label sets of accepted tasks by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tiny_run import tiny_config, tiny_pool, tiny_router

from pyro_smat.inference.decision import Deployment
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.evaluation.certification import RunCertificates, certify_run
from pyro_smat.inference.evaluation.label_sets import calibrate_label_sets


def classifier_with(deployment: Deployment, *overrides: str) -> RoutedClassifier:
    return RoutedClassifier(tiny_router(tiny_config(overrides)), deployment)


@pytest.fixture(scope="module")
def classifier() -> RoutedClassifier:
    return classifier_with(Deployment(score="support_loss", threshold=0.9, coverage=0.5))


@pytest.fixture(scope="module")
def certified(classifier: RoutedClassifier) -> RunCertificates:
    return certify_run(classifier, tiny_pool(), split="test", rho=0.2, delta=0.1, episodes=80, progress=False)


def test_label_sets_of_accepted_tasks(classifier: RoutedClassifier, certified: RunCertificates) -> None:
    found = calibrate_label_sets(classifier, certified.evaluation, 0.8, "this pool")
    evaluation = certified.evaluation
    accepted = np.flatnonzero(evaluation.scores["support_loss"] <= 0.9)
    mass, misfits = [], []
    for i in accepted:
        rows = np.flatnonzero(evaluation.episode == i)
        misfits += [1 - evaluation.probabilities["posterior_predictive"][r, evaluation.labels[r]] for r in rows]
        mass += [1 / (len(rows) * (len(accepted) + 1))] * len(rows)
    order = np.argsort(misfits)
    expected = np.array(misfits)[order][np.flatnonzero(np.cumsum(np.array(mass)[order]) >= 0.8 - 1e-9)[0]]
    assert found.threshold == pytest.approx(expected, abs=1e-12)
    assert found.population == "accepted tasks among this pool"
    images = torch.rand(9, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    queries = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    open_rule, closed_rule = (Deployment(threshold=eta) for eta in (math.inf, -1.0))
    task = RoutedClassifier(classifier.router, open_rule).adapt(images, ["b", "a", "c"] * 3)
    sets = task.predict_sets(queries, 0.7)
    for row, inside in zip(task.predict_proba(queries).tolist(), sets, strict=True):
        assert inside == tuple(c for c, p in zip("abc", row, strict=True) if p >= 0.3)
    assert task.predict_sets(queries, math.inf) == [("a", "b", "c")] * 5
    shut = RoutedClassifier(classifier.router, closed_rule).adapt(images, ["b", "a", "c"] * 3)
    assert shut.predict_sets(queries, 0.0) == [("a", "b", "c")] * 5
    with pytest.raises(ValueError, match="abstains on every episode"):
        calibrate_label_sets(RoutedClassifier(classifier.router, closed_rule), evaluation)
    with pytest.raises(ValueError, match="images have shape"):
        shut.predict_sets(torch.rand(5), 0.5)
