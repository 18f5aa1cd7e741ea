"""Noise of the Gaussian mechanism: against the condition of Balle and Wang, solved here."""

from __future__ import annotations

import math

import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from pyro_smat.encoders.gaussian_mechanism import noise_multiplier, spent_epsilon

pytest.importorskip("dp_accounting", reason="optional dependency: pip install 'pyro-smat[privacy]'")


def delta_of(epsilon: float, z: float) -> float:
    """The smallest delta of noise multiplier z at epsilon."""
    return norm.cdf(0.5 / z - epsilon * z) - math.exp(epsilon) * norm.cdf(-0.5 / z - epsilon * z)


@pytest.mark.parametrize("epsilon", [0.1, 0.5, 1.0, 4.0, 8.0])
@pytest.mark.parametrize("delta", [1e-2, 1e-5])
def test_it_is_the_exact_multiplier(epsilon: float, delta: float) -> None:
    z = noise_multiplier(epsilon, delta)
    assert delta_of(epsilon, z) == pytest.approx(delta, rel=1e-6)
    assert delta_of(epsilon, 0.99 * z) > delta
    if epsilon <= 1:
        assert z < math.sqrt(2 * math.log(1.25 / delta)) / epsilon  # the textbook's, which is only sufficient


@pytest.mark.parametrize("releases", [1, 2, 10])
def test_releases_add_up(releases: int) -> None:
    # k Gaussian releases are one of the vector of all: its sensitivity is sqrt(k) times as large.
    z, delta = 4.0, 1e-5
    expected = brentq(lambda e: delta_of(e, z / math.sqrt(releases)) - delta, 1e-6, 50)
    assert spent_epsilon(z, delta, releases) == pytest.approx(expected, rel=1e-6)
    assert spent_epsilon(noise_multiplier(2.0, delta), delta) == pytest.approx(2.0, rel=1e-6)
