"""What a decision rule is: from a posterior over routings to the networks that a task runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

import torch

from pyro_smat.inference.decision.mixture import Mixture
from pyro_smat.registry import Remembered
from pyro_smat.registry.entries import name_of

if TYPE_CHECKING:
    from pyro_smat.episodes import EpisodeBatch
    from pyro_smat.guides import RoutingPosterior


class DecisionRule(Remembered, ABC):
    """A function from posteriors to mixtures; a frozen dataclass whose fields are its options.

    Attributes:
        label: what reports call it; by default "routed, " and its name.
    """

    label: ClassVar[str] = ""

    @abstractmethod
    def __call__(
        self,
        posterior: RoutingPosterior,
        batch: EpisodeBatch | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Mixture:
        """The routings of B tasks and their weights.

        Args:
            posterior: q(c | S) of the tasks.
            batch: the tasks, for rules that look at them; query labels are not theirs to see.
            generator: for rules that draw.
        """

    @property
    def name(self) -> str:
        """The registered name, or that of the class."""
        return name_of("decision_rule", type(self)) or type(self).__name__

    @property
    def title(self) -> str:
        """The row of tables."""
        return self.label or f"routed, {self.name.replace('_', ' ')}"


LARGEST_COUNT = 65_536  # of networks of one task


def check_positive(what: str, value: int) -> None:
    """Raises ValueError for a count below 1 or absurdly large."""
    if value < 1:
        raise ValueError(f"{what} is {value}; expected at least 1")
    if value > LARGEST_COUNT:
        raise ValueError(f"{what} is {value}; expected at most {LARGEST_COUNT:,}")
