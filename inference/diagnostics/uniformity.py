r"""PIT values and their uniformity: the core of every calibration check here, on plain arrays.

If the truth c* is a draw of the posterior q, then for any quantity f the value :math:`u = P_q(f(c) < f(c^*)) + U\,
P_q(f(c) = f(c^*))`, U uniform, is uniform on [0, 1], also where f is discrete. For a catalog the probabilities are
exact sums; from K draws with rank r they become (r + U) / (K + 1), ties broken at random.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.stats import norm

from pyro_smat.metrics.arrays import FloatArray

FEWEST = 100  # PIT values below which a test says nothing


def pit_of_catalog(
    values: FloatArray, probabilities: FloatArray, truth: np.ndarray, generator: np.random.Generator
) -> FloatArray:
    """Exact randomised PIT values ``(N,)``.

    Args:
        values: ``(N, J)`` or ``(J,)``, f of every routing; equal values are ties.
        probabilities: ``(N, J)`` q.
        truth: ``(N,)`` true routing in [0, J).
        generator: of the randomisation of ties.
    """
    values = np.broadcast_to(values, probabilities.shape)
    own = np.take_along_axis(values, truth[:, None], axis=1)
    below = np.where(values < own, probabilities, 0.0).sum(1)
    equal = np.where(values == own, probabilities, 0.0).sum(1)
    return np.clip(below + generator.random(len(truth)) * equal, 0.0, 1.0)


def pit_of_draws(draws: FloatArray, truth: FloatArray, generator: np.random.Generator) -> FloatArray:
    """Randomised PIT values ``(N,)`` from draws ``(K, N)`` of a quantity and its true value ``(N,)``.

    (r + U (1 + t)) / (K + 1) with r draws below and t equal to the truth. r / K would be rejected always: it takes the
    values 0 and 1.
    """
    below, equal = (draws < truth).sum(0), (draws == truth).sum(0)
    return (below + generator.random(truth.shape) * (1 + equal)) / (len(draws) + 1)


def uniformity_p_value(pits: FloatArray) -> float:
    """p-value of the pointwise rank test with Cauchy combination, ``prit_c`` (Tesso and Vehtari 2026).

    It keeps its level from a hundred values on; tests on ranks r / K or on strictly ordered discrete ones do not.
    """
    from arviz_stats.base import array_stats

    inside = np.clip(pits, 1e-9, 1 - 1e-9)
    return float(array_stats.uniformity_test(inside, method="prit_c")[0])


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values adjusted for their number (Holm 1979): the smallest times m, the next times m - 1, made monotone."""
    order = sorted(p_values, key=lambda name: p_values[name])
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, name in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def coverage(pits: FloatArray, levels: FloatArray) -> FloatArray:
    """Share of truths inside the central credible interval of every level, ``(n,)``; the level itself if calibrated."""
    return (2 * np.abs(pits[:, None] - 0.5) <= levels).mean(0)


def power_against_narrow_gaussian(
    num_simulations: int, *, ratio: float = 0.8, tests: int = 1, repeats: int = 200, seed: int = 0
) -> float:
    """Chance that N PIT values show a guide with ``ratio`` of the right standard deviation, at level .05 / tests.

    What a continuous quantity can tell at this N; the guide's mean is right.
    """
    generator = np.random.default_rng(seed)
    truth = generator.standard_normal((repeats, num_simulations))
    p = np.array([uniformity_p_value(row) for row in norm.cdf(truth / ratio)])
    return float((p < 0.05 / tests).mean())
