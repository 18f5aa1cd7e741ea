"""Deployment modes: what they promise of the support loss, the budgets they keep, and that they are repeatable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_smat.inference.deployment.refinement import (
    DirichletRefinement,
    FrankWolfe,
    GradientRefinement,
    Refinement,
    RefinementMode,
    RiskAverse,
    SupportObjective,
    WorstCaseObjective,
    refine_batch,
    refine_episodes,
    refined_probabilities,
)
from pyro_smat.inference.objective.candidates import as_deployed, support_candidate_losses
from pyro_smat.inference.objective.outcome import class_probabilities
from pyro_smat.networks.experts import ExpertBank

DESCENDING: tuple[RefinementMode, ...] = (
    FrankWolfe(4),
    GradientRefinement(6, 0.3),
    DirichletRefinement(steps=3, draws=4),
)
MODES = (*DESCENDING, RiskAverse(0.3, 3))
FAMILIES = [("logistic_normal", 1), ("logistic_normal", 2), ("catalog", 1)]


def names(value: object) -> str:
    return value.name if isinstance(value, RefinementMode) else str(value)


def refined(router: Any, mode: RefinementMode) -> tuple[tuple[Refinement, ...], Tensor, Tensor]:
    """Refinements of all episodes, the deployed basis, and the routings they start from."""
    with as_deployed(router.model, router.guide):
        basis, posterior = router.model.basis(), router.guide.posterior(router.batch)
        return refine_episodes(mode, router.model, basis, router.batch, posterior), basis, posterior.mean


def loss_of(router: Any, i: int, coefficients: Tensor, basis: Tensor) -> float:
    rows = coefficients.unsqueeze(0)
    return float(support_candidate_losses(router.model, router.batch, rows, basis=basis)[0, i])


@pytest.mark.parametrize(("family", "blocks"), FAMILIES)
@pytest.mark.parametrize("mode", MODES, ids=names)
def test_losses_are_those_of_the_networks(
    make_router: Callable[..., Any], mode: RefinementMode, family: str, blocks: int
) -> None:
    router = make_router(family, blocks=blocks)
    found, basis, starts = refined(router, mode)
    for i, (refinement, start) in enumerate(zip(found, starts, strict=True)):
        w, alpha = refinement.coefficients.split([3, 2], dim=-1)
        assert refinement.coefficients.shape == start.shape
        assert w.min() >= 0
        torch.testing.assert_close(w.sum(-1), torch.ones_like(w.sum(-1)))
        torch.testing.assert_close(alpha.sum(-1), torch.ones_like(alpha.sum(-1)))
        own = refinement.basis(router.model, basis)
        assert refinement.before == pytest.approx(loss_of(router, i, start, basis), rel=1e-9)
        assert refinement.after == pytest.approx(loss_of(router, i, refinement.coefficients, own), rel=1e-9)
        assert refinement.active == int((w > 0).reshape(-1, 3).any(0).sum())
        assert f"{refinement.before:.3f} -> {refinement.after:.3f}" in str(refinement)


@pytest.mark.parametrize(("family", "blocks"), FAMILIES)
@pytest.mark.parametrize("mode", DESCENDING, ids=names)
def test_the_support_loss_never_increases(
    make_router: Callable[..., Any], mode: RefinementMode, family: str, blocks: int
) -> None:
    found = [r for seed in range(2) for r in refined(make_router(family, blocks=blocks, seed=seed), mode)[0]]
    assert all(refinement.after <= refinement.before for refinement in found)
    gained = [refinement.before - refinement.after for refinement in found]
    assert max(gained) > 1e-2
    assert sum(gain > 0 for gain in gained) >= 4


@pytest.mark.parametrize("mode", MODES, ids=names)
def test_repeatable_and_nothing_is_trained(make_router: Callable[..., Any], mode: RefinementMode) -> None:
    router = make_router()
    before = [parameter.clone() for parameter in router.parameters()]
    first, _, _ = refined(router, mode)
    torch.manual_seed(99)
    again, _, _ = refined(router, mode)
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.coefficients, other.coefficients)
        assert str(one) == str(other)
    assert all(map(torch.equal, before, router.parameters()))
    assert all(parameter.grad is None for parameter in router.parameters())


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("limit", [1, 2])
def test_a_budget_of_sources(make_router: Callable[..., Any], blocks: int, limit: int) -> None:
    router = make_router(sources=5, blocks=blocks)
    found, basis, starts = refined(router, FrankWolfe(6, max_active=limit))
    for i, (refinement, start) in enumerate(zip(found, starts, strict=True)):
        weights = refinement.coefficients[..., :5]
        assert int((weights > 0).sum(-1).max()) <= limit
        largest = start[..., :5].topk(limit, dim=-1)
        kept = torch.zeros_like(start[..., :5]).scatter(-1, largest.indices, largest.values)
        truncated = torch.cat([kept / kept.sum(-1, keepdim=True), start[..., 5:]], dim=-1)
        assert refinement.after <= loss_of(router, i, truncated, basis) + 1e-12
        torch.testing.assert_close(refinement.coefficients[..., 5:], start[..., 5:])


@pytest.mark.parametrize("blocks", [1, 2])
def test_many_steps_reach_a_stationary_point(make_router: Callable[..., Any], blocks: int) -> None:
    """The gap from finite differences of the composed networks' losses."""
    router = make_router(blocks=blocks, episodes=2)
    found, basis, _ = refined(router, FrankWolfe(200, tolerance=1e-5, method="pairwise"))
    for i, refinement in enumerate(found):
        assert refinement.certificate == "stationarity"
        assert refinement.gap is not None
        assert 0 <= refinement.gap < 1e-4
        weights = refinement.coefficients[..., :3].reshape(-1, 3)
        gap = 0.0
        for block in range(len(weights)):
            slopes = []
            for source in range(3):
                step = torch.zeros_like(refinement.coefficients)
                step.view(-1, step.shape[-1])[block, source] = 1e-5
                ends = [loss_of(router, i, refinement.coefficients + sign * step, basis) for sign in (1, -1)]
                slopes.append((ends[0] - ends[1]) / 2e-5)
            gap += float(weights[block] @ torch.tensor(slopes).to(weights)) - min(slopes)
        assert refinement.gap == pytest.approx(gap, abs=1e-6)


