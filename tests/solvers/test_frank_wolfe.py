"""Frank-Wolfe variants: their steps by hand, their certificates, their rates."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from simplex_problems import clarabel_weights, cvxpy_squared_loss, frank_wolfe_gap, regression

from pyro_smat.solvers.frank_wolfe import away, blended, pairwise, vanilla
from pyro_smat.solvers.objectives import LogisticObjective, QuadraticObjective
from pyro_smat.solvers.simplex import Method, minimize_on_simplex

VARIANTS: tuple[Method, ...] = ("vanilla", "open-loop", "away", "pairwise", "blended")
LINEAR: tuple[Method, ...] = ("away", "pairwise", "blended")


def quadratic(seed: int, examples: int = 30, sources: int = 12, correlation: float = 0.5) -> QuadraticObjective:
    return QuadraticObjective.from_predictions(*regression(np.random.default_rng(seed), examples, sources, correlation))


@pytest.mark.parametrize("method", VARIANTS)
def test_the_gap_is_never_below_the_true_error(method: Method) -> None:
    for seed, iterations in itertools.product(range(4), (1, 2, 5, 20, 100, 1000)):
        objective = quadratic(seed)
        optimum = objective.value(clarabel_weights(objective.gram, objective.linear))
        solution = minimize_on_simplex(objective, method=method, max_iterations=iterations)
        assert solution.certificate == "optimality"
        assert solution.lower_bound == solution.value - solution.gap
        assert solution.gap >= solution.value - optimum - 1e-12
        assert solution.value == pytest.approx(objective.value(solution.weights), abs=1e-14)
        assert solution.weights.min() >= 0
        assert solution.weights.sum() == pytest.approx(1, abs=1e-14)
        assert solution.iterations <= iterations


@pytest.mark.parametrize("method", LINEAR)
def test_the_linear_variants_reach_precision_where_vanilla_crawls(method: Method) -> None:
    objective = quadratic(0, examples=25, sources=40, correlation=0.0)
    solution = minimize_on_simplex(objective, method=method, tolerance=1e-12, max_iterations=2000)
    slow = minimize_on_simplex(objective, method="vanilla", tolerance=1e-12, max_iterations=2000)
    assert solution.status == "converged"
    assert slow.status == "iterations"
    assert slow.gap > 1e-8
    exact = clarabel_weights(objective.gram, objective.linear)
    np.testing.assert_allclose(solution.weights, exact, atol=1e-5)
    assert np.array_equal(solution.active, (exact > 1e-6).nonzero()[0])  # what has left is zero, not small


def test_open_loop_is_equation_6() -> None:
    objective = quadratic(0)
    weights = np.eye(12)[min(range(12), key=lambda r: objective.value(np.eye(12)[r]))]
    for t in range(6):
        values = minimize_on_simplex(objective, method="open-loop", max_iterations=t + 1, tolerance=0)
        assert values.value <= objective.value(weights) + 1e-14  # the best iterate is returned, this is the last
        if objective.value(weights) <= values.value:
            np.testing.assert_allclose(values.weights, weights, atol=1e-14)
        vertex = np.eye(12)[objective.gradient(weights).argmin()]
        weights = (1 - 2 / (t + 2)) * weights + 2 / (t + 2) * vertex


@pytest.mark.parametrize("rule", [vanilla, away, pairwise, blended])
def test_directions_are_feasible_and_descend_at_least_half_the_gap_of_a_block(rule) -> None:
    """Half of the gap of the best block is what the analyses of all variants rest on."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        weights = rng.dirichlet(np.full(6, 0.3), size=3)
        weights[weights < 0.05] = 0
        weights /= weights.sum(1, keepdims=True)
        gradient = rng.normal(size=(3, 6))
        direction = rule(weights, gradient, np.ones((3, 6), dtype=bool))
        end = weights + direction.longest * direction.change
        assert end.min() >= -1e-14
        np.testing.assert_allclose(end.sum(1), 1, atol=1e-14)
        slope = -(gradient * direction.change).sum()
        gaps = [frank_wolfe_gap(g, w) for g, w in zip(gradient, weights, strict=True)]
        assert slope >= max(gaps) / 2 - 1e-12


@pytest.mark.parametrize("method", VARIANTS)
def test_no_drift_in_a_long_run(method: Method) -> None:
    objective = quadratic(2, correlation=0.99)
    solution = minimize_on_simplex(objective, method=method, tolerance=0, max_iterations=3000)
    assert solution.weights.sum() == pytest.approx(1, abs=1e-14)
    true_gap = frank_wolfe_gap(objective.gradient(solution.weights), solution.weights)
    assert true_gap - 1e-15 <= max(solution.gap, true_gap)
    assert solution.value == pytest.approx(objective.value(solution.weights), abs=1e-15)


@pytest.mark.parametrize("method", VARIANTS)
def test_blockwise_against_cvxpy(method: Method) -> None:
    rng = np.random.default_rng(3)
    predictions = rng.normal(size=(40, 3, 5))
    targets = predictions[:, :, :2].sum((1, 2)) / 2 + 0.3 * rng.normal(size=40)
    solution = minimize_on_simplex(
        QuadraticObjective.from_predictions(predictions, targets), method=method, tolerance=1e-7, max_iterations=4000
    )
    optimum = cvxpy_squared_loss(predictions, targets)
    assert -1e-9 <= solution.value - optimum <= solution.gap + 1e-9
    assert solution.gap < (1e-3 if method in ("vanilla", "open-loop") else 1e-7)


@pytest.mark.parametrize("method", VARIANTS)
def test_backtracking_and_the_open_loop_need_no_smoothness_constant(method: Method) -> None:
    rng = np.random.default_rng(4)
    predictions = 20 * rng.normal(size=(30, 8, 3))
    objective = LogisticObjective(predictions, predictions[:, :2].mean(1).argmax(1))
    solution = minimize_on_simplex(objective, method=method, tolerance=1e-6, max_iterations=1500)
    exact = minimize_on_simplex(objective, tolerance=1e-10)
    assert solution.gap >= solution.value - exact.value - 1e-12
    assert solution.gap < (1e-2 if method in ("vanilla", "open-loop") else 1e-6)
