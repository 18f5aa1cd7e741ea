r"""Novelty: is this task unlike those of validation? The distance of its scores from theirs.

.. math:: U = (z - m)^T \Sigma^{-1} (z - m), \qquad \Sigma = (1 - s)\, \hat\Sigma + s\, \mathrm{diag}\, \hat\Sigma

with z the values of several uncertainty scores of a task, m and :math:`\hat\Sigma` their mean and covariance on
validation episodes, s = 0.1 (shrunk as in Ledoit and Wolf 2004). A task may be strange without being hard: the distance
says that the other scores are read where nothing was fitted. ``SupportNovelty`` of the diagnostics is the same distance
of what the encoder says of the support, with a p-value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from pyro_smat.inference.decision.scores.combined import FOLDS, CombinedScore
from pyro_smat.inference.decision.scores.score import FittedScore, UncertaintyScore
from pyro_smat.metrics.arrays import FloatArray, Numbers, float_array, same_length
from pyro_smat.metrics.selective import aurc
from pyro_smat.registry import register

SHRINKAGE = 0.1
SMALLEST = 1e-12


@register("uncertainty_score", "novelty")
@dataclass(frozen=True, kw_only=True)
class Novelty(CombinedScore):
    """Squared Mahalanobis distance of a task's scores from those of validation.

    Attributes:
        scores: that it reads; none: all that do not look at queries.
        centre: mean of every score; empty before it is fitted.
        precision: the inverse of the shrunk covariance, row by row.

    Raises:
        ValueError: for numbers that are not one, and one row, a score.
    """

    scores: tuple[UncertaintyScore, ...] = ()
    centre: tuple[float, ...] = ()
    precision: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.centre)
        if len(self.precision) != count**2 or (count and count != len(self.scores)):
            raise ValueError(
                f"got {len(self.scores)} scores, a centre of {count} and a precision of {len(self.precision)} numbers; "
                "expected n, n and n^2, or none of the last two before it is fitted"
            )

    def of_values(self, scores: Mapping[str, Numbers]) -> FloatArray:
        """U ``(n,)`` from scores, each ``(n,)``; infinite where one of them is.

        Raises:
            ValueError: when a score is missing or NaN, or it has not been fitted.
        """
        rows = self.fitted_columns(scores)
        finite = np.isfinite(rows).all(1)
        found = np.full(len(rows), np.inf)
        found[finite] = distance(rows[finite], np.array(self.centre), np.array(self.precision))
        return found

    def fit(self, scores: Mapping[str, Numbers], losses: Numbers) -> FittedScore:
        """Centre and precision of validation episodes; its values there come from fits without the episode's fold.

        Args:
            scores: name -> ``(n,)``; one that is not finite or does not vary is left out.
            losses: ``(n,)``, only to say how well it orders them.

        Raises:
            ValueError: for no scores that can be read, lengths that differ, or fewer than ten episodes.
        """
        y = float_array(losses, "losses")
        if len(y) < 2 * FOLDS:
            raise ValueError(f"got {len(y)} episodes; expected at least {2 * FOLDS} for a covariance")
        columns = {s: float_array(scores[s.name], f"scores {s.name!r}", finite=False) for s in self.reads
                   if s.name in scores}  # fmt: skip
        read = tuple(s for s, column in columns.items() if np.isfinite(column).all() and np.ptp(column) > 0)
        if not read:
            raise ValueError("no score is finite and varies over the episodes; expected at least one to read")
        rows = np.stack([columns[s] for s in read], axis=1)
        same_length(rows, y, "scores and losses")
        fold = np.arange(len(y)) % FOLDS
        values = np.empty(len(y))
        for k in range(FOLDS):
            values[fold == k] = distance(rows[fold == k], *centre_and_precision(rows[fold != k]))
        centre, precision = centre_and_precision(rows)
        fitted = replace(self, scores=read, centre=tuple(centre.tolist()), precision=tuple(precision.ravel().tolist()))
        return FittedScore(fitted, values, {self.name: aurc(values, y)})


def centre_and_precision(rows: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean ``(D,)`` and inverse of the shrunk covariance ``(D, D)`` of rows ``(n, D)``."""
    covariance = np.atleast_2d(np.cov(rows.T))
    diagonal = np.diag(np.clip(np.diag(covariance), SMALLEST, None))
    return rows.mean(0), np.linalg.inv((1 - SHRINKAGE) * covariance + SHRINKAGE * diagonal)


def distance(rows: FloatArray, centre: FloatArray, precision: FloatArray) -> FloatArray:
    """Squared distance ``(n,)`` of rows ``(n, D)``; precision ``(D, D)`` or its entries row by row."""
    off = rows - centre
    return np.einsum("bd,de,be->b", off, precision.reshape(len(centre), len(centre)), off)
