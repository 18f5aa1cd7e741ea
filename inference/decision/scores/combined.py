"""What scores have in common that are made of several others, with numbers fitted to validation episodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pyro_smat.float64 import in_float64
from pyro_smat.inference.decision.scores.score import UncertaintyScore
from pyro_smat.inference.decision.scores.standard import candidates
from pyro_smat.metrics.arrays import FloatArray, Numbers, float_array, same_length

if TYPE_CHECKING:
    from pyro_smat.inference.decision.routed_batch import RoutedBatch

FOLDS = 5  # the fit's own episodes are scored by fits without their fold: episode i is in fold i modulo 5


class CombinedScore(UncertaintyScore):
    """A score of the values of others; its fields say of which, and are empty before :meth:`fit`.

    Attributes:
        scores: that it reads; none: all that do not look at queries.
        centre: mean of every score over the episodes of the fit.
    """

    scores: tuple[UncertaintyScore, ...]
    centre: tuple[float, ...]

    # Properties, where other scores have constants of their class: here they follow from the fields.
    @property
    def deployable(self) -> bool:  # type: ignore[override]
        """Whether it has been fitted."""
        return bool(self.centre)

    @property
    def looks_at_queries(self) -> bool:  # type: ignore[override]
        """Whether one of its scores does."""
        return any(score.looks_at_queries for score in self.reads)

    @property
    def reads(self) -> tuple[UncertaintyScore, ...]:
        return self.scores or candidates(queries=False)

    def __call__(self, routed: RoutedBatch) -> Tensor:
        values = {score.name: routed.score(score).cpu().double().numpy() for score in self.reads}
        return torch.from_numpy(self.of_values(values)).to(in_float64(routed.batch.way).device)

    def fitted_columns(self, scores: Mapping[str, Numbers]) -> FloatArray:
        """``(n, D)`` values of the scores that it was fitted to; they may be infinite.

        Raises:
            ValueError: when it has not been fitted, or a score is missing or NaN.
        """
        if not self.deployable:
            raise ValueError(f"score {self.name!r} has no numbers yet; expected it to be fitted to validation episodes")
        missing = [score.name for score in self.scores if score.name not in scores]
        if missing:
            raise ValueError(f"scores hold {sorted(scores)}; {self.name!r} also reads {missing}")
        return columns(scores, self.scores, finite=False)


def columns(scores: Mapping[str, Numbers], read: tuple[UncertaintyScore, ...], *, finite: bool) -> FloatArray:
    """Values ``(n, D)`` of the scores that are read, from name -> ``(n,)``.

    Raises:
        ValueError: for none, lengths that differ, NaN, or infinities where ``finite``.
    """
    if not read:
        raise ValueError("got no scores; expected at least one to predict from")
    found = [float_array(scores[s.name], f"scores {s.name!r}", finite=finite) for s in read]
    for score, column in zip(read, found, strict=True):
        same_length(found[0], column, f"scores {read[0].name!r} and {score.name!r}")
    return np.stack(found, axis=1)
