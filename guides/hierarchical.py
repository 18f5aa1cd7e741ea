r"""Hierarchical routing: first a coarse family of routings, then a member of it.

.. math:: q(A \mid S) = q(f(A) \mid S)\; q(A \mid f(A), S)

The family is summed out by construction (a routing belongs to one family), so the sample site is that of a catalog:
every prior over a catalog pairs with it, expectations and KL are exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_smat.encoders import SupportEncoder
from pyro_smat.episodes import EpisodeBatch
from pyro_smat.guides.catalog import CatalogGuide, CatalogPosterior, Estimator
from pyro_smat.models.priors import RoutingPrior
from pyro_smat.registry import register
from pyro_smat.routing import Catalog


class HierarchicalPosterior(CatalogPosterior):
    """A catalog posterior that knows its families.

    Args:
        logits: ``(B, J)``.
        families: ``(J,)`` long, the family of every routing, 0..F-1.
        catalog, num_sources: as in :class:`CatalogPosterior`.
    """

    def __init__(self, logits: Tensor, families: Tensor, *, catalog: Catalog, num_sources: int) -> None:
        super().__init__(logits, catalog, num_sources=num_sources)
        self.families = families

    def family_probabilities(self) -> Tensor:
        """q(f | S), ``(B, F)``."""
        return _logsumexp_by(self.logits.log_softmax(-1), self.families).exp()


@register("guide", "hierarchical")
class HierarchicalGuide(CatalogGuide):
    """q(family | S) q(routing | family, S) over a catalog.

    Args:
        catalog: the J routings.
        num_sources: R.
        families: the family of every routing; default: the set of sources that it opens (the expert is the member).
        prior, encoder, estimator, temperature: as in :class:`~pyro_smat.guides.CatalogGuide`.

    Example:
        >>> from pyro_smat import EpisodeSampler, glyph_pool
        >>> batch = EpisodeSampler(glyph_pool("validation"), 3, 2, 1).sample(4)
        >>> batch = batch.with_features(torch.rand(4, 5, 6, 8))  # (B, R, S, f); SourceFeatures gives real ones
        >>> guide = HierarchicalGuide(Catalog.k_hot("abcde", experts=2), 5)  # a family: the same source, either expert
        >>> guide.posterior(batch).family_probabilities().shape
        torch.Size([4, 5])
    """

    families: Tensor

    def __init__(
        self,
        catalog: Catalog,
        num_sources: int,
        *,
        families: Sequence[int] | None = None,
        prior: RoutingPrior | None = None,
        encoder: SupportEncoder | None = None,
        estimator: Estimator = "enumerate",
        temperature: float = 0.5,
    ) -> None:
        super().__init__(
            catalog, num_sources, prior=prior, encoder=encoder, estimator=estimator, temperature=temperature
        )
        of_routing = torch.tensor(list(catalog.families() if families is None else families))
        if of_routing.shape != (len(catalog),) or set(of_routing.tolist()) != set(range(int(of_routing.max()) + 1)):
            raise ValueError(
                f"families are {of_routing.tolist()}; expected {len(catalog)} numbers 0..F-1, one a routing, none left "
                "out"
            )
        self.register_buffer("families", of_routing, persistent=False)
        width = self.router.encoder.hidden
        self.family_score = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))

    def posterior(self, batch: EpisodeBatch) -> HierarchicalPosterior:
        embeddings, locations = self.member_views(batch)
        membership = torch.nn.functional.one_hot(self.families).to(embeddings)  # (J, F)
        share = membership / membership.sum(0)
        family_logits = self.family_score(share.mT @ embeddings).squeeze(-1) + locations @ share
        member_logits = self.scores(embeddings) + locations
        within = member_logits - _logsumexp_by(member_logits, self.families)[..., self.families]
        logits = family_logits.log_softmax(-1)[..., self.families] + within
        logits = logits + self.prior_logits(logits)
        return HierarchicalPosterior(
            logits / self.temperature_scale, self.families, catalog=self.catalog, num_sources=self.num_sources
        )


def _logsumexp_by(values: Tensor, groups: Tensor) -> Tensor:
    """Log sum exp of values ``(*b, J)`` within groups ``(J,)`` 0..F-1, ``(*b, F)``."""
    numbers = torch.arange(int(groups.max()) + 1, device=groups.device).unsqueeze(-1)
    return torch.where(numbers == groups, values.unsqueeze(-2), -torch.inf).logsumexp(-1)
