"""minimize_on_simplex: solutions against cvxpy, certificates, budgets, bad input."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from simplex_problems import cvxpy_cross_entropy, cvxpy_squared_loss, frank_wolfe_gap, regression, squared_loss

from pyro_smat.metrics.arrays import FloatArray
from pyro_smat.solvers.objectives import LogisticObjective, QuadraticObjective
from pyro_smat.solvers.simplex import Method, minimize_on_simplex

METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True)
class Wavy:
    """Not convex, and with no Hessian: what a composed deep network looks like from here."""

    shape: tuple[int, ...] = (5,)
    convex: bool = False

    def value(self, weights: FloatArray) -> float:
        return float(np.sin(7 * weights + np.arange(5)).sum())

    def gradient(self, weights: FloatArray) -> FloatArray:
        return 7 * np.cos(7 * weights + np.arange(5))


def classification(seed: int, examples: int, sources: int, classes: int) -> tuple[FloatArray, FloatArray]:
    rng = np.random.default_rng(seed)
    predictions = rng.normal(size=(examples, sources, classes)) + 0.5 * rng.normal(size=(examples, 1, classes))
    return predictions, (predictions[:, :2].mean(1) + 0.7 * rng.normal(size=(examples, classes))).argmax(1)


def test_squared_loss_is_that_of_cvxpy() -> None:
    for seed, (examples, sources, correlation) in enumerate([(25, 20, 0.0), (60, 10, 0.99), (15, 30, 0.9)]):
        predictions, targets = regression(np.random.default_rng(seed), examples, sources, correlation)
        solution = minimize_on_simplex(QuadraticObjective.from_predictions(predictions, targets))
        optimum = cvxpy_squared_loss(predictions, targets)
        assert squared_loss(predictions, targets, solution.weights) == pytest.approx(optimum, rel=1e-8)
        assert solution.status == "converged"
        assert solution.gap < 1e-14


@pytest.mark.parametrize(("sources", "classes"), [(6, 2), (20, 2), (8, 4)])
def test_cross_entropy_is_that_of_cvxpy(sources: int, classes: int) -> None:
    predictions, labels = classification(0, 25, sources, classes)
    solution = minimize_on_simplex(LogisticObjective(predictions, labels), tolerance=1e-10)
    assert solution.status == "converged"
    assert solution.iterations < 12
    assert solution.value == pytest.approx(cvxpy_cross_entropy(predictions, labels), rel=1e-8)


def test_blockwise_weights_are_those_of_cvxpy() -> None:
    rng = np.random.default_rng(0)
    predictions = rng.normal(size=(40, 3, 5))
    targets = predictions[:, :, :2].sum((1, 2)) / 2 + 0.3 * rng.normal(size=40)
    solution = minimize_on_simplex(QuadraticObjective.from_predictions(predictions, targets))
    assert solution.weights.shape == (3, 5)
    np.testing.assert_allclose(solution.weights.sum(1), 1, atol=1e-14)
    assert solution.value == pytest.approx(cvxpy_squared_loss(predictions, targets), rel=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_all_methods_agree(method: Method) -> None:
    """Newton, the tightest, is tested against cvxpy; here the others against it."""
    for objective in (
        QuadraticObjective.from_predictions(*regression(np.random.default_rng(1), 40, 8, 0.5)),
        LogisticObjective(*classification(1, 40, 8, 3)),
    ):
        solution = minimize_on_simplex(objective, method=method, max_iterations=1000)
        exact = minimize_on_simplex(objective, tolerance=1e-12)
        assert exact.value - 1e-12 <= solution.value <= exact.value + 1e-3
        assert solution.lower_bound is not None
        assert solution.lower_bound <= exact.value + 1e-12


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 10), st.integers(1, 15), st.sampled_from(METHODS), st.integers(1, 30), st.integers(0, 10_000))
def test_whatever_the_budget_the_answer_is_feasible_and_its_gap_true(
    sources: int, examples: int, method: Method, iterations: int, seed: int
) -> None:
    predictions, targets = regression(np.random.default_rng(seed), examples, sources, 0.3)
    objective = QuadraticObjective.from_predictions(predictions, targets)
    solution = minimize_on_simplex(objective, method=method, max_iterations=iterations)
    optimum = minimize_on_simplex(objective, tolerance=1e-13)
    assert solution.weights.min() >= 0
    assert solution.weights.sum() == pytest.approx(1, abs=1e-13)
    assert 0 <= solution.gap <= frank_wolfe_gap(objective.gradient(solution.weights), solution.weights) + 1e-13
    assert solution.value - optimum.value <= solution.gap + 1e-12


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 8), st.sampled_from([m for m in METHODS if m != "open-loop"]), st.integers(0, 10_000))
def test_order_of_sources_does_not_matter(sources: int, method: Method, seed: int) -> None:
    rng = np.random.default_rng(seed)
    predictions, targets = regression(rng, 30, sources, 0.3)
    order = rng.permutation(sources)
    one = minimize_on_simplex(QuadraticObjective.from_predictions(predictions, targets), method=method)
    two = minimize_on_simplex(QuadraticObjective.from_predictions(predictions[:, order], targets), method=method)
    assert two.value == pytest.approx(one.value, abs=one.gap + two.gap + 1e-14)
    tight = max(one.gap, two.gap) <= 1e-8
    np.testing.assert_allclose(two.weights, one.weights[order], atol=1e-2 if tight else 1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("most", [1, 2, 3, 8])
def test_no_more_sources_are_active_than_allowed(method: Method, most: int) -> None:
    objective = QuadraticObjective.from_predictions(*regression(np.random.default_rng(5), 30, 8, 0.3))
    optimum = minimize_on_simplex(objective)
    assert len(optimum.active) > 3
    solution = minimize_on_simplex(objective, method=method, max_active=most, max_iterations=300)
    assert 1 <= len(solution.active) <= most
    assert solution.gap >= solution.value - optimum.value - 1e-13  # of the whole simplex, not of the few
    if most <= 3 and method not in ("vanilla", "open-loop"):
        assert solution.status == "active"
    if most == 1 and method != "open-loop":
        assert solution.value == min(objective.value(vertex) for vertex in np.eye(8))


def test_few_sources_are_fitted_as_well_as_they_can_be() -> None:
    objective = QuadraticObjective.from_predictions(*regression(np.random.default_rng(5), 30, 8, 0.3))
    solution = minimize_on_simplex(objective, max_active=3)
    faces = [list(face) for face in itertools.combinations(range(8), 3)]
    values = [
        minimize_on_simplex(QuadraticObjective(objective.gram[np.ix_(face, face)], np.zeros(3))).value for face in faces
    ]
    own = values[faces.index(list(solution.active))]
    assert solution.value == pytest.approx(own, rel=1e-12)
    assert solution.value <= np.quantile(values, 0.1)


@pytest.mark.parametrize("objective", [Wavy(), LogisticObjective(*classification(2, 20, 5, 3))])
def test_a_limit_holds_in_every_block_and_for_a_start_that_exceeds_it(objective: Wavy | LogisticObjective) -> None:
    start = np.array([0.1, 0.4, 0.2, 0.25, 0.05])
    solution = minimize_on_simplex(objective, start=start, max_active=2, max_iterations=1)
    np.testing.assert_allclose(solution.weights, [0, 0.4 / 0.65, 0, 0.25 / 0.65, 0], atol=1e-15)
    predictions = np.random.default_rng(0).normal(size=(30, 3, 5))
    blockwise = QuadraticObjective.from_predictions(predictions, predictions.sum((1, 2)))
    solution = minimize_on_simplex(blockwise, max_active=2)
    assert (solution.weights > 0).sum(1).max() <= 2
    assert solution.status == "active"


def test_time_is_a_budget_and_an_iteration_is_always_made() -> None:
    objective = QuadraticObjective.from_predictions(*regression(np.random.default_rng(6), 30, 8, 0.3))
    for method in METHODS:
        solution = minimize_on_simplex(objective, method=method, seconds=1e-9, start=np.full(8, 1 / 8))
        assert (solution.status, solution.iterations) == ("seconds", 1)
        assert solution.gap == pytest.approx(frank_wolfe_gap(objective.gradient(np.full(8, 1 / 8)), np.full(8, 1 / 8)))


def test_a_router_output_in_float32_is_a_start() -> None:
    objective = QuadraticObjective.from_predictions(*regression(np.random.default_rng(7), 30, 8, 0.3))
    start = torch.softmax(torch.arange(8.0), 0)
    cold, warm = (minimize_on_simplex(objective, start=s, tolerance=1e-12) for s in (None, start))
    np.testing.assert_allclose(warm.weights, cold.weights, atol=1e-8)
    one_step = minimize_on_simplex(objective, start=start, method="pairwise", max_iterations=2)
    assert one_step.value < objective.value(start.double().numpy())


def test_without_convexity_the_gap_is_a_statement_about_stationarity() -> None:
    solution = minimize_on_simplex(Wavy(), start=np.full(5, 0.2), tolerance=1e-6)
    assert solution.certificate == "stationarity"
    assert solution.lower_bound is None
    assert solution.gap <= 1e-6
    assert solution.gap == pytest.approx(frank_wolfe_gap(Wavy().gradient(solution.weights), solution.weights))
    assert solution.value < Wavy().value(np.full(5, 0.2))


@pytest.mark.parametrize("scale", [1e3, 1e4, 1e6])
@pytest.mark.parametrize("shape", [(20, 4), (20, 6, 3), (20, 2, 4, 3)])
def test_saturated_logits_are_solved_though_nothing_curves(scale: float, shape: tuple[int, ...]) -> None:
    solved = 0
    for seed in range(8):  # enough that on every machine some meet a Hessian of 1e-9 beside slopes of 1e2
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 2 if len(shape) == 2 else 3, 20)
        objective = LogisticObjective(scale * rng.normal(size=shape), labels)
        solution = minimize_on_simplex(objective, max_iterations=300)
        assert solution.weights.min() >= 0
        np.testing.assert_allclose(solution.weights.sum(-1), 1, atol=1e-12)
        assert np.isfinite(solution.gap)
        other = rng.dirichlet(np.full(objective.shape[-1], 0.3), size=(200, *objective.shape[:-1]))
        assert solution.value - solution.gap <= min(map(objective.value, other))
        # The tolerance, or what float64 resolves. At 1e6 the loss has corners for Newton: a rare problem runs out of
        # steps, which one depends on the last digit, and says so.
        near = solution.gap <= max(1e-8, 1e-9 * solution.value)
        assert near or (scale == 1e6 and solution.status == "iterations")
        solved += near
    assert solved >= 6


def test_a_tolerance_below_precision_ends() -> None:
    for objective in (
        QuadraticObjective.from_predictions(*regression(np.random.default_rng(8), 30, 8, 0.3)),
        LogisticObjective(*classification(8, 30, 8, 3)),
    ):
        for method in ("corrective", "away", "pairwise", "blended"):
            solution = minimize_on_simplex(objective, method=method, tolerance=0, max_iterations=400)
            assert solution.gap < 1e-7
            assert solution.iterations < 400 or method != "corrective"


@dataclass(frozen=True)
class Broken(Wavy):
    """A network whose loss, or only its gradient, overflows."""

    only_gradient: bool = False

    def value(self, weights: FloatArray) -> float:
        return super().value(weights) if self.only_gradient else float("inf")

    def gradient(self, weights: FloatArray) -> FloatArray:
        return np.full(5, np.nan) if self.only_gradient else super().gradient(weights)


def test_no_certificate_comes_from_nan() -> None:
    with pytest.raises(ValueError, match="gradient has 5 NaN or infinite entries"):
        minimize_on_simplex(Broken(only_gradient=True))
    with pytest.raises(ValueError, match="the objective is inf at iterate 1"):
        minimize_on_simplex(Broken(), start=np.full(5, 0.2))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"method": "newton"}, "method is 'newton'; expected one of 'corrective'"),
        ({"tolerance": -1.0}, "tolerance is -1.0"),
        ({"tolerance": float("nan")}, "tolerance is nan"),
        ({"max_iterations": 0}, "max_iterations is 0"),
        ({"max_active": 0}, "max_active is 0"),
        ({"seconds": 0.0}, "seconds is 0.0"),
        ({"start": [0.5, 0.5]}, r"start has shape \(2,\); expected \(5,\)"),
        ({"start": [0.2, 0.2, 0.2, 0.2, 0.3]}, "sum 1.1"),
        ({"start": [0.5, 0.7, -0.2, 0.0, 0.0]}, "smallest weight -0.2"),
        ({"start": [0.5, 0.5, float("nan"), 0.0, 0.0]}, "start is NaN or infinite at index"),
        ({"method": "corrective"}, "Wavy has no hessian; expected 'pairwise'"),
    ],
)
def test_bad_input_is_named(keywords: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        minimize_on_simplex(Wavy(), **keywords)  # type: ignore[arg-type]
