"""Isotonic calibration: from an uncertainty score to the probability that the routing is wrong.

The monotone curve that fits best (least squares) what happened on validation episodes whose true route is known;
temperature scaling (``temperature_scaling.py``) calibrates the posterior itself, this any score of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import isotonic_regression

from pyro_smat.metrics.arrays import FloatArray, Numbers, float_array, same_length


@dataclass(frozen=True)
class IsotonicCalibration:
    """A nondecreasing curve through knots, linear between them and constant outside.

    Attributes:
        scores: ascending; probabilities: at these scores, nondecreasing in [0, 1].
    """

    scores: tuple[float, ...]
    probabilities: tuple[float, ...]

    @classmethod
    def fit(cls, scores: Numbers, misrouted: Numbers) -> IsotonicCalibration:
        """Pool adjacent violators (Ayer et al. 1955); equal scores are one point, by their mean.

        Args:
            scores: ``(n,)`` finite.
            misrouted: ``(n,)`` bool, or 0 and 1.

        Raises:
            ValueError: for lengths that differ, scores that are not finite, or other labels.
        """
        u, y = float_array(scores, "scores"), float_array(misrouted, "misrouted")
        same_length(u, y, "scores and misrouted")
        if not np.isin(y, (0.0, 1.0)).all():
            raise ValueError(f"misrouted holds {np.setdiff1d(y, (0.0, 1.0))[0]:g}; expected booleans, or 0 and 1")
        knots, group, size = np.unique(u, return_inverse=True, return_counts=True)
        fitted = isotonic_regression(np.bincount(group, y) / size, weights=size.astype(np.float64)).x
        flat = (np.diff(fitted, prepend=-1.0) == 0) & (np.diff(fitted, append=2.0) == 0)  # inside a constant stretch
        return cls(tuple(knots[~flat].tolist()), tuple(np.clip(fitted[~flat], 0.0, 1.0).tolist()))

    def probability(self, scores: Numbers) -> FloatArray:
        """The calibrated probability of misrouting ``(n,)`` at scores ``(n,)``; infinite ones take the nearest knot."""
        return np.interp(float_array(scores, "scores", finite=False), self.scores, self.probabilities)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return {"scores": list(self.scores), "probabilities": list(self.probabilities)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> IsotonicCalibration:
        """What :meth:`to_dict` wrote."""
        return cls(tuple(data["scores"]), tuple(data["probabilities"]))
