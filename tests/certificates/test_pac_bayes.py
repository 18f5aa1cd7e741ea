"""PAC-Bayes: closed forms, the inverse of kl, and coverage where the same data have chosen the posterior."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from pyro_smat.certificates.pac_bayes import gaussian_kl, kl_inverse, pac_bayes_cvar_bound, pac_bayes_mean_bound


def test_gaussian_kl_is_torchs() -> None:
    g = torch.Generator().manual_seed(0)
    mean, scale, prior = (torch.randn(7, generator=g).double() for _ in range(3))
    scale = scale.exp()
    expected = kl_divergence(
        Independent(Normal(mean, scale), 1), Independent(Normal(prior, torch.full((7,), 0.4, dtype=torch.float64)), 1)
    )
    assert gaussian_kl(mean, scale, prior, 0.4) == pytest.approx(expected.item())
    assert gaussian_kl([1.0], [0.5], [1.0], 0.5) == 0


@pytest.mark.parametrize("value", [0.0, 0.1, 0.7, 1.0])
@pytest.mark.parametrize("budget", [0.0, 0.01, 1.0])
def test_kl_inverse_solves_its_equation(value: float, budget: float) -> None:
    b = kl_inverse(value, budget)
    assert value <= b <= 1
    if value == 0:
        assert b == pytest.approx(1 - math.exp(-budget), abs=1e-9)
    elif 0 < value < 1 and budget:
        kl = value * math.log(value / b) + (1 - value) * math.log((1 - value) / (1 - b))
        assert kl == pytest.approx(budget, abs=1e-8)


def test_holds_for_a_posterior_that_was_fitted_to_the_same_episodes() -> None:
    """Losses |psi - Z| clipped to 1 with Z uniform; Q sits at the median of the data."""
    violated, runs, delta = 0, 60, 0.1
    for seed in range(runs):
        generator = np.random.default_rng(seed)
        data = generator.random(200)
        centre, scale = np.median(data), 0.1
        kl = gaussian_kl([centre], [scale], [0.5], 0.3)
        draws = centre + scale * generator.standard_normal(50)
        losses = np.minimum(np.abs(draws[:, None] - data), 1.0)
        fresh, psi = generator.random(20_000), centre + scale * generator.standard_normal(20_000)
        truth = np.minimum(np.abs(psi - fresh), 1.0)
        tail = np.sort(truth)[::-1][:4000].mean()
        mean = pac_bayes_mean_bound(losses, kl, delta)
        worst = pac_bayes_cvar_bound(losses, 0.2, kl, delta)
        violated += mean.bound < truth.mean() or worst.bound < tail
        assert mean.informative
        assert mean.bound < worst.bound
        assert "looser" in str(mean)
    assert violated <= 0.1 * runs


def test_more_divergence_costs_more() -> None:
    losses = np.random.default_rng(0).beta(2, 8, (20, 500))
    bounds = [pac_bayes_mean_bound(losses, kl).bound for kl in (0.0, 5.0, 50.0)]
    assert bounds[0] < bounds[1] < bounds[2]


def test_the_estimate_is_the_exact_mean_of_the_tails() -> None:
    """Of 30 losses the worst twentieth are one and a half."""
    losses = np.random.default_rng(0).random((4, 30))
    largest, second = np.sort(losses, axis=1)[:, -1], np.sort(losses, axis=1)[:, -2]
    assert pac_bayes_cvar_bound(losses, 0.05, 1.0).estimate == pytest.approx(((largest + second / 2) / 1.5).mean())


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="kl is -1"):
        pac_bayes_mean_bound([[0.1]], -1)
    with pytest.raises(ValueError, match="dimension"):
        pac_bayes_mean_bound([0.1], 1)
    with pytest.raises(ValueError, match=r"expected \[0, 1\]"):
        pac_bayes_cvar_bound([[2.0]], 0.1, 1)
    with pytest.raises(ValueError, match="numbers > 0"):
        gaussian_kl([0.0], [0.0], [0.0], 1.0)
