"""CatalogGuide: an amortised categorical over a finite catalog of routings, enumerated exactly."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.guides.posterior import CatalogPosterior
from pyro_smat.guides.router import RouterNetwork, RoutingGuide
from pyro_smat.routing import Catalog


class CatalogGuide(RoutingGuide):
    r"""q(A | S) over the J routings of a catalog.

    A routing is scored from the embeddings of its members, weighted as the routing weights them, plus the mixture of
    their logits; the site "routing" is marked for parallel enumeration, so expectations over it are exact.

    Args:
        catalog: the J routings.
        sources: R.
        hidden: width of the router network.
    """

    members: Tensor
    infer: ClassVar[dict[str, str]] = {"enumerate": "parallel"}

    def __init__(self, catalog: Catalog, sources: int, hidden: int = 64) -> None:
        super().__init__()
        experts = catalog.coefficients.shape[-1] - sources
        self.catalog = catalog
        self.router = RouterNetwork(sources, experts, hidden)
        self.expert_embedding = nn.Parameter(
            torch.randn(experts, hidden, generator=torch.Generator().manual_seed(1)) * 0.1
        )
        self.score = nn.Sequential(nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, 1))
        self.register_buffer("members", catalog.coefficients, persistent=False)

    def posterior(self, batch: EpisodeBatch) -> CatalogPosterior:
        embedding, loss = self.router.embed(batch)
        location, _ = self.router.locate(embedding, loss)
        of_sources, of_experts = self.members[:, : self.router.sources], self.members[:, self.router.sources :]
        member = of_sources @ embedding + of_experts @ self.expert_embedding  # (B, J, h)
        logits = self.score(member).squeeze(-1) + location @ self.members.mT
        return CatalogPosterior(logits, self.catalog, self.router.sources)
