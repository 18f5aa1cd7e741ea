"""Auto: the score that orders validation episodes best, the learned one among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from pyro_smat.inference.decision.scores.learned import LearnedRisk
from pyro_smat.inference.decision.scores.score import FittedScore, UncertaintyScore
from pyro_smat.inference.decision.scores.standard import candidates
from pyro_smat.metrics.arrays import Numbers
from pyro_smat.registry import register

if TYPE_CHECKING:
    from pyro_smat.inference.decision.routed_batch import RoutedBatch


@register("uncertainty_score", "auto")
@dataclass(frozen=True, kw_only=True)
class Auto(UncertaintyScore):
    """The score with the lowest AURC on validation episodes.

    The learned one competes by its cross-fitted values: on its own episodes it would always look best.

    Attributes:
        scores: that compete; none: all that do not look at queries.
        queries: whether "all" holds those that do, too.
    """

    scores: tuple[UncertaintyScore, ...] = ()
    queries: bool = False
    deployable: ClassVar[bool] = False

    @property
    def reads(self) -> tuple[UncertaintyScore, ...]:
        return self.scores or candidates(queries=self.queries)

    def __call__(self, routed: RoutedBatch) -> Tensor:
        raise ValueError("score 'auto' is a choice among scores; expected it to be made on validation episodes")

    def fit(self, scores: Mapping[str, Numbers], losses: Numbers) -> FittedScore:
        found = [score.fit(scores, losses) for score in (*self.reads, LearnedRisk(scores=self.reads))]
        areas = {name: area for one in found for name, area in one.aurc.items()}
        return replace(min(found, key=lambda one: areas[one.score.name]), aurc=areas)
