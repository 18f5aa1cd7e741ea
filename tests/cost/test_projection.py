"""project_to_budget: feasible, heaviest by brute force over all subsets, idempotent; budgets that cannot be."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from pyro_smat.cost import CostModel, project_to_budget


def mixtures(*shape: int, sources: int, experts: int = 0, seed: int = 0, sparse: bool = False) -> Tensor:
    """Random weights on both simplices, float64; with ``sparse`` some are exactly 0."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for size in filter(None, (sources, experts)):
        part = torch.rand(*shape, size, generator=generator, dtype=torch.float64) + 0.01
        if sparse:
            part = part * (torch.rand(part.shape, generator=generator) > 0.4)
            part[..., 0] += 0.01
        parts.append(part / part.sum(-1, keepdim=True))
    return torch.cat(parts, -1)


def subsets(row: Tensor, sources: int) -> list[tuple[float, Tensor]]:
    """(kept weight, kept coefficients) of every way to keep at least one source and any experts of one mixture."""
    found = []
    for bits in itertools.product([0.0, 1.0], repeat=len(row)):
        kept = row * row.new_tensor(bits)
        if kept[:sources].sum() > 0:
            found.append((float(kept.sum()), kept))
    return found


def heaviest(mixture: Tensor, sources: int, model: CostModel, budget: float, opened: Tensor | None) -> float:
    """The most weight that fits, by trying every combination of subsets of the blocks (of ``(G, C)``)."""
    combinations = list(itertools.product(*(subsets(row, sources) for row in mixture)))
    rows = torch.stack([torch.stack([kept for _, kept in choice]) for choice in combinations])
    if model.blocks == 1:
        rows = rows.squeeze(1)
    fits = model.cost_of(rows, opened) <= budget * (1 + 1e-9)
    return max(sum(w for w, _ in choice) for choice, ok in zip(combinations, fits.tolist(), strict=True) if ok)


def kept_weight(before: Tensor, after: Tensor) -> Tensor:
    """Of the weights ``(*b, C)`` before, how much is still there ``(*b,)``."""
    return torch.where(after > 0, before, 0.0).sum(-1)


def test_one_mixture_keeps_the_heaviest_subset() -> None:
    """Experts of one price: the k heaviest of each are then the best subsets."""
    model = CostModel((1.0,), (0.7,), entry=0.25, fixed=5.0)
    opened = torch.tensor([[4], [4]])
    weights = mixtures(40, sources=4, experts=2, sparse=True)
    for budget in (6.0, 7.0, 7.7, 8.3, 8.7, 9.5, 10.0, 12.0):
        after = project_to_budget(weights, model, budget, opened)
        assert (model.cost_of(after, opened) <= budget * (1 + 1e-9)).all()
        best = [heaviest(row.unsqueeze(0), 4, model, budget, opened) for row in weights]
        torch.testing.assert_close(kept_weight(weights, after), torch.tensor(best, dtype=torch.float64))


def test_blocks_of_one_price_keep_the_heaviest_subset() -> None:
    model = CostModel((1.0, 1.0, 1.0), (0.0, 0.0, 0.0), fixed=2.0)
    weights = mixtures(12, 3, sources=3)
    for budget in (5.0, 6.5, 7.0, 9.0):
        after = project_to_budget(weights, model, budget)
        assert (model.cost_of(after) <= budget).all()
        best = torch.tensor([heaviest(row, 3, model, budget, None) for row in weights], dtype=torch.float64)
        torch.testing.assert_close(kept_weight(weights, after).sum(-1), best)


def test_blocks_of_different_prices_fall_short_by_less_than_a_step() -> None:
    """The knapsack's greedy: less than the first source that did not fit below the best, and mostly the best."""
    model = CostModel((1.0, 2.5), (0.0, 0.0))
    weights = mixtures(60, 2, sources=4)
    exact = 0
    for budget in (4.0, 5.5, 7.0, 8.5, 10.0):
        after = project_to_budget(weights, model, budget)
        assert (model.cost_of(after) <= budget * (1 + 1e-9)).all()
        best = torch.tensor([heaviest(row, 4, model, budget, None) for row in weights], dtype=torch.float64)
        short = best - kept_weight(weights, after).sum(-1)
        second = weights.sort(-1, descending=True).values[..., 1]
        assert (short > -1e-9).all()
        assert (short < second.amax(-1)).all()
        exact += int((short < 1e-9).sum())
    assert exact >= 240  # of 300


def test_experts_of_different_sizes_go_by_their_weight() -> None:
    """The best pair (k, e) of one mixture, by trying all: a small light expert does not replace a large heavy one."""
    model = CostModel((1.0, 2.0), (0.8, 1.7), entry=0.1)
    opened = torch.tensor([[7, 30], [0, 5], [2, 0]])
    weights = mixtures(50, 1, sources=3, experts=3, sparse=True)
    for budget in (3.0, 4.5, 6.0, 8.0, 11.0, 16.0):
        after = project_to_budget(weights, model, budget, opened)
        assert (model.cost_of(after, opened) <= budget * (1 + 1e-9)).all()
        for row, found in zip(weights.flatten(0, 1), after.flatten(0, 1), strict=True):
            best = 0.0
            for k, e in itertools.product(range(1, 4), range(4)):
                ours, theirs = row[:3].sort(descending=True), row[3:].sort(descending=True)
                pair = torch.zeros(6, dtype=torch.float64)
                pair[ours.indices[:k]], pair[3 + theirs.indices[:e]] = ours.values[:k], theirs.values[:e]
                if float(model.cost_of(pair.unsqueeze(0), opened)) <= budget * (1 + 1e-9):
                    best = max(best, float(pair.sum()))
            assert float(kept_weight(row, found)) == pytest.approx(best, abs=1e-12)


