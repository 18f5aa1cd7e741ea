r"""Dirichlet routing: :math:`w \sim \mathrm{Dir}(a(S))`, sure where the total concentration is large."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_smat.encoders import SupportEncoder
from pyro_smat.episodes import EpisodeBatch
from pyro_smat.guides.router import RouterNetwork, RoutingGuide
from pyro_smat.guides.simplex import SimplexPosterior, site_slices
from pyro_smat.models.priors import RoutingPrior
from pyro_smat.routing.distributions import ILRDirichlet

LOWEST_CONCENTRATION = 0.1


class DirichletPosterior(SimplexPosterior):
    """Dirichlet weights of the sources and of the experts.

    Args:
        concentration: ``(B, R + M)``, ``(B, L, R + M)`` with blocks; > 0.
        sources: R.
    """

    def __init__(self, concentration: Tensor, sources: int) -> None:
        self.concentration = concentration
        experts = concentration.shape[-1] - sources
        parts = {
            name: ILRDirichlet(concentration[..., part].unsqueeze(1))
            for name, part in site_slices(sources, experts).items()
        }
        blocks = concentration.shape[1] if concentration.ndim == 3 else 1
        super().__init__(parts, sources, experts, concentration, blocks)


class DirichletGuide(RoutingGuide):
    r"""q(w, alpha | S) Dirichlet: :math:`a = a_{\min} + a_0(S)\, \mathrm{softmax}(\mu(S))`, a_0 > 0 the concentration.

    Args:
        sources: R.
        experts: M.
        blocks: L.
        prior: where the posterior stands before any evidence.
        encoder: of the support; default source evidence.
        hidden: width of the router network.
        concentration: initial a_0 for every entry of a part: a part of n entries starts at n times this.
    """

    def __init__(
        self,
        sources: int,
        experts: int = 0,
        *,
        blocks: int = 1,
        prior: RoutingPrior | None = None,
        encoder: SupportEncoder | None = None,
        hidden: int = 64,
        concentration: float = 2.0,
    ) -> None:
        super().__init__(prior)
        if not concentration > 0:
            raise ValueError(f"concentration is {concentration}; expected > 0")
        self.router = RouterNetwork(sources, experts, blocks=blocks, encoder=encoder, hidden=hidden)
        self.total = nn.Linear(2 * self.router.encoder.hidden, 2)
        with torch.no_grad():
            self.total.weight.mul_(0.1)
            self.total.bias.fill_(torch.tensor(float(concentration)).expm1().log())

    def posterior(self, batch: EpisodeBatch) -> DirichletPosterior:
        logits = self.router(batch)
        sources, blocks = self.router.sources, (1,) * (logits.location.ndim - 2)
        totals = F.softplus(self.total(logits.summary)).reshape(-1, *blocks, 2)
        location = logits.location + self.prior_logits(logits.location)
        parts = location.split([sources, self.router.experts], dim=-1)
        concentration = [
            LOWEST_CONCENTRATION + part.shape[-1] * totals[..., i : i + 1] * part.softmax(-1)
            for i, part in enumerate(parts)
        ]
        return DirichletPosterior(torch.cat(concentration, dim=-1), sources)
