"""Losses as functions of composition weights: values by their definitions, derivatives by differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from simplex_problems import cross_entropy, regression, squared_loss

from pyro_smat.metrics.arrays import FloatArray
from pyro_smat.solvers.objectives import CurvedObjective, LogisticObjective, QuadraticObjective


def classification(classes: int, blocks: int | None = None) -> tuple[FloatArray, FloatArray]:
    rng = np.random.default_rng(classes)
    shape = (20, 4, classes) if blocks is None else (20, blocks, 4, classes)
    return rng.normal(size=shape), rng.integers(0, classes, size=20)


def test_quadratic_of_predictions_is_the_squared_loss() -> None:
    rng = np.random.default_rng(0)
    predictions, targets = regression(rng, 30, 5, 0.5)
    weights = rng.dirichlet(np.ones(5))
    objective = QuadraticObjective.from_predictions(predictions, targets)
    assert objective.value(weights) == pytest.approx(squared_loss(predictions, targets, weights), rel=1e-12)
    blockwise = rng.normal(size=(30, 3, 5))
    weights = rng.dirichlet(np.ones(5), size=3)
    objective = QuadraticObjective.from_predictions(torch.from_numpy(blockwise), torch.from_numpy(targets))
    assert objective.shape == (3, 5)
    assert objective.value(weights) == pytest.approx(squared_loss(blockwise, targets, weights), rel=1e-12)


def test_small_errors_of_large_targets_keep_their_digits() -> None:
    rng = np.random.default_rng(0)
    predictions, targets = regression(rng, 30, 5, 0.5)
    weights = rng.dirichlet(np.ones(5))
    objective = QuadraticObjective.from_predictions(predictions + 1e7, targets + 1e7)
    assert objective.value(weights) == pytest.approx(squared_loss(predictions, targets, weights), rel=1e-7)


def test_logistic_value_is_the_cross_entropy() -> None:
    predictions, labels = classification(3)
    weights = np.random.default_rng(0).dirichlet(np.ones(4))
    objective = LogisticObjective(predictions, labels)
    assert objective.value(weights) == pytest.approx(cross_entropy(predictions, labels, weights), rel=1e-12)


def test_binary_is_the_case_of_two_classes() -> None:
    predictions, labels = classification(2)
    weights = np.random.default_rng(0).dirichlet(np.ones(4))
    binary = LogisticObjective(predictions[..., 1] - predictions[..., 0], labels)
    assert binary.value(weights) == pytest.approx(cross_entropy(predictions, labels, weights), rel=1e-12)


def test_blockwise_logits_add_up() -> None:
    predictions, labels = classification(3, blocks=2)
    weights = np.random.default_rng(0).dirichlet(np.ones(4), size=2)
    objective = LogisticObjective(predictions, labels)
    flat = LogisticObjective(predictions.reshape(20, 8, 3), labels)
    assert objective.shape == (2, 4)
    assert objective.value(weights) == pytest.approx(flat.value(weights.ravel()), rel=1e-12)
    np.testing.assert_allclose(objective.gradient(weights).ravel(), flat.gradient(weights.ravel()), rtol=1e-12)


@pytest.mark.parametrize(
    "objective",
    [
        QuadraticObjective(np.diag([1.0, 2.0, 0.0]) + 1.0, [0.3, -1.0, 2.0], 0.7),
        QuadraticObjective(np.diag([1.0, 2.0, 0.0, 3.0]) + 1.0, [[0.3, -1.0], [2.0, 0.0]]),
        LogisticObjective(*classification(4)),
        LogisticObjective(*classification(3, blocks=2)),
        LogisticObjective(classification(2)[0][..., 0], classification(2)[1]),
    ],
)
def test_derivatives_are_those_of_the_value(objective: CurvedObjective) -> None:
    weights = np.random.default_rng(1).dirichlet(np.ones(objective.shape[-1]), size=objective.shape[:-1])
    size = weights.size
    gradient, hessian = np.empty(size), np.empty((size, size))
    for coordinate in range(size):
        nudge = np.zeros(size)
        nudge[coordinate] = 1e-5
        ahead, behind = weights + nudge.reshape(weights.shape), weights - nudge.reshape(weights.shape)
        gradient[coordinate] = (objective.value(ahead) - objective.value(behind)) / 2e-5
        hessian[coordinate] = (objective.gradient(ahead) - objective.gradient(behind)).ravel() / 2e-5
    np.testing.assert_allclose(objective.gradient(weights).ravel(), gradient, atol=1e-8)
    np.testing.assert_allclose(objective.hessian(weights), hessian, atol=1e-8)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: QuadraticObjective.from_predictions(np.ones((3, 2)), np.ones(2)), r"targets \(2,\)"),
        (lambda: QuadraticObjective.from_predictions(np.ones(3), np.ones(3)), r"predictions have shape \(3,\)"),
        (lambda: QuadraticObjective.from_predictions(np.ones((0, 2)), np.ones(0)), "at least one example"),
        (lambda: QuadraticObjective.from_predictions(np.ones((3, 0)), np.ones(3)), "at least one example"),
        (lambda: QuadraticObjective.from_predictions(np.full((3, 2), np.nan), np.ones(3)), r"NaN or infinite at index"),
        (lambda: QuadraticObjective(np.eye(3), np.ones(2)), r"gram has shape \(3, 3\) and linear \(2,\)"),
        (lambda: QuadraticObjective(np.triu(np.ones((2, 2))), np.ones(2)), "not symmetric"),
        (lambda: QuadraticObjective(-np.eye(2), np.ones(2)), "negative eigenvalue"),
        (lambda: LogisticObjective(np.ones((3, 2)), [0, 1, 2]), "labels hold 2; expected integers from 0 to 1"),
        (lambda: LogisticObjective(np.ones((3, 2, 4)), [0, 1, -1]), "labels hold -1; expected integers from 0 to 3"),
        (lambda: LogisticObjective(np.ones((3, 2, 4)), [0, 1, 0.5]), "labels hold 0.5"),
        (lambda: LogisticObjective(np.ones((3, 2)), [0, 1]), r"labels \(2,\)"),
        (lambda: LogisticObjective(np.ones((0, 2)), []), "at least one example"),
        (lambda: LogisticObjective(np.full((3, 2), np.inf), [0, 1, 0]), "predictions is NaN or infinite"),
    ],
)
def test_bad_input_is_named(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
