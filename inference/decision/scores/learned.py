r"""Learned risk: the loss that a task will have, predicted from several uncertainty scores at once.

Ridge regression of the episode loss on standardised scores z, clipped at four standard deviations, on validation
episodes,

.. math:: \hat L(z) = b + \sum_k s_k z_k, \qquad
          s = (Z_c^T Z_c + \lambda I)^{-1} Z_c^T (L - \bar L),

with :math:`Z_c` the centred scores: scikit-learn's StandardScaler and Ridge, of which only the numbers are kept. It is
a score like any other: what it predicts is U.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from pyro_smat.inference.decision.scores.combined import FOLDS, CombinedScore, columns
from pyro_smat.inference.decision.scores.score import FittedScore, UncertaintyScore
from pyro_smat.inference.decision.scores.standard import candidates
from pyro_smat.metrics.arrays import FloatArray, Numbers, float_array, same_length
from pyro_smat.metrics.selective import aurc
from pyro_smat.registry import register

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
        with np.errstate(over="ignore"):  # what overflows is cut off like all that is far away
            z = np.clip((raw - np.array(self.centre)) / np.array(self.scale), -FURTHEST, FURTHEST)
        return z @ np.array(self.slopes) + self.intercept

    def fit(self, scores: Mapping[str, Numbers], losses: Numbers) -> FittedScore:
        """The predictor of the module's first lines; its values come from fits without the episode's fold.

        Args:
            scores: name -> ``(n,)``; one that is not finite is left out, one that does not vary gets slope 0.
            losses: ``(n,)``, at least two, in random order: episode i is in fold i modulo 5.

        Raises:
            ValueError: for no scores that can be read, lengths that differ, or fewer than two episodes.
        """
        from sklearn.model_selection import PredefinedSplit, cross_val_predict  # not to load a fitted one

        y = float_array(losses, "losses")
        if len(y) < 2:
            raise ValueError(f"got {len(y)} episode; expected at least two to fit on one and predict another")
        read = tuple(s for s in self.reads if s.name in scores and np.isfinite(np.asarray(scores[s.name])).all())
        raw = columns(scores, read, finite=True)
        same_length(raw, y, "scores and losses")
        folds = PredefinedSplit(np.arange(len(y)) % min(FOLDS, len(y)))
        values = cross_val_predict(_pipeline(self.penalty), raw, y, cv=folds)
        scaler, _, ridge = (step for _, step in _pipeline(self.penalty).fit(raw, y).steps)
        fitted = replace(
            self,
            scores=read,
            centre=tuple(scaler.mean_.tolist()),
            scale=tuple(scaler.scale_.tolist()),
            slopes=tuple(ridge.coef_.tolist()),
            intercept=float(ridge.intercept_),
        )
        return FittedScore(fitted, values, {self.name: aurc(values, y)})


def _pipeline(penalty: float) -> Any:
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    clip = FunctionTransformer(np.clip, kw_args={"a_min": -FURTHEST, "a_max": FURTHEST})
    return make_pipeline(StandardScaler(), clip, Ridge(alpha=penalty))
