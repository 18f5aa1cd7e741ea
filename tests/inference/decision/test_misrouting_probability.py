"""The probability of misrouting against scikit-learn's isotonic regression."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression

from pyro_smat.inference.decision.misrouting import MisroutingProbability


@pytest.mark.parametrize("seed", range(4))
def test_knots_are_scikit_learns(seed: int) -> None:
    generator = np.random.default_rng(seed)
    u = np.round(generator.random(60), 1 + seed % 2)  # with ties
    y = generator.random(60) < u**2
    found = MisroutingProbability.fit(u, y)
    reference = IsotonicRegression(out_of_bounds="clip").fit(u, y.astype(float))
    grid = np.linspace(-0.5, 1.5, 101)
    np.testing.assert_allclose(found.probability(grid), reference.predict(grid), atol=1e-12)
    assert found.probability([-math.inf, math.inf]).tolist() == [found.probabilities[0], found.probabilities[-1]]


def test_other_labels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"misrouted holds 0\.5"):
        MisroutingProbability.fit([1.0, 2.0], [0, 0.5])