def test_no_steps_change_nothing(make_router: Callable[..., Any]) -> None:
    router = make_router()
    for mode in (FrankWolfe(0), GradientRefinement(0)):
        found, _, starts = refined(router, mode)
        for refinement, start in zip(found, starts, strict=True):
            torch.testing.assert_close(refinement.coefficients, start)
            assert refinement.after == refinement.before


def decide(bank: ExpertBank) -> None:
    """Gates that are decided, and fewer of them open than the budget allows."""
    bank.log_alpha.data.mul_(20).sub_(13)


@pytest.mark.parametrize("gates", ["hard_concrete", "top_k"])
def test_gradient_steps_keep_masks_within_the_budget(make_router: Callable[..., Any], gates: str) -> None:
    router = make_router()
    bank = router.model.experts
    bank.gates = gates
    decide(bank)
    assert int(bank.masks().sum(-1).max()) < bank.budget
    found, _, starts = refined(router, GradientRefinement(30, 0.5))
    changed = [r for r in found if r.masks is not None and not torch.equal(r.masks, bank.masks())]
    assert changed
    for refinement, start in zip(found, starts, strict=True):
        torch.testing.assert_close(refinement.coefficients[..., :3], start[..., :3])
        if refinement.masks is not None:
            opened = refinement.masks.sum(-1)
            assert int(opened.max()) <= bank.budget
            for m in range(2):  # the order of the gates stays: the open ones are the largest
                assert set(bank.log_alpha[m].topk(int(opened[m])).indices.tolist()) == set(
                    refinement.masks[m].nonzero().flatten().tolist()
                )


def test_gradient_steps_keep_the_best_point(make_router: Callable[..., Any]) -> None:
    """Steps too long to go down every time: more of them visit the same points and others."""
    router = make_router()
    few, many = (refined(router, GradientRefinement(steps, 2.0))[0] for steps in (3, 12))
    assert all(b.after <= a.after for a, b in zip(few, many, strict=True))
    assert any(b.after == a.after < a.before for a, b in zip(few, many, strict=True))


