"""Point routing, the baseline: a posterior with all its mass on one routing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_smat.encoders import SupportEncoder
from pyro_smat.episodes import EpisodeBatch
from pyro_smat.guides.posterior import KLMethod, RoutingPosterior, keep_largest
from pyro_smat.guides.router import RouterNetwork, RoutingGuide
from pyro_smat.guides.simplex import site_slices
from pyro_smat.models.priors import RoutingPrior
from pyro_smat.registry import register
from pyro_smat.routing import ilr_basis


class PointPosterior(RoutingPosterior):
    """All mass on softmax(logits) of the sources and of the experts.

    Args:
        logits: ``(B, R + M)``, ``(B, L, R + M)`` with blocks.
        num_sources: R.
    """

    def __init__(self, logits: Tensor, num_sources: int) -> None:
        self.logits = logits
        self.num_sources, self.num_experts = num_sources, logits.shape[-1] - num_sources
        self.num_blocks = logits.shape[1] if logits.ndim == 3 else 1

    def __getitem__(self, episodes: slice | Sequence[int]) -> Self:
        return type(self)(self.logits[episodes], self.num_sources)

    def sites(self) -> Mapping[str, dist.Delta]:
        event = 2 if self.num_blocks > 1 else 1
        logits = {
            name: self.logits[..., part].unsqueeze(1)
            for name, part in site_slices(self.num_sources, self.num_experts).items()
        }
        return {
            name: dist.Delta(values @ ilr_basis(values.shape[-1], values), event_dim=event)
            for name, values in logits.items()
        }

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        return self.mean.expand(count, *self.mean.shape)

    @property
    def mean(self) -> Tensor:
        parts = self.logits.split([self.num_sources, self.num_experts], dim=-1)
        return torch.cat([part.softmax(-1) for part in parts], dim=-1)

    @property
    def mode(self) -> Tensor:
        return self.mean

    def top(self, k: int) -> tuple[Tensor, Tensor]:
        parts = [keep_largest(part, k) for part in self.mean.split([self.num_sources, self.num_experts], dim=-1)]
        return torch.cat(parts, dim=-1).unsqueeze(0), self.logits.new_ones(1, self.logits.shape[0])

    def log_prob(self, coefficients: Tensor) -> Tensor:
        same = torch.isclose(coefficients, self.mean).all(-1)
        return torch.where(same.all(-1) if self.num_blocks > 1 else same, 0.0, -torch.inf).to(self.logits)

    def mutual_information(self, draws: int = 32, generator: torch.Generator | None = None) -> float:
        """NaN: a point has no density."""
        return float("nan")

    def routing_probabilities(self) -> Tensor:
        """The mixing weights themselves, read as probabilities: all that a point router can say of its doubt."""
        return self.source_weights

    def kl_method(self, prior: RoutingPrior) -> KLMethod:
        self._check_pair(prior)
        return "exact"

    def _closed_kl(self, prior: RoutingPrior) -> Tensor:
        """Minus the log prior density at the point (a point mass has no finite KL; this is what MAP training uses)."""
        if not (sites := self.sites()):
            return self.logits.new_zeros(self.logits.shape[0])
        return -prior.log_prob({name: delta.v for name, delta in sites.items()}).squeeze(-1)


@register("guide", "point")
class PointGuide(RoutingGuide):
    """c = h(S): a Dirac delta at softmax(mu(S)). Training it is amortised MAP under the same prior.

    Arguments as in :class:`~pyro_smat.guides.LogisticNormalGuide`.

    Example:
        >>> from pyro_smat import EpisodeSampler, glyph_pool
        >>> batch = EpisodeSampler(glyph_pool("validation"), 3, 2, 1).sample(4)
        >>> batch = batch.with_features(torch.rand(4, 5, 6, 8))  # (B, R, S, f); SourceFeatures gives real ones
        >>> guide = PointGuide(5)
        >>> posterior = guide.posterior(batch)
        >>> torch.equal(posterior.mean, posterior.mode)
        True
    """

    def __init__(
        self,
        num_sources: int,
        num_experts: int = 0,
        *,
        num_blocks: int = 1,
        prior: RoutingPrior | None = None,
        encoder: SupportEncoder | None = None,
    ) -> None:
        super().__init__(prior)
        self.router = RouterNetwork(num_sources, num_experts, num_blocks=num_blocks, encoder=encoder)

    def posterior(self, batch: EpisodeBatch) -> PointPosterior:
        location = self.router(batch).location
        return PointPosterior(location + self.prior_logits(location), self.router.num_sources)
