"""Misrouting probability: from an uncertainty score to how often the routing is wrong at such a score.

The monotone curve that fits best (isotonic regression) what happened on validation episodes whose true route is known.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pyro_smat.metrics.arrays import FloatArray, Numbers, float_array, same_length


@dataclass(frozen=True)
class MisroutingProbability:
    """A nondecreasing curve through knots, linear between them and constant outside.

    Attributes:
        scores: ascending.
        probabilities: at these scores, nondecreasing in [0, 1].

    Example:
        >>> curve = MisroutingProbability.fit([0.1, 0.2, 0.8, 0.9], [False, False, True, True])
        >>> curve.probability([0.0, 0.5, 1.0]).round(6).tolist()
        [0.0, 0.5, 1.0]
    """

    scores: tuple[float, ...]
    probabilities: tuple[float, ...]

    @classmethod
    def fit(cls, scores: Numbers, misrouted: Numbers) -> MisroutingProbability:
        """By scikit-learn's IsotonicRegression, of which the knots are kept.

        Args:
            scores: ``(n,)`` finite.
            misrouted: ``(n,)`` bool, or 0 and 1.

        Raises:
            ValueError: for lengths that differ, scores that are not finite, or other labels.
        """
        from sklearn.isotonic import IsotonicRegression  # not to load a fitted one

        u, y = float_array(scores, "scores"), float_array(misrouted, "misrouted")
        same_length(u, y, "scores and misrouted")
        if not np.isin(y, (0.0, 1.0)).all():
            raise ValueError(f"misrouted holds {np.setdiff1d(y, (0.0, 1.0))[0]:g}; expected booleans, or 0 and 1")
        fitted = IsotonicRegression(y_min=0.0, y_max=1.0).fit(u, y)
        return cls(tuple(fitted.X_thresholds_.tolist()), tuple(fitted.y_thresholds_.tolist()))

    def probability(self, scores: Numbers) -> FloatArray:
        """The probability of misrouting ``(n,)`` at scores ``(n,)``; infinite ones take the nearest knot."""
        return np.interp(float_array(scores, "scores", finite=False), self.scores, self.probabilities)
