"""k-hat per episode: against theory, against ArviZ, and what it does not see."""

from __future__ import annotations

import time

import numpy as np
import pytest
from arviz_stats.base import array_stats

from pyro_smat.inference.diagnostics.pareto import catalog_discrepancy, khat_per_episode, khat_threshold
from pyro_smat.inference.diagnostics.pareto_tail import smooth

EPISODES = 200


def gaussian(sd: float, mean: float = 0.0, draws: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """log p of N(0, 1) and log q of N(mean, sd) at draws of q."""
    u = mean + sd * np.random.default_rng(0).standard_normal((draws, EPISODES))
    return -0.5 * u**2, -0.5 * ((u - mean) / sd) ** 2


def test_the_exact_guide_has_minus_infinity_in_float32_too() -> None:
    log_p, log_q = gaussian(1.0)
    rounded = log_q.astype(np.float32).astype(np.float64) + 3.0  # an unknown constant and rounding
    found = khat_per_episode(log_p, rounded)
    assert (found.khat == -np.inf).all()
    assert found.ess == pytest.approx(1000, rel=1e-4)


def test_half_the_standard_deviation_is_the_shape_of_theory() -> None:
    """w = exp(-u^2 / 2 (1 - 1/s^2)) of u ~ N(0, s) has a Pareto tail of shape 1 - s^2 = .75 for s = .5."""
    khat = khat_per_episode(*gaussian(0.5)).khat
    assert np.median(khat) == pytest.approx(0.68, abs=0.04)  # the prior of the fit pulls towards .5


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.8])
def test_weights_with_a_pareto_tail_have_its_shape(shape: float) -> None:
    log_w = shape * np.random.default_rng(0).standard_exponential((20_000, EPISODES))
    found = khat_per_episode(log_w, np.zeros_like(log_w)).khat
    assert np.median(found) == pytest.approx(shape, abs=0.02)


def test_a_biased_guide_and_one_that_is_a_little_narrow_pass() -> None:
    """What k-hat cannot see is part of what it is: .8 of the standard deviation, and a shift of one and a half."""
    threshold = khat_threshold(1000)
    narrow, biased = khat_per_episode(*gaussian(0.8)), khat_per_episode(*gaussian(1.0, 1.5))
    assert np.median(narrow.khat) == pytest.approx(0.38, abs=0.05)
    assert np.median(biased.khat) == pytest.approx(0.47, abs=0.05)
    assert max(np.median(narrow.khat), np.median(biased.khat)) < threshold
    assert np.median(biased.ess) < 400 < np.median(narrow.ess)
    assert not khat_per_episode(*gaussian(1.0, 4.0)).reliable.any()


@pytest.mark.parametrize("draws", [100, 225, 226, 1000])
@pytest.mark.parametrize(("sd", "mean"), [(0.5, 0.0), (0.9, 0.3), (1.5, 0.0)])
def test_weights_and_shape_are_those_of_arviz(draws: int, sd: float, mean: float) -> None:
    log_p, log_q = gaussian(sd, mean, draws)
    ratios = (log_p - log_q).T
    weights, khat = smooth(ratios)
    theirs, theirs_k = array_stats.psislw(-ratios, axis=-1)  # it negates its input
    np.testing.assert_allclose(khat, theirs_k, atol=1e-9)
    np.testing.assert_allclose(weights, theirs, atol=1e-9)


def test_draws_without_mass_and_constant_tails() -> None:
    log_p, log_q = gaussian(0.9)
    rare = np.where(np.arange(1000)[:, None] < 50, log_p, -np.inf)  # 50 draws with mass, fewer than the tail
    assert (khat_per_episode(rare, log_q).khat == np.inf).all()
    bounded = np.where(log_q > np.median(log_q), log_q, -np.inf)  # half of the draws, all with the same weight
    found = khat_per_episode(bounded, log_q)
    assert (found.khat == -np.inf).all()
    np.testing.assert_allclose(found.ess, np.isfinite(bounded).sum(0))
    assert np.isfinite(khat_per_episode(np.where(log_q > -3, log_p, -np.inf), log_q).khat).all()


def test_two_thousand_episodes_in_a_second() -> None:
    u = 0.8 * np.random.default_rng(0).standard_normal((1000, 2000))
    log_p, log_q = -0.5 * u**2, -0.5 * (u / 0.8) ** 2
    start = time.perf_counter()
    khat_per_episode(log_p, log_q)
    assert time.perf_counter() - start < 1.0


def test_refused() -> None:
    log_p, log_q = gaussian(0.8, draws=99)
    with pytest.raises(ValueError, match="99 draws"):
        khat_per_episode(log_p, log_q)
    log_p, log_q = gaussian(0.8)
    with pytest.raises(ValueError, match="point posterior"):
        khat_per_episode(log_p, np.full_like(log_q, np.nan))
    with pytest.raises(ValueError, match="expected \\(draws, episodes\\)"):
        khat_per_episode(log_p[:, 0], log_q[:, 0])


def test_catalog_discrepancy_by_hand() -> None:
    p, q = np.array([[0.5, 0.5, 0.0]]), np.array([[0.25, 0.5, 0.25]])
    found = catalog_discrepancy(p, q, reference="support")
    assert found.forward_kl == pytest.approx(0.5 * np.log(2))
    assert found.reverse_kl == np.inf
    assert found.total_variation == pytest.approx(0.25)
    assert found.relative_ess == pytest.approx(1 / (0.25 / 0.25 + 0.25 / 0.5))
    same = catalog_discrepancy(p, p)
    assert (same.forward_kl, same.total_variation, same.relative_ess) == (0, 0, 1)
    with pytest.raises(ValueError, match="rows of guide"):
        catalog_discrepancy(p, q / 2)
