"""SimplexPosterior: posteriors on the simplex of sources and that of experts, whatever their distribution.

Every family is a pair of distributions over ILR coordinates (:mod:`pyro_smat.routing.distributions`), one for the
sources and one for the experts, with batch shape ``(B, 1)``, or ``(B, 1, L)`` with blockwise mixing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_smat.guides.posterior import RoutingPosterior, keep_largest
from pyro_smat.routing import EXPERT_SITE, SOURCE_SITE, ilr_basis, softmax_of_ilr
from pyro_smat.routing.distributions import ILRDistribution


class SimplexPosterior(RoutingPosterior):
    """Independent distributions of the ILR coordinates of sources and experts.

    Args:
        parts: site -> distribution of its ILR coordinates; a site with a single source or expert is left out.
        num_sources, num_experts: R and M.
        like: gives the number of episodes (first dim), dtype and device.
        num_blocks: L.
    """

    def __init__(
        self,
        parts: Mapping[str, ILRDistribution],
        num_sources: int,
        num_experts: int,
        like: Tensor,
        num_blocks: int = 1,
    ) -> None:
        self.parts = dict(parts)
        self.num_sources, self.num_experts, self.num_blocks = num_sources, num_experts, num_blocks
        self._like = like

    def sites(self) -> Mapping[str, dist.TorchDistribution]:
        return {name: part.to_event(1) if self.num_blocks > 1 else part for name, part in self.parts.items()}

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        return self._coefficients(lambda part: softmax_of_ilr(part.rsample((count,), generator)), (count,))

    @property
    def mean(self) -> Tensor:
        return self._coefficients(lambda part: part.mean_weights())

    @property
    def mode(self) -> Tensor:
        """The weights at the mode of the ILR coordinates."""
        return self._coefficients(lambda part: part.mode_weights())

    def top(self, k: int) -> tuple[Tensor, Tensor]:
        """One mixture: the mean with all but its k largest source weights (and expert weights) set to 0."""
        parts = [keep_largest(part, k) for part in self.mean.split([self.num_sources, self.num_experts], dim=-1)]
        return torch.cat(parts, dim=-1).unsqueeze(0), self._like.new_ones(1, self._like.shape[0])

    def log_prob(self, coefficients: Tensor) -> Tensor:
        """Of the ILR coordinates of these weights.

        A weight that underflowed counts as the smallest number of its dtype: where draws are that sharp, ask the
        distributions of :meth:`sites` for the density of the coordinates themselves.
        """
        total = coefficients.new_zeros(coefficients.shape[: -2 if self.num_blocks > 1 else -1])
        for name, distribution in self.sites().items():
            part = (
                coefficients[..., : self.num_sources] if name == SOURCE_SITE else coefficients[..., self.num_sources :]
            )
            ilr = part.clamp(min=torch.finfo(part.dtype).tiny).log() @ ilr_basis(part.shape[-1], part)
            ilr = ilr.unsqueeze(-3 if self.num_blocks > 1 else -2)  # the dim of queries
            total = total + distribution.log_prob(ilr).squeeze(-1)
        return total

    @torch.no_grad()
    def mutual_information(self, draws: int = 32, generator: torch.Generator | None = None) -> float:
        log_q = []
        for part in self.parts.values():
            drawn = part.sample((draws,), generator).unsqueeze(2)  # (K, B, 1, 1, [L,] n - 1)
            log_q.append(part.log_prob(drawn).flatten(3).sum(-1))
        return information(torch.stack(log_q).sum(0)) if log_q else 0.0

    def routing_probabilities(self) -> Tensor:
        """Mean weights of the sources."""
        return self.source_weights

    def _coefficients(self, weights: Callable[[ILRDistribution], Tensor], leading: tuple[int, ...] = ()) -> Tensor:
        """Coefficients ``(*leading, B, [L,] C)`` from weights ``(*leading, B, 1, [L,] n)`` of every part."""
        blocks = (self.num_blocks,) if self.num_blocks > 1 else ()
        shape = (*leading, self._like.shape[0], *blocks)
        pieces = []
        for name, size in ((SOURCE_SITE, self.num_sources), (EXPERT_SITE, self.num_experts)):
            if name in self.parts:
                pieces.append(weights(self.parts[name]).squeeze(len(leading) + 1))
            elif size:
                pieces.append(self._like.new_ones(*shape, 1))
        return torch.cat(pieces, dim=-1)


def information(log_q: Tensor) -> float:
    """Mutual information of episode and routing from log q_j of the draws of episode i, ``(K, B, B)``, in nats."""
    mixed = log_q.logsumexp(-1) - math.log(log_q.shape[-1])
    return float((log_q.diagonal(dim1=1, dim2=2) - mixed).mean())


def site_slices(num_sources: int, num_experts: int) -> dict[str, slice]:
    """Where the logits of a site are among all R + M; sites with a single source or expert are left out."""
    slices = {SOURCE_SITE: (slice(0, num_sources), num_sources), EXPERT_SITE: (slice(num_sources, None), num_experts)}
    return {name: part for name, (part, size) in slices.items() if size > 1}
