"""What an uncertainty score is: from a routed batch to one number a task, larger is less sure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from pyro_smat.metrics.arrays import FloatArray, Numbers, float_array
from pyro_smat.metrics.selective import aurc
from pyro_smat.registry import Remembered
from pyro_smat.registry.entries import name_of

if TYPE_CHECKING:
    from pyro_smat.inference.decision.routed_batch import RoutedBatch


class UncertaintyScore(Remembered, ABC):
    """A function from routed batches to U ``(B,)``; a frozen dataclass whose fields are its options.

    Attributes:
        looks_at_queries: whether it needs images of queries (never their labels), so that every batch of queries of a
            task has a score of its own.
        deployable: False for what has to be fitted to validation episodes first.
        predicts_error: whether its values are shares of wrong answers, and read as such.
        label: what reports call it; by default its name.
    """

    looks_at_queries: ClassVar[bool] = False
    deployable: ClassVar[bool] = True
    predicts_error: ClassVar[bool] = False
    label: ClassVar[str] = ""

    @abstractmethod
    def __call__(self, routed: RoutedBatch) -> Tensor:
        """U ``(B,)`` of a batch; what it takes from the batch is computed then, and only then."""

    @property
    def name(self) -> str:
        """The registered name, or that of the class."""
        return name_of("uncertainty_score", type(self)) or type(self).__name__

    @property
    def title(self) -> str:
        """The row of tables."""
        return self.label or self.name.replace("_", " ")

    @property
    def reads(self) -> tuple[UncertaintyScore, ...]:
        """The scores whose values on validation episodes :meth:`fit` and :meth:`of_values` need."""
        return (self,)

    def of_values(self, scores: Mapping[str, Numbers]) -> FloatArray:
        """U ``(n,)`` from the values of the scores that it reads, name -> ``(n,)``.

        Raises:
            ValueError: when one is missing or NaN.
        """
        if self.name not in scores:
            raise ValueError(f"scores hold {sorted(scores)}; expected {self.name!r}")
        return float_array(scores[self.name], f"scores {self.name!r}", finite=False)

    def fit(self, scores: Mapping[str, Numbers], losses: Numbers) -> FittedScore:
        """The score to deploy, from validation episodes; most scores are what they are.

        Args:
            scores: name -> ``(n,)``, of the scores that it reads.
            losses: ``(n,)``.
        """
        values = self.of_values(scores)
        return FittedScore(self, values, {self.name: aurc(values, float_array(losses, "losses"))})


@dataclass(frozen=True)
class FittedScore:
    """A score with its values on the validation episodes that it was fitted to.

    Attributes:
        score: to deploy.
        values: ``(n,)``; of a score with fitted numbers, from fits that had not seen the episode.
        aurc: of every score that competed, in units of the loss.
    """

    score: UncertaintyScore
    values: FloatArray
    aurc: Mapping[str, float] = field(default_factory=dict)


def mean_over_queries(values: Tensor, mask: Tensor) -> Tensor:
    """``(B,)`` means of values ``(B, Q)`` over the real queries, mask ``(B, Q)`` bool."""
    mask = mask.to(values.dtype)
    return (values * mask).sum(-1) / mask.sum(-1)


def mean_over_blocks(values: Tensor, num_blocks: int) -> Tensor:
    """Values ``(B,)`` as they are, ``(B, L)`` averaged where there are L > 1 blocks."""
    return values.mean(-1) if num_blocks > 1 else values
