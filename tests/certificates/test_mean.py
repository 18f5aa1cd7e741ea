"""Bounds of a mean: exact cases, other libraries' formulas written out, and coverage by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from guarantees.losses import LOSSES
from scipy.stats import beta, binom, binomtest

from pyro_smat.certificates import MEAN_METHODS, Certificate, mean_p_value, mean_upper_bound

REAL = [m for m in MEAN_METHODS if m != "clopper-pearson"]


@pytest.mark.parametrize("errors", [0, 1, 7, 49, 50])
def test_clopper_pearson_is_scipys(errors: int) -> None:
    losses = np.repeat([0.0, 1.0], [50 - errors, errors])
    expected = binomtest(errors, 50, alternative="less").proportion_ci(0.95, "exact").high
    assert mean_upper_bound(losses, 0.05, "clopper-pearson").bound == pytest.approx(expected)
    if errors < 50:  # the bound is where the binomial tail is delta
        assert mean_p_value(losses, expected, "clopper-pearson") == pytest.approx(0.05)


def test_hoeffding_and_bernstein_by_hand() -> None:
    losses = [0.0, 0.5, 0.25, 0.25, 0.0, 1.0]
    mean, variance = 2 / 6, np.var(losses, ddof=1)
    assert mean_upper_bound(losses, 0.5, "hoeffding").bound == pytest.approx(mean + math.sqrt(math.log(2) / 12))
    expected = mean + math.sqrt(2 * variance * math.log(4) / 6) + 7 * math.log(4) / 15
    assert mean_upper_bound(losses, 0.5, "empirical-bernstein").bound == pytest.approx(min(1.0, expected))


def test_hoeffding_bentkus_is_the_inverse_of_its_p_value() -> None:
    losses = np.random.default_rng(0).beta(2, 8, 100)
    bound, mean = mean_upper_bound(losses, 0.05, "hoeffding-bentkus").bound, losses.mean()
    kl = mean * math.log(mean / bound) + (1 - mean) * math.log((1 - mean) / (1 - bound))
    p = min(math.exp(-100 * kl), math.e * binom.cdf(math.ceil(100 * mean), 100, bound))
    assert p == pytest.approx(0.05, rel=1e-4)
    assert mean_p_value(losses, bound, "hoeffding-bentkus") == pytest.approx(p)


@pytest.mark.parametrize("count", [30, 200])
def test_hoeffding_bentkus_p_values_are_mapies(count: int) -> None:
    from mapie.risk_control.methods import compute_hoeffding_bentkus_p_value  # seconds to import

    generator = np.random.default_rng(count)
    for losses in (generator.beta(2, 8, count), (generator.random(count) < 0.1).astype(float), np.zeros(count)):
        risks = np.array([0.05, 0.15, 0.2, 0.3, 0.9])
        expected = compute_hoeffding_bentkus_p_value(losses.mean(keepdims=True), count, risks)[0]
        ours = [mean_p_value(losses, risk, "hoeffding-bentkus") for risk in risks]
        np.testing.assert_allclose(ours, expected, rtol=1e-9)


def test_betting_is_the_product_written_out() -> None:
    losses, delta = np.random.default_rng(1).beta(2, 8, 40), 0.1
    order = losses[np.random.default_rng(5).permutation(40)]

    def wealth(risk: float) -> float:
        total, best, squares, mean, seen = 1.0, 1.0, 0.25, 0.5, 0.0
        variance = 0.25
        for i, x in enumerate(order, start=1):
            total *= 1 - min(1.0, math.sqrt(2 * math.log(1 / delta) / (40 * variance))) * (x - risk)
            best, seen = max(best, total), seen + x
            mean = (0.5 + seen) / (1 + i)
            squares += (x - mean) ** 2
            variance = squares / (1 + i)
        return best

    bound = mean_upper_bound(losses, delta, seed=5).bound
    assert wealth(bound + 1e-6) >= 1 / delta > wealth(bound - 1e-6)
    assert mean_p_value(losses, 0.3, delta=delta, seed=5) == pytest.approx(1 / wealth(0.3))


@pytest.mark.parametrize("method", REAL)
def test_one_loss_and_all_ties(method: str) -> None:
    assert 0 < mean_upper_bound([0.3], 0.05, method).bound <= 1
    assert mean_upper_bound([1.0], 0.05, method).bound == 1
    bounds = [mean_upper_bound([0.3] * n, 0.05, method).bound for n in (10, 100, 1000)]
    assert bounds[0] > bounds[1] > bounds[2] > 0.3
    assert bounds[2] < 0.36
    zero = mean_upper_bound([0.0] * 1000, 0.05, method)
    assert 0 < zero.bound < 0.05
    assert zero.informative


CASES = [(name, method) for name in LOSSES for method in REAL] + [("bernoulli", "clopper-pearson")]


@pytest.mark.parametrize(("name", "method"), CASES)
def test_fails_at_most_as_often_as_said(name: str, method: str) -> None:
    """120 samples of N = 200: a rate of more than delta would have to be bad luck of 1 in 1000."""
    loss, delta, runs = LOSSES[name], 0.1, 120
    draws = loss.draw(np.random.default_rng(0), (runs, 200))
    bounds = np.array([mean_upper_bound(x, delta, method, seed=i).bound for i, x in enumerate(draws)])
    assert (bounds < loss.mean).sum() <= beta.ppf(0.999, runs * delta + 1, runs * (1 - delta)) * runs
    assert bounds.mean() - loss.mean < {"hoeffding": 0.09, "empirical-bernstein": 0.1}.get(method, 0.08)


def test_betting_is_much_tighter_than_hoeffding() -> None:
    draws = LOSSES["beta"].draw(np.random.default_rng(0), (50, 1000))
    gap = {m: np.mean([mean_upper_bound(x, method=m).bound for x in draws]) - 0.2 for m in REAL}
    assert gap["betting"] < 0.011 < 0.018 < gap["empirical-bernstein"] < gap["hoeffding-bentkus"] < gap["hoeffding"]


def test_what_a_certificate_says() -> None:
    made = mean_upper_bound(torch.rand(500, generator=torch.Generator().manual_seed(0)), 0.05)
    named = made.about("error", "new episodes from the pool 'ood'")
    assert "mean of error <= 0." in str(named)
    assert "95%" in str(named)
    assert "new episodes from the pool 'ood'" in str(named)
    assert Certificate.from_dict(named.to_dict()) == named
    assert "uninformative" in str(mean_upper_bound([1.0] * 50))


def test_what_cannot_be_certified_is_refused() -> None:
    with pytest.raises(ValueError, match=r"range from 0.2 to 3; expected \[0, 1\]"):
        mean_upper_bound([0.2, 3.0])
    with pytest.raises(ValueError, match="NaN"):
        mean_upper_bound([0.2, float("nan")])
    with pytest.raises(ValueError, match="at least one"):
        mean_upper_bound([])
    with pytest.raises(ValueError, match="delta is 0"):
        mean_upper_bound([0.2], 0)
    with pytest.raises(ValueError, match="method is 'normal'"):
        mean_upper_bound([0.2], 0.1, "normal")
    with pytest.raises(ValueError, match=r"0\.2; 'clopper-pearson' expects 0 and 1"):
        mean_upper_bound([0.2, 1.0], 0.1, "clopper-pearson")
    with pytest.raises(ValueError, match="risk is 1"):
        mean_p_value([0.2], 1.0)
