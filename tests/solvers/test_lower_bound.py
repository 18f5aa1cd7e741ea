"""The lower bound: never above brute force, as high as cvxpy's perspective relaxation, honest without a ridge."""

from __future__ import annotations

import time

import cvxpy as cp
import numpy as np
import pytest
from composition_tasks import Task, brute_force, cvxpy_loss, make_task, simplex, solve

from pyro_smat.solvers.lower_bound import capped_simplex_projection, dual_value, lower_bound
from pyro_smat.solvers.problem import Blocks, Point
from pyro_smat.solvers.refit import refit

PAIRS = [[2 * j, 2 * j + 1] for j in range(4)]
CASES = {
    "squared": (make_task(20, 8, 4, 2, seed=1, noise=0.5), "squared", None),
    "few": (make_task(5, 8, 4, 2, seed=2, noise=0.5), "squared", None),
    "squared blocks": (make_task(20, 8, 4, 2, seed=3, noise=0.5), "squared", PAIRS),
    "binary": (make_task(30, 8, 4, 2, seed=4, classes=1), "logistic", None),
    "multiclass": (make_task(30, 8, 3, 2, seed=5, classes=3), "logistic", [[j] for j in range(8)]),
}


def perspective_value(task: Task, loss: str, blocks: Blocks, budget: int, ridge: float) -> float:
    """min loss + ridge / 2 sum_b |Delta_b|^2 / z_b over 0 <= z <= 1, sum z <= k."""
    weights, constraints = simplex(len(task.sources))
    residual, z = cp.Variable(task.sources.shape[1:]), cp.Variable(len(blocks))
    flat = cp.vec(residual, order="C")
    penalty = sum(cp.quad_over_lin(flat[list(members)], z[b]) for b, members in enumerate(blocks.members))
    constraints += [z >= 0, z <= 1, cp.sum(z) <= budget]
    return solve(cvxpy_loss(task, weights, residual, loss) + ridge / 2 * penalty, constraints)


@pytest.mark.parametrize("ridge", [1e-3, 1e-2, 0.1, 0.5])
@pytest.mark.parametrize("case", CASES)
def test_bound_is_the_perspective_relaxation_and_below_brute_force(case: str, ridge: float) -> None:
    task, loss, blocks = CASES[case]
    problem = task.problem(2, loss=loss, ridge=ridge, blocks=blocks)
    optimum = brute_force(problem)
    bound = lower_bound(problem, optimum)
    relaxation = perspective_value(task, loss, problem.blocks, 2, ridge)
    assert bound <= optimum.value
    assert bound == pytest.approx(relaxation, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_the_dual_at_any_point_whatever_is_a_bound(case: str) -> None:
    task, loss, blocks = CASES[case]
    problem = task.problem(2, loss=loss, ridge=0.3, blocks=blocks)
    optimum = brute_force(problem).value
    rng = np.random.default_rng(0)
    values = []
    for scale in np.geomspace(1e-3, 3, 25):
        near = refit(problem, rng.permutation(len(problem.blocks))[:4]).point.residual(problem.size)
        residual = near + scale * rng.normal(size=problem.size) * rng.integers(0, 2, size=problem.size)
        values.append(dual_value(problem, Point.from_residual(rng.dirichlet(np.ones(problem.sources)), residual)))
        values.append(dual_value(problem, refit(problem, rng.permutation(len(problem.blocks))[:4]).point))
    assert max(values) <= optimum + 1e-12
    assert max(values) > 0  # and not only because it says nothing


def test_the_dual_is_the_formula_in_alpha() -> None:
    # -mean phi*(alpha) + min_r <alpha, A_r> / n - (k largest |x_j' alpha|^2) / (2 ridge n^2)
    task, _, _ = CASES["squared"]
    problem = task.problem(2, ridge=0.3)
    rng = np.random.default_rng(1)
    weights, residual = rng.dirichlet(np.ones(4)), rng.normal(size=8)
    alpha = task.features @ (weights @ task.sources + residual) - task.targets
    squares = np.sort((task.features.T @ alpha / 20) ** 2)[-2:].sum()
    conjugate = (alpha**2 / 2 + alpha * task.targets).mean()
    expected = -conjugate + (task.sources @ task.features.T @ alpha / 20).min() - squares / 0.6
    assert dual_value(problem, Point.from_residual(weights, residual)) == pytest.approx(expected)


def test_budgets_without_a_choice_have_no_gap() -> None:
    task = CASES["squared"][0]
    for budget in (0, 8):
        problem = task.problem(budget, ridge=0.1)
        fit = refit(problem, np.arange(budget))
        assert lower_bound(problem, fit) == pytest.approx(fit.value, rel=1e-6)


def test_more_steps_never_lower_the_bound_and_a_deadline_ends_them() -> None:
    problem = make_task(25, 60, 4, 3, seed=6).problem(3, ridge=1e-2)
    fit = refit(problem, np.array([0, 1, 2]))
    bounds = [lower_bound(problem, fit, iterations=steps) for steps in (0, 5, 50, 200)]
    assert bounds == sorted(bounds)
    assert bounds[-1] > bounds[0] >= 0
    assert lower_bound(problem, fit, deadline=time.monotonic()) == bounds[0]


def test_without_a_ridge_the_best_unrestricted_loss_remains() -> None:
    task = CASES["squared"][0]
    problem = task.problem(2, ridge=0.0)
    least = np.linalg.lstsq(task.features, task.targets)[1][0] / 40
    assert lower_bound(problem, refit(problem, np.array([0, 1]))) == pytest.approx(least, rel=1e-6)
    few = CASES["few"][0].problem(2, ridge=0.0)
    assert lower_bound(few, refit(few, np.array([0, 1]))) == pytest.approx(0, abs=1e-9)
    binary = CASES["binary"][0].problem(1, ridge=0.0, loss="logistic")
    assert lower_bound(binary, refit(binary, np.array([0]))) == 0


def test_projection_on_the_capped_simplex() -> None:
    values = np.array([0.3, 2.5, -0.4, 0.9, 0.8, 0.7])
    z = cp.Variable(6)
    solve(cp.sum_squares(z - values), [z >= 0, z <= 1, cp.sum(z) <= 2])
    assert capped_simplex_projection(values, 2) == pytest.approx(z.value, abs=1e-6)
    assert capped_simplex_projection(values, 5) == pytest.approx(np.clip(values, 0, 1))
    assert capped_simplex_projection(values, 0) == pytest.approx(np.zeros(6))
