"""The joint refit, what a block is worth, and every method of search, against cvxpy, brute force and closed forms."""

from __future__ import annotations

from itertools import islice

import cvxpy as cp
import numpy as np
import pytest
from composition_tasks import EMPTY, Task, brute_force, cvxpy_loss, make_task, simplex, solve

from pyro_smat.solvers.problem import Point
from pyro_smat.solvers.refit import fit_weights, objective, refit
from pyro_smat.solvers.residual import METHODS
from pyro_smat.solvers.residual.gains import addition_gains, removal_costs
from pyro_smat.solvers.residual.group_lasso import block_soft_threshold, penalised_fit
from pyro_smat.solvers.squared_problem import SquaredProblem

PAIRS = [[2 * j, 2 * j + 1] for j in range(4)]
CASES = {
    "squared": (make_task(12, 8, 5, 2, seed=1), "squared"),
    "few": (make_task(4, 8, 5, 2, seed=2), "squared"),  # fewer examples than sources and entries
    "binary": (make_task(30, 8, 5, 2, seed=3, classes=1), "logistic"),
    "multiclass": (make_task(30, 8, 5, 2, seed=4, classes=3), "logistic"),
}


@pytest.mark.parametrize("blocks", [None, PAIRS])
@pytest.mark.parametrize("case", CASES)
def test_joint_refit_is_what_cvxpy_finds(case: str, blocks: list[list[int]] | None) -> None:
    task, loss = CASES[case]
    problem = task.problem(2, loss=loss, ridge=0.02, blocks=blocks)
    support = np.array([3, 1])
    fit = refit(problem, support)
    weights, constraints = simplex(5)
    residual = cp.Variable(task.sources.shape[1:])
    off = np.ones(problem.size, dtype=bool)
    off[problem.blocks.entries(support)] = False
    constraints.append(cp.multiply(off.reshape(residual.shape), residual) == 0)
    expected = solve(cvxpy_loss(task, weights, residual, loss) + 0.01 * cp.sum_squares(residual), constraints)
    assert fit.value == pytest.approx(expected, rel=1e-7, abs=1e-9)
    assert fit.value <= expected + 1e-9
    assert fit.kkt_residual <= 1e-10
    assert fit.point.weights.min() >= 0
    assert fit.point.weights.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_derivatives_agree_with_finite_differences(case: str) -> None:
    task, loss = CASES[case]
    problem = task.problem(2, loss=loss)
    rng = np.random.default_rng(0)
    entries = rng.permutation(problem.size)[:3]
    position = np.concatenate([rng.dirichlet(np.ones(5)), rng.normal(size=3)])
    directions = np.eye(8)
    directions[:5] -= 1 / 5  # weights keep their sum: the statistics of the squared loss know no other point
    directions[:5, 5:] = 0

    def at(x: np.ndarray) -> Point:
        return Point(x[:5], entries, x[5:])

    def slopes(x: np.ndarray) -> np.ndarray:
        expansion = problem.expand(at(x))
        return np.concatenate([expansion.weights, expansion.entries])

    def difference(function, direction: np.ndarray) -> np.ndarray:
        return (function(position + 1e-5 * direction) - function(position - 1e-5 * direction)) / 2e-5

    expansion, gradient = problem.expand(at(position)), problem.gradient(at(position))
    cross = problem.cross_hessian(at(position))
    for direction in directions.T:
        numeric = difference(lambda x: problem.loss(at(x)), direction)
        assert slopes(position) @ direction == pytest.approx(numeric, rel=1e-6, abs=1e-7)
        moved = difference(slopes, direction)
        assert directions.T @ expansion.hessian @ direction == pytest.approx(directions.T @ moved, rel=1e-6, abs=1e-6)
        whole = difference(lambda x: problem.gradient(at(x)).residual, direction)
        assert cross @ direction == pytest.approx(whole, rel=1e-6, abs=1e-6)
    assert gradient.loss == pytest.approx(problem.loss(at(position)))
    assert gradient.residual[entries] == pytest.approx(expansion.entries)
    assert gradient.weights == pytest.approx(expansion.weights)
    for (_, members), hessians in zip(problem.blocks.by_size, problem.block_hessians(at(position)), strict=True):
        assert hessians[members[:, 0] == entries[0], 0, 0] == pytest.approx(expansion.hessian[5, 5])


def test_squared_loss_does_not_touch_the_examples_after_set_up() -> None:
    task = make_task(40, 10, 4, 2, seed=5)
    problem = task.problem(2)
    assert isinstance(problem, SquaredProblem)
    before = refit(problem, np.array([2, 7]))
    gradient = problem.gradient(before.point)
    task.features[:] = np.nan
    assert np.isnan(problem.features).all()  # the very same array
    again = refit(problem, np.array([7, 2]))
    assert again.value == pytest.approx(before.value, rel=1e-12)
    np.testing.assert_array_equal(problem.gradient(before.point).residual, gradient.residual)


