r"""Dirichlet routing: :math:`w \sim \mathrm{Dir}(a(S))`, sure where the total concentration is large."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_smat.encoders import SupportEncoder
from pyro_smat.episodes import EpisodeBatch
from pyro_smat.guides.router import RouterNetwork, RoutingGuide
from pyro_smat.guides.simplex import SimplexPosterior, site_slices
from pyro_smat.models.priors import DirichletPrior, RoutingPrior
from pyro_smat.registry import register
from pyro_smat.routing.distributions import ILRDirichlet

LOWEST_CONCENTRATION = 0.1


class DirichletPosterior(SimplexPosterior):
    """Dirichlet weights of the sources and of the experts.

    Args:
        concentration: ``(B, R + M)``, ``(B, L, R + M)`` with blocks; > 0.
        num_sources: R.
    """

    def __init__(self, concentration: Tensor, num_sources: int) -> None:
        self.concentration = concentration
        num_experts = concentration.shape[-1] - num_sources
        parts = {
            name: ILRDirichlet(concentration[..., part].unsqueeze(1))
            for name, part in site_slices(num_sources, num_experts).items()
        }
        num_blocks = concentration.shape[1] if concentration.ndim == 3 else 1
        super().__init__(parts, num_sources, num_experts, concentration, num_blocks)

    def __getitem__(self, episodes: slice | Sequence[int]) -> Self:
        return type(self)(self.concentration[episodes], self.num_sources)


@register("guide", "dirichlet")
class DirichletGuide(RoutingGuide):
    r"""q(w, alpha | S) Dirichlet: :math:`a = a_{\min} + a_0(S)\, \mathrm{softmax}(\mu(S))`, a_0 > 0 the concentration.

    Args:
        num_sources: R.
        num_experts: M.
        num_blocks: L.
        prior: where the posterior stands before any evidence.
        encoder: of the support; default :class:`~pyro_smat.encoders.EvidenceEncoder`.
        concentration: initial a_0 for every entry of a part: a part of n entries starts at n times this.

    Example:
        >>> from pyro_smat import EpisodeSampler, glyph_pool
        >>> batch = EpisodeSampler(glyph_pool("validation"), 3, 2, 1).sample(4)
        >>> batch = batch.with_features(torch.rand(4, 5, 6, 8))  # (B, R, S, f); SourceFeatures gives real ones
        >>> guide = DirichletGuide(5)
        >>> guide.posterior(batch).mean.shape
        torch.Size([4, 5])
    """

    prior_family = DirichletPrior

    def __init__(
        self,
        num_sources: int,
        num_experts: int = 0,
        *,
        num_blocks: int = 1,
        prior: RoutingPrior | None = None,
        encoder: SupportEncoder | None = None,
        concentration: float = 2.0,
    ) -> None:
        super().__init__(prior)
        if not concentration > 0:
            raise ValueError(f"concentration is {concentration}; expected > 0")
        self.router = RouterNetwork(num_sources, num_experts, num_blocks=num_blocks, encoder=encoder)
        self.total = nn.Linear(2 * self.router.encoder.hidden, 2)
        with torch.no_grad():
            self.total.weight.mul_(0.1)
            self.total.bias.fill_(torch.tensor(float(concentration)).expm1().log())

    def posterior(self, batch: EpisodeBatch) -> DirichletPosterior:
        logits = self.router(batch)
        num_sources, num_blocks = self.router.num_sources, (1,) * (logits.location.ndim - 2)
        totals = F.softplus(self.total(logits.summary)).reshape(-1, *num_blocks, 2)
        location = logits.location + self.prior_logits(logits.location)
        parts = location.split([num_sources, self.router.num_experts], dim=-1)
        concentration = [
            LOWEST_CONCENTRATION + part.shape[-1] * totals[..., i : i + 1] * part.softmax(-1)
            for i, part in enumerate(parts)
        ]
        return DirichletPosterior(torch.cat(concentration, dim=-1), num_sources)
