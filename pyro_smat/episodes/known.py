"""KnownFeatures: what an episode's images look like under fixed routings, known before any network runs."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from pyro_smat.episodes.labelled import Labelled


class KnownFeatures(Protocol):
    """Looked up by models; :class:`~pyro_smat.networks.SourceFeatures` of a pool is one."""

    def of_routings(self, coefficients: Tensor, basis: Tensor, part: Labelled) -> Tensor | None:
        """Features ``(*k, B, n, f)`` under coefficients ``(*k, B, [L,] C)`` of a basis; None where any is not known."""
        ...
