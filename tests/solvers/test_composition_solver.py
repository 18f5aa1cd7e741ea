"""solve_composition from outside: optimal supports, the truth, certificates, budgets, invariances, bad input."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from composition_tasks import EMPTY, Task, brute_force, make_task
from torch.nn import functional as F

from pyro_smat.solvers.composition import CompositionSolution, solve_composition
from pyro_smat.solvers.refit import refit
from pyro_smat.solvers.residual import METHODS

REGRESSION = make_task(30, 16, 4, 3, seed=0)
BINARY = make_task(40, 10, 4, 2, seed=1, classes=1)
MULTICLASS = make_task(40, 8, 4, 2, seed=2, classes=3)
TASKS = {"squared": REGRESSION, "binary": BINARY, "multiclass": MULTICLASS}


def solved(task: Task, **options: Any) -> CompositionSolution:
    return solve_composition(task.features, task.targets, task.sources, **options)


@cache
def without_budgets(case: str) -> CompositionSolution:
    return solved(TASKS[case], budget=3, loss=loss_name(case), ridge=0.03)


def loss_name(case: str) -> str:
    return "squared" if case == "squared" else "logistic"


def objective(task: Task, weights: torch.Tensor, residual: torch.Tensor, loss: str, ridge: float) -> torch.Tensor:
    """The definition, through theta, by torch."""
    features, sources = torch.from_numpy(task.features), torch.from_numpy(task.sources)
    predictions = features @ (torch.tensordot(weights, sources, 1) + residual)
    targets = torch.from_numpy(task.targets)
    if loss == "squared":
        mean = (predictions - targets).square().mean() / 2
    elif sources.ndim == 2:
        mean = F.binary_cross_entropy_with_logits(predictions, targets)
    else:
        mean = F.cross_entropy(predictions, targets.long())
    return mean + ridge / 2 * residual.square().sum()


@pytest.mark.parametrize(("n", "count"), [(30, 3), (15, 3)])
def test_optimal_over_all_supports_and_never_below_the_bound(n: int, count: int) -> None:
    for seed in range(count):
        task = make_task(n, 16, 4, 3, seed=seed)
        ridge = [1e-3, 1e-2, 0.1][seed]
        optimum = brute_force(task.problem(3, ridge=ridge)).value
        solution = solved(task, budget=3, ridge=ridge)
        assert solution.value == pytest.approx(optimum, rel=1e-7)
        assert solution.lower_bound <= optimum * (1 + 1e-9)


def test_true_support_among_200_entries() -> None:
    for seed in range(6):
        task = make_task(60, 200, 8, 5, seed=seed)
        solution = solved(task, budget=5, ridge=1e-3, bound_iterations=0)
        np.testing.assert_array_equal(solution.support, task.support)


@pytest.mark.parametrize("case", ["binary", "multiclass"])
def test_logistic_supports_are_optimal_and_true(case: str) -> None:
    task = TASKS[case]
    rows = [[j] for j in range(task.features.shape[1])]
    options: dict[str, Any] = {"budget": 2, "loss": "logistic", "blocks": rows, "ridge": 0.02}
    problem = task.problem(**options)
    solution = solved(task, **options)
    assert solution.value == pytest.approx(brute_force(problem).value, rel=1e-7)
    assert set(solution.support) & set(task.support)
    assert solution.residual.shape == task.sources.shape[1:]
    assert solution.kkt_residual <= 1e-9


@pytest.mark.parametrize("budgets", [{}, {"max_iterations": 1}, {"seconds": 1e-9}, {"max_active": 2}])
@pytest.mark.parametrize("case", TASKS)
def test_certificates_are_those_of_the_definition(case: str, budgets: dict[str, Any]) -> None:
    task, loss, ridge = TASKS[case], loss_name(case), 0.03
    solution = solved(task, budget=3, loss=loss, ridge=ridge, **budgets)
    weights = torch.from_numpy(solution.weights).requires_grad_()
    residual = torch.from_numpy(solution.residual).requires_grad_()
    value = objective(task, weights, residual, loss, ridge)
    value.backward()
    assert solution.value == pytest.approx(value.item(), rel=1e-10)
    assert weights.grad is not None
    assert residual.grad is not None
    gap = float(weights.detach() @ weights.grad - weights.grad.min())
    assert solution.simplex_gap == pytest.approx(gap, rel=1e-6, abs=1e-12)
    on = solution.residual != 0
    assert np.abs(residual.grad.numpy()[on]).max(initial=0.0) <= solution.kkt_residual + 1e-12
    assert solution.kkt_residual <= 1e-9

    assert solution.weights.min() >= 0
    assert solution.weights.sum() == pytest.approx(1, abs=1e-12)
    np.testing.assert_array_equal(solution.active, solution.weights.nonzero()[0])
    np.testing.assert_array_equal(solution.support, solution.residual.ravel().nonzero()[0])
    assert len(solution.support) <= 3
    assert 0 <= solution.lower_bound <= solution.value
    assert solution.certified_gap == solution.value - solution.lower_bound
    whole = without_budgets(case)
    assert solution.lower_bound <= whole.value <= solution.value + 1e-12  # never above a feasible value
    assert whole.status == "finished"
    if "max_iterations" in budgets:
        assert (solution.status, solution.iterations) == ("iterations", 1)
    if "seconds" in budgets:
        assert (solution.status, solution.iterations, len(solution.support)) == ("seconds", 0, 0)
    if "max_active" in budgets:
        assert len(solution.active) <= 2


def test_search_begins_at_the_best_weights_without_a_residual() -> None:
    problem = REGRESSION.problem(3)
    solution = solved(REGRESSION, budget=3, max_iterations=0)
    assert solution.value == refit(problem, EMPTY).value
    assert solution.simplex_gap <= 1e-12


def test_a_cap_on_active_sources_against_all_subsets() -> None:
    optimal = 0
    for seed in range(4):
        task = make_task(30, 8, 5, 2, seed=seed)
        problem = task.problem(2)
        free = solved(task, budget=2)
        assert len(free.active) > 2
        pairs = (np.array(pair) for pair in itertools.combinations(range(5), 2))
        best = min(brute_force(problem.with_sources(pair)).value for pair in pairs)
        capped = solved(task, budget=2, max_active=2)
        assert len(capped.active) <= 2
        assert best * (1 - 1e-9) <= capped.value
        optimal += capped.value <= best * (1 + 1e-9)
        assert capped.status == "active sources"
        loose = solved(task, budget=2, max_active=5)
        assert (loose.value, loose.status) == (free.value, "finished")
    assert optimal >= 3  # the subset is found by local search: no promise


def test_one_source_and_no_residual_come_back_as_they_are() -> None:
    sources = REGRESSION.sources
    solution = solve_composition(REGRESSION.features, REGRESSION.features @ sources[2], sources, budget=3)
    assert solution.weights == pytest.approx(np.eye(4)[2], abs=1e-12)
    assert solution.value == pytest.approx(0, abs=1e-20)


def test_order_of_sources_rows_and_examples_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    examples, rows, order = rng.permutation(30), rng.permutation(16), rng.permutation(4)
    first = solved(REGRESSION, budget=3)
    shuffled = Task(
        REGRESSION.features[examples][:, rows],
        REGRESSION.targets[examples],
        REGRESSION.sources[order][:, rows],
        REGRESSION.support,
    )
    second = solved(shuffled, budget=3)
    assert second.value == pytest.approx(first.value, rel=1e-12)
    assert second.weights == pytest.approx(first.weights[order], abs=1e-9)
    assert second.residual == pytest.approx(first.residual[rows], abs=1e-9)


def test_tensors_give_what_arrays_give() -> None:
    first = solved(BINARY, budget=2, loss="logistic")
    arrays = (BINARY.features, BINARY.targets, BINARY.sources)
    second = solve_composition(*(torch.from_numpy(array) for array in arrays), budget=2, loss="logistic")
    assert (first.value, first.lower_bound) == (second.value, second.lower_bound)
    np.testing.assert_array_equal(first.residual, second.residual)


def test_binary_is_multiclass_with_a_silent_class() -> None:
    two = np.stack([np.zeros_like(BINARY.sources), BINARY.sources], -1)
    one = solved(BINARY, budget=0, loss="logistic")
    both = solve_composition(BINARY.features, BINARY.targets, two, budget=0, loss="logistic")
    assert both.value == pytest.approx(one.value, rel=1e-12)
    assert both.weights == pytest.approx(one.weights, abs=1e-8)


def test_repeated_features_need_no_ridge() -> None:
    once = make_task(20, 6, 3, 2, seed=4, correlation=0.0)
    twice = Task(np.tile(once.features, 2), once.targets, np.tile(once.sources, 2) / 2, once.support)
    first, second = solved(once, budget=3, ridge=0.0), solved(twice, budget=3, ridge=0.0)
    assert second.value == pytest.approx(first.value, rel=1e-9)
    assert len(set(second.support % 6)) == 3  # never a feature and its copy


def test_a_start_is_taken_up() -> None:
    whole = solved(REGRESSION, budget=3)
    resumed = solved(REGRESSION, budget=3, start=whole, max_iterations=0)
    assert resumed.value == pytest.approx(whole.value, rel=1e-12)
    np.testing.assert_array_equal(resumed.support, whole.support)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_by_name_ends_in_a_refit(method: str) -> None:
    solution = solved(REGRESSION, budget=3, method=method, max_iterations=2)
    assert solution.method == method
    assert solution.kkt_residual <= 1e-10
    assert solution.lower_bound <= solved(REGRESSION, budget=3).value <= solution.value * (1 + 1e-12)


def _nan() -> np.ndarray:
    features = REGRESSION.features.copy()
    features[4, 7] = np.nan
    return features


X, Y, THETA = REGRESSION.features, REGRESSION.targets, REGRESSION.sources
LOGISTIC: dict[str, Any] = {"loss": "logistic", "targets": BINARY.targets, "features": BINARY.features}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": THETA[:, :15]}, r"features have shape \(30, 16\) and sources \(4, 15\)"),
        ({"sources": MULTICLASS.sources}, r"expected \(n, d\) and \(R, d\)$"),
        ({"sources": THETA[:0]}, r"sources has shape \(0, 16\)"),
        ({"targets": Y[:29]}, r"targets have shape \(29,\); expected \(30,\)"),
        ({"features": X[:0], "targets": Y[:0]}, r"features has shape \(0, 16\)"),
        ({"features": _nan()}, r"features is NaN or infinite at index \(4, 7\)"),
        ({"budget": 17}, "budget is 17; expected 0 to 16, the number of entries"),
        ({"budget": -1}, "budget is -1"),
        ({"budget": 2.0}, "budget is 2.0; expected 0 to 16, .* as an integer"),
        ({"budget": 3, "blocks": [range(8), range(8, 16)]}, "budget is 3; expected 0 to 2, the number of blocks"),
        ({"blocks": [range(8), range(7, 16)]}, "blocks hold row 7 2 times"),
        ({"blocks": [range(8), range(9, 16)]}, "blocks hold row 8 0 times"),
        ({"blocks": [range(17)]}, "expected row numbers from 0 to 15"),
        ({"ridge": -0.1}, "ridge is -0.1"),
        ({"ridge": 0.0, "features": X[:2], "targets": Y[:2], "method": "iht"}, "linearly dependent"),
        ({"max_active": 0}, "max_active is 0; expected at least 1"),
        ({"seconds": 0.0}, "seconds is 0.0"),
        ({"max_iterations": -1}, "max_iterations is -1"),
        ({"method": "magic"}, "method is 'magic'; expected one of splicing"),
        ({"loss": "hinge"}, "loss is 'hinge'"),
        ({"budget": 2, "start": "best"}, "start has 3 blocks on"),
        ({**LOGISTIC, "sources": BINARY.sources, "targets": BINARY.targets * 0}, "class 1 missing from the targets"),
        ({**LOGISTIC, "sources": BINARY.sources, "targets": BINARY.targets + 0.5}, "expected integers from 0 to 1"),
        (
            {"loss": "logistic", "features": X[:, :8], "sources": MULTICLASS.sources, "targets": np.arange(30) % 2},
            "class 2 missing from the targets; expected at least one example of each of the 3",
        ),
    ],
)
def test_bad_input_is_named(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"features": X, "targets": Y, "sources": THETA, "budget": 3, **changes}
    if arguments.get("start") == "best":
        arguments["start"] = solved(REGRESSION, budget=3)
    with pytest.raises(ValueError, match=message):
        solve_composition(**arguments)
