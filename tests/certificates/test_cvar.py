"""Bounds of a CVaR: exact cases, brute force over the definition, and coverage by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from guarantees.losses import LOSSES
from scipy.stats import beta

from pyro_smat.certificates import CVAR_METHODS, cvar_upper_bound, mean_upper_bound
from pyro_smat.certificates.cvar import running_thresholds
from pyro_smat.certificates.order_statistics import crossing_probability, cvar_of_band, equal_level_band
from pyro_smat.metrics.arrays import FloatArray
from pyro_smat.metrics.risk import cvar

CERTIFIED = [m for m in CVAR_METHODS if m != "brown"]


def test_a_tail_of_everything_is_the_mean() -> None:
    losses = np.random.default_rng(0).beta(2, 8, 200)
    for threshold in (None, 0.3, [0.1, 0.2]):
        assert (
            cvar_upper_bound(losses, 1.0, threshold=threshold, seed=3).bound == mean_upper_bound(losses, seed=3).bound
        )


def test_a_fixed_threshold_is_the_bound_of_the_mean_excess() -> None:
    """CVaR <= t + E(X - t)_+ / rho, and the expectation is a mean of losses in [0, 1 - t]."""
    losses, t, rho = np.random.default_rng(1).beta(2, 8, 500), 0.4, 0.2
    excess = mean_upper_bound(np.maximum(losses - t, 0) / (1 - t), 0.05, seed=2).bound
    bound = cvar_upper_bound(losses, rho, 0.05, threshold=t, seed=2).bound
    assert bound == pytest.approx(t + (1 - t) / rho * excess, abs=1e-6)


def test_running_thresholds_know_only_the_past() -> None:
    generator = np.random.default_rng(0)
    losses, pilot = generator.random(300), generator.random(20)
    thresholds = running_thresholds(losses, 0.1, pilot)
    changed = losses.copy()
    changed[100:] = 1 - changed[100:]
    assert np.array_equal(running_thresholds(changed, 0.1, pilot)[:101], thresholds[:101])
    assert not np.array_equal(running_thresholds(changed, 0.1, pilot)[150:], thresholds[150:])
    for i in (0, 50, 299):  # and lag behind the quantile of all that is known by a tenth at most
        candidates = [
            np.quantile(np.r_[pilot, losses[:j]], 0.9, method="inverted_cdf") for j in range(int(i / 1.2), i + 1)
        ]
        assert thresholds[i] in candidates


def product_written_out(losses: FloatArray, thresholds: FloatArray, rho: float, delta: float, claim: float) -> float:
    """The largest wealth against one claim; no bet where the claim says nothing, at thresholds above it."""
    total = best = 1.0
    mean, squares, variance, seen = 0.5, 0.25, 0.25, 0.0
    for i, (x, t) in enumerate(zip(losses, thresholds, strict=True), start=1):
        z, m = max(x - t, 0.0) / (1 - t), rho * (claim - t) / (1 - t)
        if m > 0:
            total *= 1 - min(1.0, math.sqrt(2 * math.log(1 / delta) / (len(losses) * variance))) * (z - m)
            best = max(best, total)
        seen += z
        mean = (0.5 + seen) / (1 + i)
        squares += (z - mean) ** 2
        variance = squares / (1 + i)
    return best


@pytest.mark.parametrize("pilot", [[0.2] * 5, [0.9, 0.1, 0.2, 0.95], [1.0] * 8])
def test_betting_is_the_largest_claim_that_is_not_rejected(pilot: list[float]) -> None:
    losses, rho, delta = np.random.default_rng(3).beta(1, 6, 300), 0.3, 0.1
    order = losses[np.random.default_rng(7).permutation(300)]
    thresholds = running_thresholds(order, rho, np.array(pilot))
    claims = np.linspace(0.002, 1, 500)
    wealth = np.array([product_written_out(order, thresholds, rho, delta, claim) for claim in claims])
    largest = claims[wealth < 1 / delta].max()
    bound = cvar_upper_bound(losses, rho, delta, threshold=pilot, seed=7).bound
    assert largest <= bound <= largest + 0.0021


def test_a_misleading_pilot_costs_the_losses_that_it_spoils_and_no_more() -> None:
    """Thirty ones: thresholds of 1 until 540 losses are seen. The bound is not stuck at the largest threshold."""
    truth, rho, delta, runs = 0.5, 0.1, 0.1, 60
    draws = LOSSES["bernoulli"].draw(np.random.default_rng(0), (runs, 3000))
    bounds = np.array(
        [cvar_upper_bound(x, rho, delta, threshold=[1.0] * 30, seed=i).bound for i, x in enumerate(draws)]
    )
    assert (bounds < truth).sum() <= beta.ppf(0.999, runs * delta + 1, runs * (1 - delta)) * runs
    assert bounds.mean() < 0.65


@pytest.mark.parametrize("method", CERTIFIED)
def test_one_loss_ties_and_nothing_but_ones(method: str) -> None:
    assert 0 < cvar_upper_bound([0.3], 0.5, 0.05, method).bound <= 1
    assert cvar_upper_bound([1.0] * 20, 0.2, 0.05, method).bound == 1
    bounds = [cvar_upper_bound([0.3] * n, 0.2, 0.05, method).bound for n in (50, 500, 2000)]
    assert bounds[0] >= bounds[1] >= bounds[2] > 0.3
    assert bounds[2] < 0.5


def test_the_band_is_exact_for_one_order_statistic_and_for_two() -> None:
    assert equal_level_band(10, 1, 0.1)[0] == pytest.approx(0.1 ** (1 / 10))  # the largest of ten
    low, high = 0.5, 0.8
    # P(U_(2) >= high, U_(1) >= low) of two: both above low, not both between low and high
    assert crossing_probability(np.array([low, high]), 2) == pytest.approx(1 - (0.5**2 - 0.3**2))


@pytest.mark.parametrize(("count", "tail"), [(50, 10), (200, 41), (40, 40)])
def test_the_band_holds_together_as_often_as_said(count: int, tail: int) -> None:
    levels = equal_level_band(count, tail, 0.1)
    assert (np.diff(levels) > 0).all()
    ranks = np.arange(count - tail + 1, count + 1)
    assert np.ptp(beta.cdf(levels, ranks, count - ranks + 1)) < 1e-9  # equal local levels
    uniforms = np.sort(np.random.default_rng(0).random((20_000, count)), axis=1)[:, -tail:]
    assert (uniforms < levels).any(1).mean() == pytest.approx(0.1, abs=0.009)


def test_the_integral_of_a_band_is_the_worst_distribution_in_it() -> None:
    """The distribution that is as low as the band allows puts the steps of the band on the losses, the rest on 1."""
    losses, levels, rho = np.sort(np.random.default_rng(0).random(8)), np.array([0.55, 0.6, 0.7, 0.75, 0.8]), 0.4
    values = np.r_[losses[3:], 1.0]
    weights = np.r_[levels[0], np.diff(levels), 1 - levels[-1]]
    tail = torch.from_numpy(np.repeat(values, np.rint(weights * 1000).astype(int)))
    assert cvar_of_band(losses, levels, rho) == pytest.approx(cvar(tail, rho).item(), abs=1e-9)


def test_dkw_by_hand() -> None:
    losses = np.sort(np.random.default_rng(0).random(100))
    shift, total = math.sqrt(math.log(20) / 200), 0.0
    for i in range(1, 101):
        following = losses[i] if i < 100 else 1.0
        total += (following - losses[i - 1]) * max(0.0, i / 100 - shift - 0.7)
    assert cvar_upper_bound(losses, 0.3, 0.05, "dkw").bound == pytest.approx(1 - total / 0.3)


@pytest.mark.parametrize("rho", [0.05, 0.2])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("method", CERTIFIED)
def test_fails_at_most_as_often_as_said(name: str, method: str, rho: float) -> None:
    """80 samples of N = 300: a rate of more than delta would have to be bad luck of 1 in 1000."""
    loss, delta, runs = LOSSES[name], 0.1, 80
    truth = loss.cvar(rho)
    draws = loss.draw(np.random.default_rng(1), (runs, 300))
    failures = sum(cvar_upper_bound(x, rho, delta, method, seed=i).bound < truth for i, x in enumerate(draws))
    assert failures <= beta.ppf(0.999, runs * delta + 1, runs * (1 - delta)) * runs


def test_tight_where_brown_says_nothing() -> None:
    loss = LOSSES["accuracy"]
    draws, truth = loss.draw(np.random.default_rng(0), (40, 1000)), loss.cvar(0.1)
    pilot = loss.draw(np.random.default_rng(1), (200,))
    gaps = {m: np.mean([cvar_upper_bound(x, 0.1, method=m).bound for x in draws]) - truth for m in CVAR_METHODS}
    with_pilot = np.mean([cvar_upper_bound(x, 0.1, threshold=pilot).bound for x in draws]) - truth
    assert with_pilot < gaps["betting"] < 0.03 < gaps["order-statistics"] < 0.06 < gaps["dkw"] < gaps["brown"]
    assert gaps["brown"] > 0.4


def test_exact_values_of_the_simulated_losses() -> None:
    for loss in LOSSES.values():
        draws = loss.draw(np.random.default_rng(0), (300_000,))
        assert draws.mean() == pytest.approx(loss.mean, abs=2e-3)
        for rho in (0.05, 0.2):
            assert cvar(torch.from_numpy(draws), rho).item() == pytest.approx(loss.cvar(rho), abs=8e-3)


def test_what_cannot_be_certified_is_refused() -> None:
    with pytest.raises(ValueError, match="rho is 0"):
        cvar_upper_bound([0.2], 0.0)
    with pytest.raises(ValueError, match=r"expected \[0, 1\]"):
        cvar_upper_bound([-0.2], 0.1)
    with pytest.raises(ValueError, match="threshold is 1"):
        cvar_upper_bound([0.2], 0.1, threshold=1.0)
    with pytest.raises(ValueError, match="'dkw' uses no threshold"):
        cvar_upper_bound([0.2], 0.1, 0.05, "dkw", threshold=0.5)
    with pytest.raises(ValueError, match="method is 'wsr'"):
        cvar_upper_bound([0.2], 0.1, 0.05, "wsr")
    with pytest.raises(ValueError, match="the tail holds 3001 of 30000 losses"):
        cvar_upper_bound(np.full(30_000, 0.1), 0.1, 0.05, "order-statistics")
