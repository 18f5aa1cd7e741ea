r"""RiskPredictor: the loss that a task will have, predicted from all its uncertainty scores at once.

Ridge regression of the episode loss on standardised scores z, in closed form on validation episodes,

.. math:: \hat L(z) = b + \sum_k s_k z_k, \qquad
          s = (Z_c^T Z_c + \lambda I)^{-1} Z_c^T (L - \bar L),

with :math:`Z_c` the centred scores. It is a score like any other: what it predicts is U. To compare it with scores that
were not fitted, take its values on episodes that it has not seen (:func:`cross_fitted_risk`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pyro_smat.metrics.arrays import FloatArray, Numbers, float_array, same_length

PENALTY = 10.0  # lambda: as strong as ten episodes
FOLDS = 5
FURTHEST = 4.0  # standard deviations: no prediction from further out, and none that is infinite


@dataclass(frozen=True)
class RiskPredictor:
    """A linear predictor of the episode loss.

    Attributes:
        names: the scores it reads.
        centre, scale: of every score, mean and standard deviation over the episodes of the fit.
        slopes: of every standardised score, in units of the loss.
        intercept: in units of the loss.
    """

    names: tuple[str, ...]
    centre: tuple[float, ...]
    scale: tuple[float, ...]
    slopes: tuple[float, ...]
    intercept: float

    @classmethod
    def fit(cls, scores: Mapping[str, Numbers], losses: Numbers, penalty: float = PENALTY) -> RiskPredictor:
        """The predictor of the module's first lines.

        Args:
            scores: name -> ``(n,)``; a score that does not vary gets slope 0.
            losses: ``(n,)``, of validation episodes.
            penalty: lambda > 0.

        Raises:
            ValueError: for no scores, values that are not finite, lengths that differ, or a penalty that is not > 0.
        """
        if not penalty > 0:
            raise ValueError(f"penalty is {penalty!r}; expected a number > 0")
        y, raw = float_array(losses, "losses"), _columns(scores, tuple(scores), finite=True)
        same_length(raw, y, "scores and losses")
        centre, scale = raw.mean(0), raw.std(0)
        scale = np.where(scale > 1e-12 * np.maximum(1.0, np.abs(centre)), scale, np.inf)
        z = np.clip((raw - centre) / scale, -FURTHEST, FURTHEST)
        centred = z - z.mean(0)
        slopes = np.linalg.solve(centred.T @ centred + penalty * np.eye(z.shape[1]), centred.T @ (y - y.mean()))
        scale = np.where(np.isinf(scale), 1.0, scale)
        intercept = float(y.mean() - z.mean(0) @ slopes)
        return cls(tuple(scores), _plain(centre), _plain(scale), _plain(slopes), intercept)

    def predict(self, scores: Mapping[str, Numbers]) -> FloatArray:
        """Predicted losses ``(n,)`` from scores, each ``(n,)``; infinite ones count as four deviations.

        Raises:
            ValueError: when a score is missing or NaN.
        """
        missing = [name for name in self.names if name not in scores]
        if missing:
            raise ValueError(f"scores hold {sorted(scores)}; this predictor also reads {missing}")
        raw = _columns(scores, self.names, finite=False)
        z = np.clip((raw - np.array(self.centre)) / np.array(self.scale), -FURTHEST, FURTHEST)
        return z @ np.array(self.slopes) + self.intercept

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RiskPredictor:
        """What :meth:`to_dict` wrote."""
        names, centre, scale, slopes = (tuple(data[k]) for k in ("names", "centre", "scale", "slopes"))
        return cls(names, centre, scale, slopes, data["intercept"])


def cross_fitted_risk(scores: Mapping[str, Numbers], losses: Numbers, folds: int = FOLDS) -> FloatArray:
    """For every episode ``(n,)`` the loss that a predictor fitted without its fold predicts.

    Args:
        scores, losses: as in :meth:`RiskPredictor.fit`; at least two episodes, in random order.
        folds: episode i is in fold i modulo ``folds``.

    Raises:
        ValueError: as in :meth:`RiskPredictor.fit`, and for fewer than two episodes.
    """
    y = float_array(losses, "losses")
    if len(y) < 2:
        raise ValueError(f"got {len(y)} episode; expected at least two to fit on one and predict another")
    columns = {name: float_array(values, name) for name, values in scores.items()}
    fold = np.arange(len(y)) % min(folds, len(y))
    predicted = np.empty(len(y))
    for k in range(fold.max() + 1):
        inside = fold == k
        fitted = RiskPredictor.fit({name: values[~inside] for name, values in columns.items()}, y[~inside])
        predicted[inside] = fitted.predict({name: values[inside] for name, values in columns.items()})
    return predicted


def _columns(scores: Mapping[str, Numbers], names: tuple[str, ...], *, finite: bool) -> FloatArray:
    if not names:
        raise ValueError("got no scores; expected at least one to predict from")
    columns = [float_array(scores[name], f"scores {name!r}", finite=finite) for name in names]
    for name, column in zip(names, columns, strict=True):
        same_length(columns[0], column, f"scores {names[0]!r} and {name!r}")
    return np.stack(columns, axis=1)


def _plain(values: FloatArray) -> tuple[float, ...]:
    return tuple(float(v) for v in values)
