r"""Model soups: one average of sources for all tasks, of all of them or of those that help on validation episodes.

.. math:: \theta = \frac{1}{|A|} \sum_{r \in A} \theta^{(r)}

Source: Wortsman et al. 2022, "Model soups", recipe 1 for the greedy one, with the validation loss in place of accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.inference.evaluation.baselines.baseline import ComposedLibrary, ParameterBaseline
from pyro_smat.inference.evaluation.baselines.validation import validation_loss
from pyro_smat.registry import register


@dataclass(frozen=True)
class Soup(ParameterBaseline):
    """The average of some sources.

    Attributes:
        members: their names, in the order in which they were taken.

    Raises:
        ValueError: for no members, a member twice, or one that is no source.
    """

    members: tuple[str, ...]
    name: str

    def __post_init__(self) -> None:
        names = self.composed.library.names
        if not self.members or len(set(self.members)) < len(self.members) or not set(self.members) <= set(names):
            raise ValueError(f"members of the soup are {self.members}; expected some of {names}, each once")

    def parameters(self, batch: EpisodeBatch) -> Tensor:
        rows = [self.composed.library.names.index(member) for member in self.members]
        return self.composed.sources[rows].mean(0).expand(len(batch), -1)


@register("baseline", "uniform_soup")
def uniform_soup(composed: ComposedLibrary) -> Soup:
    """The average of all sources."""
    return Soup(composed, composed.library.names, "uniform soup")


@register("baseline", "greedy_soup")
def greedy_soup(composed: ComposedLibrary, validation: Sequence[EpisodeBatch]) -> Soup:
    """Sources by ascending validation loss, each kept if the average does not lose by it.

    Never worse on the validation episodes than the best source; often it is that source alone, which ``members`` says.

    Raises:
        ValueError: for no validation episodes.
    """

    def soup(*members: str) -> Soup:
        return Soup(composed, members, "greedy soup")

    alone = {name: validation_loss(soup(name), validation) for name in composed.library.names}
    first, *others = sorted(alone, key=lambda name: alone[name])
    kept, least = soup(first), alone[first]
    for name in others:
        trial = soup(*kept.members, name)
        loss = validation_loss(trial, validation)
        if loss <= least:
            kept, least = trial, loss
    return kept
