"""Single sources by themselves: one that is named, the one that does best on the support, and the one that knows.

The start of everything that fine-tunes: residuals, LoRA and probes take one of these and change it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.inference.evaluation.baselines.baseline import Baseline, ComposedLibrary, ParameterBaseline
from pyro_smat.inference.objective.reference import support_losses
from pyro_smat.registry import register

BEST_BY_SUPPORT = "best source by support loss"
ORACLE = "oracle source"


@register("baseline", "single_source")
@dataclass(frozen=True)
class SingleSource(ParameterBaseline):
    """One source, whatever the task.

    Attributes:
        source: its name; None is source 0, the fallback.

    Raises:
        ValueError: for a name that is no source.
    """

    composed: ComposedLibrary = field(repr=False)
    source: str | None = None
    in_report: ClassVar[bool] = False

    def __post_init__(self) -> None:
        names = self.composed.library.names
        if self.source is not None and self.source not in names:
            raise ValueError(f"source is {self.source!r}; expected one of {', '.join(names)}")

    @property
    def name(self) -> str:  # type: ignore[override]  # read only here: it says which source
        return f"source: {self.composed.library.names[self._index]}"

    @property
    def _index(self) -> int:
        return 0 if self.source is None else self.composed.library.names.index(self.source)

    def parameters(self, batch: EpisodeBatch) -> Tensor:
        return self.composed.sources[self._index].expand(len(batch), -1)

    def features(self, batch: EpisodeBatch) -> tuple[Tensor, Tensor]:
        support, query = self.composed.source_features(batch)
        return support[:, self._index], query[:, self._index]

    def __call__(self, batch: EpisodeBatch) -> Tensor:
        return self.composed.source_probabilities(batch)[:, self._index]


@register("baseline", "best_source")
@dataclass(frozen=True)
class BestSource(ParameterBaseline):
    """The source of lowest leave-one-out support loss.

    See :func:`~pyro_smat.inference.objective.reference.support_losses`.
    """

    composed: ComposedLibrary = field(repr=False)
    name: str = BEST_BY_SUPPORT

    @torch.no_grad()
    def parameters(self, batch: EpisodeBatch) -> Tensor:
        return self.composed.sources[self._best(batch)]

    def features(self, batch: EpisodeBatch) -> tuple[Tensor, Tensor]:
        support, query = self.composed.source_features(batch)
        best = self._best(batch)
        return of_source(support, best), of_source(query, best)

    def __call__(self, batch: EpisodeBatch) -> Tensor:
        return of_source(self.composed.source_probabilities(batch), self._best(batch))

    def _best(self, batch: EpisodeBatch) -> Tensor:
        return support_losses(batch, self.composed.metric).argmin(1)


@register("baseline", "oracle_source")
@dataclass(frozen=True)
class OracleSource(Baseline):
    """The source that knows the true route of an episode; source 0 where none does.

    Attributes:
        source_of_route: for every route, the source that knows it (-1 none).
    """

    composed: ComposedLibrary = field(repr=False)
    source_of_route: Sequence[int] = field(repr=False)
    name: str = ORACLE
    is_reference: ClassVar[bool] = True

    def __call__(self, batch: EpisodeBatch) -> Tensor:
        known = torch.tensor([*self.source_of_route, -1], device=batch.route.device)[batch.route]  # -1 picks the last
        return of_source(self.composed.source_probabilities(batch), known.clamp(min=0))


def of_source(values: Tensor, source: Tensor) -> Tensor:
    """``(B, n, k)`` from probabilities or features ``(B, R, n, k)`` and a source ``(B,)`` of every episode."""
    return values[torch.arange(len(source), device=source.device), source]
