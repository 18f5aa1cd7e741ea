"""The concentration of a refined posterior against closed forms, and the posterior as rules and scores use it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Dirichlet, kl_divergence

from pyro_smat.inference.decision import predict
from pyro_smat.inference.deployment.refinement import DirichletRefinement, FacePosterior, FrankWolfe
from pyro_smat.inference.deployment.refinement.dirichlet import DOUBLINGS, evidence_concentration
from pyro_smat.inference.objective.candidates import as_deployed
from pyro_smat.models.priors import DirichletPrior
from pyro_smat.registry import names

MEAN = torch.tensor([0.5, 0.2, 0.2, 0.1], dtype=torch.float64)
SLOPE = torch.tensor([1.0, -0.5, 0.3, 2.0], dtype=torch.float64)


def quadratic(curvature: float) -> Callable[[Tensor], Tensor]:
    """f(w) = g.w + curvature |w - m|^2 / 2."""
    return lambda w: w @ SLOPE + curvature * (w - MEAN).square().sum(-1) / 2


def exact_choice(curvature: float, shots: int, prior: float) -> float:
    """E |w - m|^2 = (1 - |m|^2) / (kappa + 1), and torch's own KL."""
    scores = {}
    for kappa in [prior * 2.0**j for j in DOUBLINGS]:
        spread = float(1 - MEAN.square().sum()) / (kappa + 1)
        divergence = float(kl_divergence(Dirichlet(kappa * MEAN), Dirichlet(prior * MEAN)))
        scores[kappa] = shots * curvature * spread / 2 + divergence
    return min(scores, key=scores.__getitem__)


@pytest.mark.parametrize("curvature", [-3.0, 0.0, 0.3, 1.0, 4.0, 15.0])
@pytest.mark.parametrize("shots", [5, 50])
def test_a_quadratic_loss_has_a_closed_form(curvature: float, shots: int) -> None:
    expected = exact_choice(curvature, shots, 4.0)
    assert evidence_concentration(quadratic(curvature), MEAN, SLOPE, shots, 4.0, 512) == expected
    few = evidence_concentration(quadratic(curvature), MEAN, SLOPE, shots, 4.0, 16)
    assert expected / 2 <= few <= 2 * expected


def test_a_flat_or_linear_loss_leaves_the_prior() -> None:
    for prior in (0.5, 4.0, 30.0):
        assert evidence_concentration(quadratic(0.0), MEAN, SLOPE, 1000, prior, 4) == prior
        flat = evidence_concentration(lambda w: w.new_zeros(len(w)), MEAN, 0 * SLOPE, 1000, prior, 4)
        assert flat == prior


def test_more_shots_of_a_minimum_concentrate() -> None:
    found = [evidence_concentration(quadratic(2.0), MEAN, SLOPE, n, 4.0, 16) for n in (0, 3, 10, 30, 100, 1000)]
    assert found == sorted(found)
    assert found[0] == 4.0
    assert found[-1] > 32.0


def test_blocks_and_closed_sources() -> None:
    """Two blocks that say the same thing say it twice; sources without weight change nothing."""
    pair = torch.stack([MEAN, MEAN])

    def both(w: Tensor) -> Tensor:
        return quadratic(2.0)(w[:, 0]) + quadratic(2.0)(w[:, 1])

    one = evidence_concentration(quadratic(2.0), MEAN, SLOPE, 20, 4.0, 64)
    assert evidence_concentration(both, pair, torch.stack([SLOPE, SLOPE]), 20, 4.0, 64) == one
    padded = torch.cat([MEAN, torch.zeros(3, dtype=torch.float64)])
    slope = torch.cat([SLOPE, torch.zeros(3, dtype=torch.float64)])
    found = evidence_concentration(lambda w: quadratic(2.0)(w[:, :4]), padded, slope, 20, 4.0, 64)
    assert found == one


def test_the_posterior_of_a_face() -> None:
    concentration = torch.tensor([[3.0, 0.0, 1.0], [0.0, 5.0, 0.0]], dtype=torch.float64)
    experts = torch.tensor([[0.3, 0.7], [1.0, 0.0]], dtype=torch.float64)
    posterior = FacePosterior(concentration, experts)
    draws = posterior.sample(20000, torch.Generator().manual_seed(0))
    assert draws.shape == (20000, 2, 5)
    assert (draws[:, 0, 1] == 0).all()
    assert torch.equal(draws[:, 1], torch.tensor([0.0, 1, 0, 1, 0], dtype=torch.float64).expand(20000, -1))
    assert torch.equal(draws[..., 3:], experts.expand(20000, -1, -1))
    reference = Dirichlet(torch.tensor([3.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(posterior.mean[0, [0, 2]], reference.mean)
    torch.testing.assert_close(draws[:, 0, [0, 2]].mean(0), reference.mean, atol=5e-3, rtol=0)
    torch.testing.assert_close(draws[:, 0, [0, 2]].var(0), reference.variance, atol=2e-3, rtol=0)
    top, weights = posterior.top(1)
    assert torch.equal(top[0, 0], torch.tensor([1.0, 0, 0, 0.3, 0.7], dtype=torch.float64))
    assert torch.equal(weights, torch.ones(1, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match="expected a prior of the same family"):
        posterior.kl(DirichletPrior(3, 2).double())


def test_a_lone_source() -> None:
    posterior = FacePosterior(torch.ones(2, 1), torch.zeros(2, 0))
    assert torch.equal(posterior.sample(3), torch.ones(3, 2, 1))
    assert torch.equal(posterior.sample(64).var(0).sum(-1), torch.zeros(2))


@pytest.mark.parametrize(("blocks", "experts"), [(1, 2), (2, 2), (1, 0)])
def test_rules_and_scores_work_on_it(make_router: Callable[..., Any], blocks: int, experts: int) -> None:
    router = make_router(blocks=blocks, experts=experts)
    episode = router.batch[2:3]
    with as_deployed(router.model, router.guide):
        basis, mean = router.model.basis(), router.guide.posterior(episode).mean[0]
        found = DirichletRefinement().refine(router.model, basis, episode, mean)
        posterior = found.posterior
        assert posterior is not None
        torch.testing.assert_close(posterior.mean[0], mean)
        torch.testing.assert_close(found.coefficients, mean)
        assert posterior.sample(7).shape == (7, *posterior.mean.shape)
        for rule in names("decision_rule"):
            probabilities = predict(router.model, posterior, episode, rule, generator=torch.Generator().manual_seed(0))
            torch.testing.assert_close(probabilities.sum(-1), torch.ones_like(probabilities[..., 0]))
        assert posterior.sample(64).var(0).sum() > 0
        assert posterior.entropy().sum() > 0


def test_steps_and_a_budget_come_first(make_router: Callable[..., Any]) -> None:
    router = make_router(sources=4)
    episode = router.batch[:1]
    with as_deployed(router.model, router.guide):
        basis, mean = router.model.basis(), router.guide.posterior(episode).mean[0]
        found = DirichletRefinement(4, 2, draws=4).refine(router.model, basis, episode, mean)
        point = FrankWolfe(4, 2).refine(router.model, basis, episode, mean)
    assert found.posterior is not None
    torch.testing.assert_close(found.coefficients, point.coefficients)
    assert (found.after, found.gap) == (point.after, point.gap)
    opened = (found.posterior.sample(50)[..., :4] > 0).sum(-1)
    assert int(opened.max()) <= 2
    assert "Dirichlet concentration" in str(found)
