"""Score-function gradients of the choices of episodes, without chance: averaged over all outcomes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from scored_choices import KL_WEIGHT, PRIOR, RHOS, Choices, Script, assert_unbiased, cvar_by_hand, of_choices, two

from pyro_smat.inference import CVaR_ELBO
from pyro_smat.inference.objective.threshold import LearnedThreshold

pytestmark = [pytest.mark.filterwarnings("ignore:rho x B"), pytest.mark.usefixtures("double_precision")]


@pytest.mark.parametrize("kl", ["exact", "sampled"])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("rho", RHOS)
def test_gradient_of_the_expected_loss(rho: float, ties: bool, kl: Any, script: Script) -> None:
    toy = Choices(16, (0, 5, 9, 14), ties)
    elbo = CVaR_ELBO(rho=rho, kl_weight=KL_WEIGHT, kl=kl)
    assert_unbiased(elbo, toy, script, lambda x: cvar_by_hand(x, rho))


@pytest.mark.parametrize("rho", RHOS)
def test_of_regret_and_of_the_mixture_with_the_mean(rho: float, script: Script) -> None:
    """A large common reference changes the value, not the gradient: the cost is what the tail loses, not w x loss."""
    toy = Choices(16, (0, 5, 9))
    reference = torch.linspace(90.0, 91.0, 16)
    elbo = CVaR_ELBO(rho=rho, kl_weight=KL_WEIGHT, tail_weight=0.7, reference=lambda: reference)

    def objective(x: list[float]) -> float:
        tail = cvar_by_hand([a - b for a, b in zip(x, reference.tolist(), strict=True)], rho)
        return 0.3 * sum(x) / len(x) + 0.7 * tail

    assert_unbiased(elbo, toy, script, objective)


def elbo_of_two(rho: float, baseline: Any, toy: Choices, script: Script, vectorised: bool = True) -> CVaR_ELBO:
    """Two particles; a decaying average remembers an earlier step."""
    elbo = CVaR_ELBO(
        rho=rho,
        kl_weight=KL_WEIGHT,
        kl="sampled",
        baseline=baseline,
        num_particles=2,
        vectorize_particles=vectorised,
        max_plate_nesting=2,
    )
    if baseline == "decaying_average":
        size = len(toy.y)
        script.values = [torch.zeros(2, size, 1).long()] if vectorised else [torch.ones(size, 1).long()] * 2
        elbo.terms(toy.model, toy.guide)
        assert elbo.state_dict()["baselines"]["k"].abs().min() > 0
    return elbo


@pytest.mark.parametrize("baseline", ["none", "leave_one_out", "decaying_average"])
@pytest.mark.parametrize("vectorised", [False, True], ids=["sequential", "vectorised"])
@pytest.mark.parametrize("rho", [1.0, 0.2])
def test_of_the_tail_of_averages_over_particles(rho: float, vectorised: bool, baseline: Any, script: Script) -> None:
    toy = Choices(8, (1, 2, 6))
    elbo = elbo_of_two(rho, baseline, toy, script, vectorised)
    assert_unbiased(elbo, toy, script, lambda x: cvar_by_hand(x, rho))


@pytest.mark.parametrize("rho", [1.0, 0.5])
def test_baselines_lower_the_variance(rho: float, script: Script) -> None:
    """Exact variances, of losses far from zero."""
    toy = Choices(6, (0, 1, 2), shift=20.0)
    variances = {
        baseline: of_choices(elbo_of_two(rho, baseline, toy, script), toy, script)[2].item()
        for baseline in ("none", "leave_one_out", "decaying_average")
    }
    assert variances["leave_one_out"] < 0.2 * variances["none"]
    assert variances["decaying_average"] < 0.2 * variances["none"]


def test_decaying_average_by_hand(script: Script) -> None:
    """0.9 of the average so far and 0.1 of the new mean, of the episode losses and of the KL terms; loss() keeps it."""
    toy = Choices(6, (0, 1, 2))
    elbo = CVaR_ELBO(rho=0.5, kl_weight=KL_WEIGHT, kl="sampled", baseline="decaying_average")
    means = []
    for draws in itertools.islice(toy.outcomes(1), 3):
        script.values = [draws.T]
        elbo.terms(toy.model, toy.guide)
        log_q, log_p = two(toy.logits.squeeze(1)).log_prob(draws[0]), PRIOR.log()[draws[0]]
        means.append(torch.stack([toy.table().gather(1, draws.T).mean(), KL_WEIGHT * (log_q - log_p).mean()]).detach())
    wanted = 0.9 * (0.9 * means[0] + 0.1 * means[1]) + 0.1 * means[2]
    torch.testing.assert_close(elbo.state_dict()["baselines"]["k"], wanted)
    script.values = [draws.T]
    elbo.loss(toy.model, toy.guide)
    torch.testing.assert_close(elbo.state_dict()["baselines"]["k"], wanted)


@pytest.mark.parametrize("rho", RHOS)
def test_with_a_threshold_that_stands(rho: float, script: Script) -> None:
    """t learned before: the gradient of E[t + (X - t)_+ / rho]."""
    toy = Choices(16, (0, 5, 9, 14))
    t = toy.table()[:, 0].sort().values[11].item() + 0.01
    threshold = LearnedThreshold(warmup=0)
    threshold.load_state_dict({"queue": {"recent": torch.zeros(1)}, "value": torch.tensor(t), "seen": 1})
    elbo = CVaR_ELBO(rho=rho, kl_weight=KL_WEIGHT, threshold=threshold)

    def objective(x: list[float]) -> float:
        return sum(x) / 16 if rho == 1.0 else t + sum(max(a - t, 0.0) for a in x) / (16 * rho)

    assert_unbiased(elbo, toy, script, objective)
