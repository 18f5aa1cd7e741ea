r"""The Gaussian mechanism: how much noise (epsilon, delta)-differential privacy takes, and what several releases cost.

.. math::
    \Phi\!\left(\tfrac{1}{2z} - \epsilon z\right)
    - e^\epsilon \, \Phi\!\left(-\tfrac{1}{2z} - \epsilon z\right) = \delta

is solved for the noise multiplier z (standard deviation over sensitivity), which is exact: less noise is not private
enough (Balle and Wang 2018, theorem 8). Solved by dp-accounting of Google, an optional dependency.
"""

from __future__ import annotations

import math
from typing import Any


def noise_multiplier(epsilon: float, delta: float) -> float:
    """Standard deviation of the noise over the L2 sensitivity, for one release; 0 for an infinite epsilon.

    Raises:
        ValueError: for a delta outside (0, 1) or an epsilon that is not > 0.
        ImportError: without dp-accounting.
    """
    _check(epsilon, delta)
    if math.isinf(epsilon):
        return 0.0
    return float(_library().get_sigma_gaussian(epsilon, delta))


def spent_epsilon(multiplier: float, delta: float, releases: int = 1) -> float:
    """Epsilon of several releases of one support together, at this delta: Gaussian noise composes exactly.

    Args:
        multiplier: z of each of them.
        delta: of all of them.
        releases: how many.

    Raises:
        ValueError: for numbers out of their ranges.
        ImportError: without dp-accounting.
    """
    _check(1.0, delta)
    if not multiplier > 0 or releases < 1:
        raise ValueError(f"multiplier is {multiplier} and releases {releases}; expected > 0 and at least 1")
    return float(_library().get_epsilon_gaussian(multiplier / math.sqrt(releases), delta))


def _check(epsilon: float, delta: float) -> None:
    if not (epsilon > 0 and 0 < delta < 1):
        raise ValueError(f"epsilon is {epsilon} and delta {delta}; expected > 0 and in (0, 1)")


def _library() -> Any:
    try:
        import dp_accounting
    except ImportError as error:
        raise ImportError(
            "noise for differential privacy is computed by dp-accounting, which is not installed: "
            "pip install 'pyro-smat[privacy]'"
        ) from error
    return dp_accounting
