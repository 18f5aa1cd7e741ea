"""The Lagrangian: against enumeration of every lambda that matters and of every assignment of routings to tasks."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from pyro_smat.cost import penalised_choice, satisfaction, solve_weight, within_budget


def problem(tasks: int, candidates: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    costs = torch.randint(0, 6, (candidates,), generator=generator).double()  # ties on purpose
    return torch.rand(tasks, candidates, generator=generator, dtype=torch.float64), costs


def enumerated(losses: Tensor, costs: Tensor, weight: float) -> list[int]:
    """argmin_j loss + weight cost, of equals the cheapest, with a loop."""
    return [
        min(range(len(costs)), key=lambda j: (round(float(row[j] + weight * costs[j]), 12), float(costs[j])))
        for row in losses
    ]


@pytest.mark.parametrize("seed", range(5))
def test_the_penalised_choice_is_the_enumerated_one(seed: int) -> None:
    losses, costs = problem(30, 7, seed)
    for weight in (0.0, 0.01, 0.1, 0.5, 2.0, 1e6):
        assert penalised_choice(losses, costs, weight).tolist() == enumerated(losses, costs, weight)
    batched = penalised_choice(losses.view(5, 6, 7), costs, 0.1)
    assert torch.equal(batched.flatten(), penalised_choice(losses, costs, 0.1))


@pytest.mark.parametrize("seed", range(8))
def test_lambda_is_the_smallest_that_meets_the_budget(seed: int) -> None:
    losses, costs = problem(6, 5, seed)
    slopes = {0.0}
    for row in losses:
        for i, j in itertools.permutations(range(5), 2):
            if costs[i] > costs[j] and row[j] > row[i]:
                slopes.add(float((row[j] - row[i]) / (costs[i] - costs[j])))
    cheapest = float(costs.min())
    for budget in (cheapest, cheapest + 0.4, cheapest + 1.1, cheapest + 2.5, 10.0):
        means = {s: float(costs[penalised_choice(losses, costs, s)].mean()) for s in slopes}
        expected = min(s for s, mean in means.items() if mean <= budget + 1e-9)
        found = solve_weight(losses, costs, budget)
        assert found.weight == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert found.chosen.tolist() == penalised_choice(losses, costs, found.weight).tolist()
        assert torch.equal(found.costs, costs[found.chosen])
        assert torch.equal(found.losses, losses[torch.arange(6), found.chosen])
        assert found.satisfied == sum(c <= budget for c in found.costs.tolist()) / 6


@pytest.mark.parametrize("seed", range(6))
def test_no_assignment_of_its_cost_has_less_loss(seed: int) -> None:
    """Everett's theorem, by trying all 4^4 assignments of routings to tasks."""
    losses, costs = problem(4, 4, seed)
    found = solve_weight(losses, costs, float(costs.min()) + 0.8)
    spent = float(found.costs.mean()) + 1e-9
    assignments = torch.tensor(list(itertools.product(range(4), repeat=4)))
    cost = costs[assignments].mean(1)
    loss = losses[torch.arange(4), assignments].mean(1)
    assert float(found.losses.mean()) <= float(loss[cost <= spent].min()) + 1e-12


def test_a_point_above_the_hull_is_never_chosen() -> None:
    """Costs 0, 1, 2 with losses 1, 0.9, 0: the middle is above the line, so no lambda picks it; the budget does."""
    losses, costs = torch.tensor([[1.0, 0.9, 0.0]]), torch.tensor([0.0, 1.0, 2.0])
    assert {int(penalised_choice(losses, costs, w)) for w in torch.linspace(0, 2, 201).tolist()} == {0, 2}
    solved = solve_weight(losses, costs, 1.0)
    assert (solved.weight, solved.chosen.tolist(), solved.satisfied) == (pytest.approx(0.5), [0], 1.0)
    assert within_budget(losses, costs, 1.0).tolist() == [1]


def test_one_lambda_for_all_breaks_some_budgets() -> None:
    """Two tasks, one in need: the mean is within the budget of 1, the second task's own cost is not."""
    losses = torch.tensor([[0.1, 0.09, 0.08], [5.0, 3.0, 0.0]])
    found = solve_weight(losses, torch.tensor([0.0, 1.0, 2.0]), 1.0)
    assert found.chosen.tolist() == [0, 2]
    assert (float(found.costs.mean()), found.satisfied) == (1.0, 0.5)
    assert found.weight == pytest.approx(0.01)


def test_a_loose_budget_has_no_price() -> None:
    losses, costs = problem(9, 5, 3)
    found = solve_weight(losses, costs, 100.0)
    assert found.weight == 0.0
    assert torch.equal(found.losses, losses.amin(1))
    assert found.satisfied == 1.0
    alone = solve_weight(torch.rand(3, 1), torch.tensor([2.0]), 2.0)
    assert (alone.weight, alone.chosen.tolist()) == (0.0, [0, 0, 0])


def test_within_budget_is_the_best_that_fits() -> None:
    losses, costs = problem(40, 6, 5)
    for budget in sorted(set(costs.tolist())):
        fitting = [j for j in range(6) if costs[j] <= budget]
        expected = [min(fitting, key=lambda j: float(row[j])) for row in losses]
        assert within_budget(losses, costs, budget).tolist() == expected


def test_satisfaction_forgives_rounding_only() -> None:
    assert satisfaction(torch.tensor([0.1 + 0.2, 0.3, 0.31, 1.0], dtype=torch.float64), 0.3) == 0.5


def test_bad_input_is_refused() -> None:
    losses, costs = problem(3, 4, 0)
    low = float(costs.min())
    for solve in (within_budget, solve_weight):
        with pytest.raises(ValueError, match=rf"budget is .*; expected at least {low:g}, the cheapest candidate"):
            solve(losses, costs, low - 0.5)
        with pytest.raises(ValueError, match="budget is nan"):
            solve(losses, costs, math.nan)
        with pytest.raises(ValueError, match=r"losses have shape \(3, 4\) and costs \(3,\); expected"):
            solve(losses, costs[:3], 9.0)
        with pytest.raises(ValueError, match="NaN, infinite or negative"):
            solve(losses * torch.nan, costs, 9.0)
        with pytest.raises(ValueError, match="NaN, infinite or negative"):
            solve(losses, costs - 10.0, 9.0)
    with pytest.raises(ValueError, match=r"losses have shape \(4,\); expected \(B, J\)"):
        solve_weight(losses[0], costs, 9.0)
    with pytest.raises(ValueError, match=r"lambda is -1\.0; expected a finite number >= 0"):
        penalised_choice(losses, costs, -1.0)
