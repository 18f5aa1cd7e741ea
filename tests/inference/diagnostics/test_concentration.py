"""Concentration on FiniteRoutes, whose doubt at every number of shots is a finite sum."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from conftest import LAWS, PRIOR, sharpen

from pyro_smat.inference.diagnostics.concentration import (
    Concentration,
    concentration,
    concentration_of_draws,
    fitted_exponent,
    route_exponents,
)
from pyro_smat.models.finite_routes import FiniteRoutes, bhattacharyya_bound, chernoff_bound

SHOTS = (2, 4, 6, 8)
P = PRIOR.numpy()


def measured(world: FiniteRoutes, guide: Callable[[np.ndarray], np.ndarray], n: int = 3000) -> Concentration:
    truth, x = world.draw(n, max(SHOTS), torch.Generator().manual_seed(1))
    q = np.stack([guide(world.posterior(x[:, :shots]).numpy()) for shots in SHOTS])
    return concentration(SHOTS, q, P, truth=truth.numpy())


def exact_doubt(shots: int) -> float:
    """E[1 - q(true)] over all 3^n supports."""
    x = torch.tensor(list(product(range(3), repeat=shots)))
    joint = PRIOR * LAWS[:, x].prod(-1).T
    q = joint / joint.sum(1, keepdim=True)
    return float((joint * (1 - q)).sum())


def test_known_truth_is_the_exact_sum(world: FiniteRoutes) -> None:
    found = measured(world, lambda q: q)
    exact = np.array([[exact_doubt(n)] for n in SHOTS])
    assert found.doubt is not None
    np.testing.assert_allclose(found.doubt.mean(1), exact[:, 0], atol=0.015)
    rate = fitted_exponent(np.array(SHOTS), exact, resamples=1).rate
    assert found.exponent is not None
    assert found.exponent.low <= rate <= found.exponent.high
    np.testing.assert_allclose(found.error, found.admitted, atol=0.03)
    np.testing.assert_allclose(found.z_mean_square, 1.0, atol=0.1)
    assert (np.diff(found.contraction.mean(1)) > 0).all()
    assert found.entropy is not None
    assert (np.diff(found.entropy.mean(1)) < 0).all()


def test_biased_and_sharp(world: FiniteRoutes) -> None:
    sharp = measured(world, lambda q: sharpen(q, 2.0))
    assert (sharp.error > sharp.admitted + 0.05).all()
    assert (sharp.z_mean_square > 1.2).all()
    exact = measured(world, lambda q: q)
    assert sharp.contraction.mean() > exact.contraction.mean()
    biased = measured(world, lambda q: sharpen(q * [1, 1, 1, 30.0], 1.0))
    assert biased.doubt is not None
    assert exact.doubt is not None
    assert (biased.doubt.mean(1) > exact.doubt.mean(1)).all()


def test_contraction_is_not_clipped() -> None:
    wide = np.broadcast_to(np.full(3, 1 / 3), (3, 4, 3))
    found = concentration((1, 2, 3), wide, np.array([0.98, 0.01, 0.01]))
    assert (found.contraction < -5).all()
    assert found.exponent is None


def test_rates_of_theory_are_the_limits_of_the_bounds() -> None:
    bhattacharyya, chernoff = route_exponents(LAWS)
    assert 0 < bhattacharyya <= chernoff
    for bound, rate in ((bhattacharyya_bound, bhattacharyya), (chernoff_bound, chernoff)):
        slope = (np.log(bound(PRIOR, LAWS, 900)) - np.log(bound(PRIOR, LAWS, 1000))) / 100
        assert slope == pytest.approx(rate, rel=0.02)


def test_the_exponent_nears_the_chernoff_rate() -> None:
    """Two laws far apart: at many shots the fitted slope is the rate of theory, and more than that for p^1.5 never."""
    laws = torch.tensor([[0.85, 0.15], [0.15, 0.85]], dtype=torch.float64)
    world = FiniteRoutes(torch.tensor([0.5, 0.5], dtype=torch.float64), laws)
    shots = (6, 8, 10, 12)
    truth, x = world.draw(200_000, 12, torch.Generator().manual_seed(0))
    q = np.stack([world.posterior(x[:, :n]).numpy() for n in shots])
    found = concentration(shots, q, np.array([0.5, 0.5]), truth=truth.numpy(), resamples=50).beside(laws)
    assert found.exponent is not None
    assert found.exponent.rate == pytest.approx(found.chernoff, rel=0.2)
    assert found.exponent.rate > found.chernoff  # a polynomial factor hastens the decay at finite n


def test_gaussian_draws_contract_as_they_should() -> None:
    """y_i = u + e_i: the posterior of n observations has variance 1 / (1 + n)."""
    rng = np.random.default_rng(0)
    u = rng.standard_normal((300, 2))
    y = u + rng.standard_normal((8, 300, 2))
    shots = (1, 3, 8)

    def draws(ratio: float, shift: float = 0.0) -> np.ndarray:
        means = [y[:n].sum(0) / (1 + n) + shift for n in shots]
        noise = rng.standard_normal((3, 400, 300, 2)) / np.sqrt(1 + np.array(shots))[:, None, None, None]
        return np.stack(means)[:, None] + ratio * noise

    prior = rng.standard_normal((5000, 2))
    exact = concentration_of_draws(shots, draws(1.0), prior, truth=u)
    np.testing.assert_allclose(exact.contraction.mean(1), [1 / 2, 3 / 4, 8 / 9], atol=0.02)
    np.testing.assert_allclose(exact.z_mean_square, 1.0, atol=0.12)
    narrow = concentration_of_draws(shots, draws(0.8), prior, truth=u)
    np.testing.assert_allclose(narrow.z_mean_square, 1 / 0.64, rtol=0.12)
    biased = concentration_of_draws(shots, draws(1.0, 0.5), prior, truth=u)
    assert (biased.z_mean_square[1:] > 1.5).all()
    assert np.isnan(concentration_of_draws(shots, draws(1.0), prior).z_mean_square).all()


def test_refused() -> None:
    q = np.full((2, 5, 3), 1 / 3)
    with pytest.raises(ValueError, match="at least 3 ascending"):
        concentration((1, 2), q, np.full(3, 1 / 3))
    with pytest.raises(ValueError, match="at least 3 ascending"):
        concentration((3, 2, 1), np.concatenate([q, q[:1]]), np.full(3, 1 / 3))
    with pytest.raises(ValueError, match="expected \\(shots, episodes, J\\)"):
        concentration((1, 2, 3), np.full((3, 5, 3), 1 / 3), np.full(4, 1 / 4))