def test_gradient_steps_need_experts(make_router: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"no experts \(M = 0\)"):
        refined(make_router(experts=0), GradientRefinement())


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("radius", [0.0, 0.4])
def test_the_worst_case_never_increases(make_router: Callable[..., Any], blocks: int, radius: float) -> None:
    router = make_router(blocks=blocks)
    found, basis, starts = refined(router, RiskAverse(radius, 4))
    gains = []
    for i, (refinement, start) in enumerate(zip(found, starts, strict=True)):
        objective = SupportObjective(router.model, basis, router.batch[i : i + 1], start)
        robust = WorstCaseObjective(objective, radius)
        end = refinement.coefficients[..., :3].numpy()
        gains.append(robust.value(objective.start) - robust.value(end))
        vertices = [np.broadcast_to(np.eye(3)[r], objective.shape).copy() for r in range(3)]
        best = min(vertices, key=objective.value)
        assert robust.value(end) <= robust.value(best) + 1e-12
        if radius == 0:
            assert refinement.after <= refinement.before
    assert min(gains) >= 0
    assert max(gains) > 1e-2


def test_batches(make_router: Callable[..., Any]) -> None:
    router = make_router()
    decide(router.model.experts)
    with as_deployed(router.model, router.guide):
        basis, posterior = router.model.basis(), router.guide.posterior(router.batch)
        together = refine_batch(FrankWolfe(3), router.model, basis, router.batch, posterior)
        found = refine_episodes(FrankWolfe(3), router.model, basis, router.batch, posterior)
        probabilities = refined_probabilities(router.model, basis, router.batch, found)
        expected = class_probabilities(router.model, together.unsqueeze(0), router.batch, basis)[0]
        assert torch.equal(together, torch.stack([refinement.coefficients for refinement in found]))
        assert together.shape == posterior.mean.shape
        torch.testing.assert_close(probabilities, expected)
        with pytest.raises(ValueError, match="use refine_episodes and refined_probabilities"):
            refine_batch(GradientRefinement(10, 0.3), router.model, basis, router.batch, posterior)
        masked = refine_episodes(GradientRefinement(10, 0.3), router.model, basis, router.batch, posterior)
        probabilities = refined_probabilities(router.model, basis, router.batch, masked)
        torch.testing.assert_close(probabilities.sum(-1), torch.ones_like(probabilities[..., 0]))
        for i, refinement in enumerate(masked):
            one = refinement.coefficients.expand(1, len(router.batch), -1)
            own = class_probabilities(router.model, one, router.batch, refinement.basis(router.model, basis))
            torch.testing.assert_close(probabilities[i], own[0, i])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FrankWolfe(-1), "steps is -1; expected an integer of at least 0"),
        (lambda: FrankWolfe(2.5), "steps is 2.5"),  # type: ignore[arg-type]
        (lambda: FrankWolfe(max_active=0), "max_active is 0; expected an integer of at least 1"),
        (lambda: FrankWolfe(tolerance=-1.0), "tolerance is -1.0"),
        (lambda: FrankWolfe(method="corrective"), "method is 'corrective'; expected one of"),  # type: ignore[arg-type]
        (lambda: GradientRefinement(5, 0.0), "learning_rate is 0.0; expected > 0"),
        (lambda: GradientRefinement(5, float("inf")), "learning_rate is inf; expected > 0 and finite"),
        (lambda: RiskAverse(2.5), "radius is 2.5; expected an l1 distance between mixtures, 0 to 2"),
        (lambda: RiskAverse(float("nan")), "radius is nan"),
        (lambda: DirichletRefinement(prior=0.0), "prior is 0.0"),
        (lambda: DirichletRefinement(prior=float("inf")), "prior is inf"),
        (lambda: DirichletRefinement(draws=513), "draws is 513; expected at most 512"),
        (lambda: DirichletRefinement(max_active=0), "max_active is 0"),
    ],
)
def test_values_out_of_range(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
