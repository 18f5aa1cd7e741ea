r"""Misrouting probability: the posterior's own doubt about its top route, calibrated on episodes with known routes.

The posterior says that its top source is not the right one with probability :math:`d = 1 - \max_r w_r`. Two numbers
bend that, fitted to validation episodes of all conditions together (Platt's logistic calibration of log odds):

.. math:: p = \sigma(a \operatorname{logit} d + b), \qquad a > 0
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from pyro_smat.float64 import in_float64
from pyro_smat.guides.posterior import RoutingPosterior
from pyro_smat.metrics.arrays import FloatArray, Numbers, float_array, same_length

SMALLEST = 1e-6  # doubts are clipped to [SMALLEST, 1 - SMALLEST]
PRIOR_SCALE = 1.0  # standard deviation of log a and of b around 0, the posterior as it is


def top_route_doubt(posterior: RoutingPosterior) -> Tensor:
    """1 - the largest posterior weight of a source, ``(B,)``: the posterior's own probability of misrouting."""
    return 1.0 - in_float64(posterior.source_weights).amax(-1)


@dataclass(frozen=True)
class MisroutingProbability:
    """A calibration of :func:`top_route_doubt`, and of nothing else.

    Attributes:
        slope: a > 0.
        offset: b.
        episodes: that it was fitted to; 0 is the posterior as it is.

    Raises:
        ValueError: for a slope that is not > 0, or numbers that are not finite.

    Example:
        >>> MisroutingProbability().probability([0.0, 0.25, 0.5]).round(3).tolist()
        [0.0, 0.25, 0.5]
        >>> MisroutingProbability(slope=2.0).probability([0.25]).round(3).tolist()
        [0.1]
    """

    slope: float = 1.0
    offset: float = 0.0
    episodes: int = 0

    def __post_init__(self) -> None:
        if not (0 < self.slope < math.inf and math.isfinite(self.offset)):
            raise ValueError(f"slope is {self.slope!r} and offset {self.offset!r}; expected finite numbers, slope > 0")

    @classmethod
    def fit(cls, doubts: Numbers, misrouted: Numbers) -> MisroutingProbability:
        """By maximum likelihood, with normal priors of scale 1 on log a and b.

        Without a single misrouted episode, or with few, it stays near the posterior's own probability.

        Args:
            doubts: ``(n,)`` in [0, 1].
            misrouted: ``(n,)`` bool, or 0 and 1.

        Raises:
            ValueError: for lengths that differ, doubts outside [0, 1], or other labels.
        """
        from scipy.optimize import minimize  # not to load a fitted one

        x, y = _log_odds(doubts), float_array(misrouted, "misrouted")
        same_length(x, y, "doubts and misrouted")
        if not np.isin(y, (0.0, 1.0)).all():
            raise ValueError(f"misrouted holds {np.setdiff1d(y, (0.0, 1.0))[0]:g}; expected booleans, or 0 and 1")

        def loss(numbers: FloatArray) -> float:
            z = np.exp(numbers[0]) * x + numbers[1]
            return float((np.logaddexp(0, z) - y * z).sum() + 0.5 * np.square(numbers / PRIOR_SCALE).sum())

        log_slope, offset = minimize(loss, np.zeros(2), method="BFGS").x
        return cls(float(np.exp(log_slope)), float(offset), len(y))

    def probability(self, doubts: Numbers) -> FloatArray:
        """The probability of misrouting ``(n,)`` at doubts ``(n,)``; 0 stays 0.

        Raises:
            ValueError: for doubts outside [0, 1].
        """
        z = self.slope * _log_odds(doubts) + self.offset
        stated = 1 / (1 + np.exp(-z))
        return np.where(float_array(doubts, "doubts") <= SMALLEST, 0.0, stated)


def _log_odds(doubts: Numbers) -> FloatArray:
    d = float_array(doubts, "doubts")
    if len(d) and not (d.min() >= -SMALLEST and d.max() <= 1 + SMALLEST):
        raise ValueError(f"doubts are in [{d.min():g}, {d.max():g}]; expected probabilities")
    d = np.clip(d, SMALLEST, 1 - SMALLEST)
    return np.log(d) - np.log1p(-d)
