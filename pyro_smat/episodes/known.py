"""KnownFeatures: what an episode's images look like under fixed routings, known before any network runs."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from pyro_smat.episodes.labelled import Labelled


class KnownFeatures(Protocol):
    """Looked up by models; :class:`~pyro_smat.networks.SourceFeatures` of a pool is one."""

    def of_routings(self, coefficients: Tensor, basis: Any, part: Labelled) -> Tensor | None:
        """Features ``(*k, B, n, f)`` under coefficients ``(*k, B, [L,] C)`` of a basis (a matrix, or a
        :class:`~pyro_smat.networks.basis.Basis`); None where any is not known."""
        ...