def test_dense_and_sparse_residuals_go_different_ways_to_the_same_gradient() -> None:
    task = make_task(6, 9, 3, 2, seed=6)
    problem = task.problem(2)
    rng = np.random.default_rng(0)
    residual = rng.normal(size=9)
    weights = rng.dirichlet(np.ones(3))
    errors = task.features @ (weights @ task.sources + residual) - task.targets
    found = problem.gradient(Point.from_residual(weights, residual))
    assert found.residual == pytest.approx(task.features.T @ errors / 6)
    assert found.loss == pytest.approx(errors @ errors / 12)


@pytest.mark.parametrize("blocks", [None, PAIRS])
def test_gains_and_costs_are_exact_while_the_same_sources_have_weight(blocks: list[list[int]] | None) -> None:
    added = removed = 0
    for seed in range(6):
        problem = make_task(30, 8, 3, 2, seed=seed).problem(3, blocks=blocks)
        fit = refit(problem, np.array([1, 3]))
        gains, active = addition_gains(problem, fit), fit.point.weights > 0
        assert gains[[1, 3]].tolist() == [-np.inf, -np.inf]
        for block in (0, 2):
            wider = refit(problem, np.array([1, 3, block]))
            if np.array_equal(wider.point.weights > 0, active):
                assert fit.value - wider.value == pytest.approx(gains[block], rel=1e-8)
                added += 1
        for place, cost in enumerate(removal_costs(problem, fit)):
            narrow = refit(problem, np.delete(fit.support, place))
            if np.array_equal(narrow.point.weights > 0, active):
                assert narrow.value - fit.value == pytest.approx(cost, rel=1e-8)
                removed += 1
    assert min(added, removed) >= 4


def test_a_block_that_the_support_spans_cannot_join_without_a_ridge() -> None:
    task = make_task(20, 6, 3, 2, seed=8)
    task.features[:, 5] = 2 * task.features[:, 0]
    problem, start = task.best_weights(6, ridge=0.0)
    assert addition_gains(problem, refit(problem, np.array([0]), start))[5] == -np.inf
    supports = [fit.support for fit in METHODS["greedy"](problem, start, 0)]
    assert not {0, 5} <= set(supports[-1])
    with pytest.raises(ValueError, match="linearly dependent"):
        refit(problem, np.array([0, 5]))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("case", ["squared", "binary", "multiclass"])
def test_every_method_yields_feasible_fits_with_their_own_values(name: str, case: str) -> None:
    task, loss = CASES[case]
    problem, start = task.best_weights(2, loss=loss, ridge=0.05, blocks=PAIRS)
    fits = list(islice(METHODS[name](problem, start, 0), 3))
    assert fits
    for fit in fits:
        assert len(set(fit.support.tolist())) == len(fit.support) <= 2
        np.testing.assert_array_equal(fit.point.entries, problem.blocks.entries(fit.support))
        assert fit.point.weights.min() >= 0
        assert fit.point.weights.sum() == pytest.approx(1)
        assert fit.value == pytest.approx(objective(problem, fit.point), rel=1e-9)
    assert min(fit.value for fit in fits) < start.value
    if name not in ("iht", "niht"):  # all others refit
        assert max(fit.kkt_residual for fit in fits) <= 1e-8 * problem.scale


@pytest.mark.parametrize("name", METHODS)
def test_orthogonal_features_are_easy_for_every_method(name: str) -> None:
    # One source, orthonormal columns: the k largest coordinates of X'(y - A) / n are optimal, shrunk by 1 + ridge.
    rng = np.random.default_rng(9)
    features = np.linalg.qr(rng.normal(size=(20, 8)))[0] * np.sqrt(20)
    truth = np.array([3.0, 0.1, -2.5, 0.2, 0.0, 2.0, -0.1, 0.05])
    task = Task(features, features @ truth, np.zeros((1, 8)), np.array([0, 2, 5]))
    problem, start = task.best_weights(3, ridge=0.25)
    best = min(METHODS[name](problem, start, 0), key=lambda fit: fit.value)
    best = refit(problem, best.support, best)
    assert sorted(best.support.tolist()) == [0, 2, 5]
    assert best.point.residual(8)[[0, 2, 5]] == pytest.approx(truth[[0, 2, 5]] / 1.25)


@pytest.mark.parametrize("name", METHODS)
def test_nothing_to_do_ends_at_once(name: str) -> None:
    task = make_task(10, 6, 3, 2, seed=10)
    problem, start = task.best_weights(0)
    for fit in METHODS[name](problem, start, 0):
        assert fit.value == pytest.approx(start.value)
        assert not len(fit.support)