def test_what_is_kept_is_renormalised_on_both_simplices() -> None:
    weights = torch.tensor([0.1, 0.5, 0.4, 0.3, 0.7])
    opened = torch.tensor([[2], [2]])
    model = CostModel((1.0,), (0.0,), entry=1.0)
    for budget, expected in (
        (6.0, [0.0, 5 / 9, 4 / 9, 0.3, 0.7]),
        (5.0, [0.1, 0.5, 0.4, 0.0, 1.0]),
        (3.9, [0.0, 1.0, 0.0, 0.0, 1.0]),
        (2.0, [0.0, 5 / 9, 4 / 9, 0.0, 0.0]),
        (1.0, [0.0, 1.0, 0.0, 0.0, 0.0]),
    ):
        torch.testing.assert_close(project_to_budget(weights, model, budget, opened), torch.tensor(expected))


def test_the_blocks_that_lose_least_weight_per_cost_are_thinned() -> None:
    model = CostModel((1.0, 4.0), (0.0, 0.0))
    weights = torch.tensor([[0.8, 0.2], [0.6, 0.4]])  # a second source gains 0.2 a unit there, 0.1 here
    expected = torch.tensor([[0.8, 0.2], [1.0, 0.0]])
    torch.testing.assert_close(project_to_budget(weights, model, 9.0), expected)


def test_projecting_again_changes_nothing_and_batches_are_rows() -> None:
    model = CostModel((1.0, 2.0), (0.5, 0.5), entry=0.1)
    opened = torch.tensor([[4, 0], [3, 9]])
    weights = mixtures(5, 6, 2, sources=4, experts=2, sparse=True)
    once = project_to_budget(weights, model, 6.0, opened)
    assert torch.equal(project_to_budget(once, model, 6.0, opened), once)
    one_by_one = [project_to_budget(row, model, 6.0, opened) for row in weights.flatten(0, 1)]
    assert torch.equal(once.flatten(0, 1), torch.stack(one_by_one))
    sums = once.split([4, 2], -1)
    torch.testing.assert_close(sums[0].sum(-1), torch.ones(5, 6, 2, dtype=torch.float64))
    assert (((sums[1].sum(-1) - 1).abs() < 1e-12) | (sums[1].sum(-1) == 0)).all()


def test_a_shared_mixture_pays_for_all_blocks() -> None:
    model = CostModel((1.0, 2.0), (0.0, 0.0), fixed=1.0)
    weights = torch.tensor([[[0.5, 0.3, 0.2]], [[0.1, 0.2, 0.7]]])
    found = project_to_budget(weights, model, 7.0)
    torch.testing.assert_close(found, torch.tensor([[[0.625, 0.375, 0.0]], [[0.0, 2 / 9, 7 / 9]]]))


def test_what_fits_is_returned_bit_for_bit() -> None:
    model = CostModel((1.0,), (1.0,), fixed=0.5)
    one_hot = torch.eye(4)
    assert torch.equal(project_to_budget(one_hot, model, 1.5), one_hot)
    tails = torch.tensor([[1.0 - 2e-7, 1e-7, 1e-7, 0.0], [1.0, 1e-30, 0.0, 0.0]])
    assert torch.equal(project_to_budget(tails, model, 3.5), tails)
    assert torch.equal(project_to_budget(tails, model, 2.5)[1], tails[1])


def test_of_equal_weights_the_first_sources_stay() -> None:
    uniform = torch.full((4,), 0.25)
    kept = project_to_budget(uniform, CostModel((1.0,), (0.0,)), 2.0)
    assert kept.tolist() == [0.5, 0.5, 0.0, 0.0]


def test_free_experts_are_always_kept() -> None:
    weights = torch.tensor([0.6, 0.4, 0.9, 0.1])
    kept = project_to_budget(weights, CostModel((1.0,), (0.0,)), 1.0, torch.tensor([[5], [5]]))
    torch.testing.assert_close(kept, torch.tensor([1.0, 0.0, 0.9, 0.1]))


def test_the_kept_weights_have_a_gradient() -> None:
    logits = torch.tensor([0.3, -0.2, 0.9, 0.1], dtype=torch.float64, requires_grad=True)
    model = CostModel((1.0,), (0.0,))
    assert torch.autograd.gradcheck(lambda u: project_to_budget(u.softmax(-1), model, 2.0), (logits,))


def test_budgets_and_weights_that_cannot_be_are_refused() -> None:
    model = CostModel((1.0, 2.0), (0.0, 0.0), fixed=0.25, unit="ms")
    weights = mixtures(2, sources=3)
    for budget in (3.2, 0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"budget is .* ms; expected at least 3\.25, the price of one source in e"):
            project_to_budget(weights, model, budget)
    assert torch.equal(project_to_budget(weights, model, 3.25).sort().values[..., -1], torch.ones(2).double())
    with pytest.raises(ValueError, match="NaN or infinite"):
        project_to_budget(weights * torch.nan, model, 4.0)
    with pytest.raises(ValueError, match="negative weights, or no source at all"):
        project_to_budget(-weights, model, 4.0)
    with pytest.raises(ValueError, match="no source at all"):
        project_to_budget(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), model, 4.0, torch.ones(1, 2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"shape \(3, 3\); expected"):
        project_to_budget(mixtures(3, sources=3), model, 4.0)
