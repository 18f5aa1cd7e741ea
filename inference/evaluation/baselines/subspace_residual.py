r"""Subspace residual: the source whose training features the support resembles most, without a label being read.

.. math::
    w = \mathrm{softmax}(-\bar\rho_r / T), \qquad
    \bar\rho_r = \frac1n \sum_i \rho_r(x_i) / \rho_r^{\text{usual}}

with the relative residuals of :mod:`pyro_smat.sources.subspace`; without T the one source of the smallest. Source: SiM,
arXiv 2606.22589, which compares :math:`\rho_r` as they are (``calibrated=False``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.inference.evaluation.baselines.baseline import Baseline, ComposedLibrary
from pyro_smat.inference.evaluation.baselines.sources_alone import of_source
from pyro_smat.registry import register
from pyro_smat.sources import FeatureSubspace


@register("baseline", "subspace_residual")
@dataclass(frozen=True)
class SubspaceResidual(Baseline):
    """Routing by how far a support lies outside what each source was trained on.

    Attributes:
        subspaces: of the sources' training features, by name, as :attr:`SourceLibrary.subspaces` has them. A source
            without one is never chosen.
        temperature: T > 0 of the weights; None chooses the source of the smallest residual.
        calibrated: residuals in units of what is usual for the source's own training images.

    Raises:
        ValueError: when no source has a subspace, or for a temperature that is not > 0.
    """

    composed: ComposedLibrary = field(repr=False)
    subspaces: Mapping[str, FeatureSubspace] = field(repr=False)
    temperature: float | None = None
    calibrated: bool = True
    name: str = "source by subspace residual"

    def __post_init__(self) -> None:
        names = self.composed.library.names
        if not set(self.subspaces) & set(names):
            raise ValueError(
                f"none of the sources {', '.join(names)} has a subspace of its training features; fit and store them: "
                "pyro-smat sources subspace, or pyro_smat.sources.save_subspace"
            )
        if self.temperature is not None and not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature!r}; expected a number > 0, or None for one source")

    def __call__(self, batch: EpisodeBatch) -> Tensor:
        residuals = self.residuals(batch)
        probabilities = self.composed.source_probabilities(batch)
        if self.temperature is None:
            return of_source(probabilities, residuals.argmin(1))
        weights = (-residuals / self.temperature).softmax(-1)
        return (weights.to(probabilities)[..., None, None] * probabilities).sum(1)

    @torch.no_grad()
    def residuals(self, batch: EpisodeBatch) -> Tensor:
        """Mean residual ``(B, R)`` of the supports under every source; infinite where it has no subspace."""
        support, _ = self.composed.source_features(batch)  # (B, R, S, f)
        found = support.new_full(support.shape[:2], torch.inf)
        for r, name in enumerate(self.composed.library.names):
            if name in self.subspaces:
                subspace = self.subspaces[name]
                each = subspace.residual(support[:, r]) / (subspace.usual if self.calibrated else 1.0)
                found[:, r] = (each * batch.support.mask).sum(-1) / batch.support.mask.sum(-1).clamp(min=1)
        return found