@pytest.mark.parametrize(("name", "count"), [("splicing", 10), ("hard_concrete", 2)])
def test_random_methods_depend_on_the_seed_alone(name: str, count: int) -> None:
    problem, start = make_task(12, 20, 3, 3, seed=11).best_weights(3)
    first, again = ([fit.value for fit in islice(METHODS[name](problem, start, 3), count)] for _ in range(2))
    assert first == again


def test_swaps_correct_what_greedy_took_first() -> None:
    wins = 0
    for seed in range(8):
        problem, start = make_task(12, 12, 4, 3, seed=seed, noise=0.3).best_weights(3, ridge=1e-3)
        optimum = brute_force(problem).value
        greedy, splicing = (min(fit.value for fit in METHODS[m](problem, start, 0)) for m in ("greedy", "splicing"))
        assert splicing <= greedy * (1 + 1e-12)
        assert splicing == pytest.approx(optimum, rel=1e-7)
        wins += splicing < greedy * (1 - 1e-6)
    assert wins >= 2


@pytest.mark.parametrize("blocks", [None, PAIRS])
@pytest.mark.parametrize("case", CASES)
def test_group_lasso_is_what_cvxpy_finds(case: str, blocks: list[list[int]] | None) -> None:
    task, loss = CASES[case]
    problem, start = task.best_weights(2, loss=loss, ridge=0.02, blocks=blocks)
    penalty = 0.4 * float(np.sqrt(problem.blocks.squared_norms(problem.gradient(start.point).residual)).max())
    fit = penalised_fit(problem, penalty, start, tolerance=1e-7)
    norms = np.sqrt(problem.blocks.squared_norms(fit.point.residual(problem.size)))
    weights, constraints = simplex(5)
    residual = cp.Variable(task.sources.shape[1:])
    flat = cp.vec(residual, order="C")
    total = sum(cp.norm(flat[list(members)]) for members in problem.blocks.members)
    loss_value = cvxpy_loss(task, weights, residual, loss)
    expected = solve(loss_value + 0.01 * cp.sum_squares(residual) + penalty * total, constraints)
    assert fit.value + penalty * norms.sum() == pytest.approx(expected, rel=1e-6)
    expected_norms = [np.linalg.norm(flat.value[list(members)]) for members in problem.blocks.members]
    assert norms == pytest.approx(np.array(expected_norms), abs=2e-3)
    assert 0 < (norms > 0).sum() < len(norms)


def test_block_soft_threshold_is_the_proximal_map() -> None:
    problem = CASES["squared"][0].problem(1, blocks=[[0, 5, 7], [1], [2, 3], [4, 6]])
    values = np.array([1.0, 0.4, 0.1, -0.2, 2.0, -1.5, 0.3, 0.6])
    moved = cp.Variable(8)
    total = sum(cp.norm(moved[list(members)]) for members in problem.blocks.members)
    solve(cp.sum_squares(moved - values) / 2 + 0.7 * total, [])
    assert block_soft_threshold(problem.blocks, values, 0.7) == pytest.approx(moved.value, abs=1e-6)


def test_iht_iterates_are_equation_7() -> None:
    task = make_task(15, 6, 3, 2, seed=12)
    problem, start = task.best_weights(2, ridge=0.1)
    steps = METHODS["iht"](problem, start, 0)
    weights, residual = start.point.weights, np.zeros(6)
    largest = np.linalg.eigvalsh(task.features.T @ task.features / 15).max() + 0.1
    for _ in range(4):
        errors = task.features @ (weights @ task.sources + residual) - task.targets
        residual = residual - (task.features.T @ errors / 15 + 0.1 * residual) / largest
        residual[np.abs(residual).argsort()[:-2]] = 0
        fit = next(steps)
        assert fit.point.residual(6) == pytest.approx(residual)
        mixed, constraints = simplex(3)
        solve(cvxpy_loss(task, mixed, residual, "squared"), constraints)
        assert fit.point.weights == pytest.approx(mixed.value, abs=1e-5)
        weights = fit.point.weights


def test_weights_alone_leave_the_residual_where_it_is() -> None:
    task, loss = CASES["binary"]
    problem = task.problem(2, loss=loss)
    residual = np.array([0.5, -1.0])
    fit = fit_weights(problem, Point(np.full(5, 0.2), np.array([1, 4]), residual), EMPTY)
    np.testing.assert_array_equal(fit.point.values, residual)
    weights, constraints = simplex(5)
    expected = solve(cvxpy_loss(task, weights, np.array([0, 0.5, 0, 0, -1.0, 0, 0, 0]), loss), constraints)
    assert problem.loss(fit.point) == pytest.approx(expected, rel=1e-7)
