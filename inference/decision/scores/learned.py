r"""Learned risk: the loss that a task will have, predicted from several uncertainty scores at once.

Ridge regression of the episode loss on standardised scores z, clipped at four standard deviations, on validation
episodes,

.. math:: \hat L(z) = b + \sum_k s_k z_k, \qquad
          s = (Z_c^T Z_c + \lambda I)^{-1} Z_c^T (L - \bar L),

with :math:`Z_c` the centred scores; lambda counts like so many episodes. It is a score like any other: what it
predicts is U.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from pyro_smat.inference.decision.scores.combined import FOLDS, CombinedScore, columns
from pyro_smat.inference.decision.scores.score import FittedScore, UncertaintyScore
from pyro_smat.inference.decision.scores.standard import candidates
from pyro_smat.metrics.arrays import FloatArray, Numbers, float_array, same_length
from pyro_smat.metrics.selective import aurc
from pyro_smat.registry import register

ROUNDING = float(np.finfo(np.float64).eps)  # a score that varies by no more does not vary
FURTHEST = 4.0  # standard deviations: no prediction from further out, and none that is infinite


@register("uncertainty_score", "learned")
@dataclass(frozen=True, kw_only=True)
class LearnedRisk(CombinedScore):
    """A linear predictor of the episode loss.

    Attributes:
        scores: that it reads; none: all that do not look at queries.
        queries: whether "all" holds those that do, too.
        penalty: lambda > 0, as strong as so many episodes.
        centre, scale: of every score, mean and standard deviation over the episodes of the fit; empty before it.
        slopes: of every standardised score, in units of the loss.
        intercept: in units of the loss.

    Raises:
        ValueError: for a penalty that is not > 0, or numbers that are not one a score.
    """

    predicts_error: ClassVar[bool] = True

    scores: tuple[UncertaintyScore, ...] = ()
    queries: bool = False
    penalty: float = 10.0
    centre: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    slopes: tuple[float, ...] = ()
    intercept: float = 0.0

    def __post_init__(self) -> None:
        if not self.penalty > 0:
            raise ValueError(f"penalty is {self.penalty!r}; expected a number > 0")
        sizes = {len(part) for part in (self.centre, self.scale, self.slopes)}
        if sizes not in ({0}, {len(self.scores)}):
            raise ValueError(
                f"got {len(self.scores)} scores and {sorted(sizes)} numbers for them; expected one centre, scale and "
                "slope a score, or none before it is fitted"
            )

    @property
    def reads(self) -> tuple[UncertaintyScore, ...]:
        return self.scores or candidates(queries=self.queries)

    def of_values(self, scores: Mapping[str, Numbers]) -> FloatArray:
        """Predicted losses ``(n,)`` from scores, each ``(n,)``; infinite ones count as four standard deviations.

        Raises:
            ValueError: when a score is missing or NaN, or it has not been fitted.
        """
        raw = self.fitted_columns(scores)
        line = _Line(np.array(self.centre), np.array(self.scale), np.array(self.slopes), self.intercept)
        return line(raw)

    def fit(self, scores: Mapping[str, Numbers], losses: Numbers) -> FittedScore:
        """The predictor of the module's first lines; its values come from fits without the episode's fold.

        Args:
            scores: name -> ``(n,)``; one that is not finite is left out, one that does not vary gets slope 0.
            losses: ``(n,)``, at least two, in random order: episode i is in fold i modulo 5.

        Raises:
            ValueError: for no scores that can be read, lengths that differ, or fewer than two episodes.
        """
        y = float_array(losses, "losses")
        if len(y) < 2:
            raise ValueError(f"got {len(y)} episode; expected at least two to fit on one and predict another")
        read = tuple(s for s in self.reads if s.name in scores and np.isfinite(np.asarray(scores[s.name])).all())
        raw = columns(scores, read, finite=True)
        same_length(raw, y, "scores and losses")
        folds = np.arange(len(y)) % min(FOLDS, len(y))
        values = np.empty_like(y)
        for fold in range(folds.max() + 1):
            own = folds == fold
            values[own] = _fitted(raw[~own], y[~own], self.penalty)(raw[own])
        line = _fitted(raw, y, self.penalty)
        fitted = replace(
            self,
            scores=read,
            centre=tuple(line.centre.tolist()),
            scale=tuple(line.scale.tolist()),
            slopes=tuple(line.slopes.tolist()),
            intercept=line.intercept,
        )
        return FittedScore(fitted, values, {self.name: aurc(values, y)})


@dataclass(frozen=True)
class _Line:
    """Of K standardised scores; see :class:`LearnedRisk`."""

    centre: FloatArray  # (K,), as the next two
    scale: FloatArray
    slopes: FloatArray
    intercept: float

    def __call__(self, raw: FloatArray) -> FloatArray:
        """Predicted losses ``(n,)`` of scores ``(n, K)``."""
        return _standardised(raw, self.centre, self.scale) @ self.slopes + self.intercept


def _fitted(raw: FloatArray, losses: FloatArray, penalty: float) -> _Line:
    """The ridge regression of losses ``(n,)`` on scores ``(n, K)``."""
    centre, scale = raw.mean(0), raw.std(0)
    scale = np.where(scale <= ROUNDING * np.abs(centre) * len(raw), 1.0, scale)
    z = _standardised(raw, centre, scale)
    mean = z.mean(0)
    centred = z - mean
    gram = centred.T @ centred + penalty * np.eye(len(mean))
    slopes = np.linalg.solve(gram, centred.T @ (losses - losses.mean()))
    return _Line(centre, scale, slopes, float(losses.mean() - mean @ slopes))


def _standardised(raw: FloatArray, centre: FloatArray, scale: FloatArray) -> FloatArray:
    with np.errstate(over="ignore"):  # what overflows is cut off like all that is far away
        return np.clip((raw - centre) / scale, -FURTHEST, FURTHEST)
