"""The linear probe against scikit-learn's logistic regression."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from pyro_smat.inference.evaluation.baselines import BestSource, ComposedLibrary, LinearProbe
from pyro_smat.inference.evaluation.baselines.linear_probe import fit_logistic


@pytest.mark.parametrize("ridge", [1e-3, 1e-2, 1.0])
def test_against_scikit_learn(ridge: float, composed: ComposedLibrary, make_batch: Callable) -> None:
    batch = make_batch(composed)
    start = BestSource(composed)
    found = LinearProbe(start, ridge)(batch)
    for i in range(len(batch)):
        theta = start.parameters(batch)[i]

        def features(images, theta=theta):  # type: ignore[no-untyped-def]
            raw = torch.tanh(images.flatten(1) @ theta[:20].view(5, 4).T + theta[20:])
            return F.pad(F.normalize(raw, dim=-1), (0, 1), value=1.0).numpy()

        shots, asked = batch.support.mask[i], batch.query.mask[i]
        points = features(batch.support.images[i][shots])
        regression = LogisticRegression(C=1 / (len(points) * ridge), fit_intercept=False, tol=1e-12, max_iter=10_000)
        if batch.way[i] == 2:  # one row of weights for two classes: half of the penalty of two opposite rows
            regression.set_params(C=2 / (len(points) * ridge))
        regression.fit(points, batch.support.labels[i][shots].numpy())
        expected = regression.predict_proba(features(batch.query.images[i][asked]))
        way = int(batch.way[i])
        np.testing.assert_allclose(found[i, : int(asked.sum()), :way].numpy(), expected, atol=2e-5)
        assert not found[i, : int(asked.sum()), way:].any()


@pytest.mark.parametrize("ridge", [1e-3, 0.1])
def test_many_points_few_features_and_a_class_without_points(ridge: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 40, 3, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (2, 40), generator=generator)
    mask = torch.rand(2, 40, generator=generator) < 0.8
    classes = torch.ones(2, 4, dtype=torch.bool)  # class 3 has no points
    weights = fit_logistic(x, labels, mask, classes, ridge)
    p = (x @ weights.mT).softmax(-1)
    residual = (p - F.one_hot(labels, 4)) * (mask / mask.sum(-1, keepdim=True)).unsqueeze(-1)
    gradient = residual.mT @ x + ridge * weights  # of the objective, over all 3 features
    assert gradient.abs().max() < 1e-8
    assert torch.isfinite(weights).all()


@pytest.mark.parametrize("settings", [{"ridge": 0.0}, {"ridge": float("nan")}, {"steps": 0}])
def test_bad_settings(settings: dict[str, Any], composed: ComposedLibrary) -> None:
    with pytest.raises(ValueError, match="expected above 0 and at least 1"):
        LinearProbe(BestSource(composed), **settings)
