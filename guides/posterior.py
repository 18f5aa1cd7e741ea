"""RoutingPosterior: what every guide returns, and all that decisions, abstention and reports know of a guide.

Shapes: B episodes, C = R + M coefficients, K draws; with blockwise mixing over L blocks coefficients are
``(..., L, C)``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal, Self

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_smat.models.priors import MixturePrior, RoutingPrior
from pyro_smat.routing import CATALOG_SITE

KL_DRAWS = 256

KLMethod = Literal["exact", "Monte Carlo", "bound"]


class RoutingPosterior(ABC):
    """q(c | S) for B episodes.

    Attributes:
        num_sources: R.
        num_experts: M.
        num_blocks: L, 1 for global mixing.
    """

    num_sources: int
    num_experts: int
    num_blocks: int = 1

    @abstractmethod
    def __getitem__(self, episodes: slice | Sequence[int]) -> Self:
        """The posterior of some of the episodes, with the numbers that they have in the batch."""

    @abstractmethod
    def sites(self) -> Mapping[str, dist.TorchDistribution]:
        """The distributions of the guide's sample sites, batch shape ``(B, 1)``."""

    @abstractmethod
    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws of the coefficients, ``(K, B, C)``."""

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """Posterior mean of the coefficients, ``(B, C)``."""

    @property
    @abstractmethod
    def mode(self) -> Tensor:
        """Most probable routing, ``(B, C)``."""

    @abstractmethod
    def top(self, k: int) -> tuple[Tensor, Tensor]:
        """A sparse stand-in for the posterior: coefficients ``(k', B, C)`` and their weights ``(k', B)``, sum 1."""

    @abstractmethod
    def log_prob(self, coefficients: Tensor) -> Tensor:
        """Log density (ILR coordinates) or log mass of coefficients ``(*k, B, C)``, ``(*k, B)``, in nats."""

    @abstractmethod
    def routing_probabilities(self) -> Tensor:
        """Probabilities ``(B, J)`` of what the posterior is torn between: rows of the catalog, or sources."""

    @property
    def source_weights(self) -> Tensor:
        """Posterior mean of the source weights ``(B, R)``; with blockwise mixing their mean over blocks."""
        weights = self.mean[..., : self.num_sources]
        return weights.mean(1) if self.num_blocks > 1 else weights

    def entropy(self) -> Tensor:
        """Shannon entropy of :meth:`routing_probabilities`, ``(B,)`` in nats."""
        return torch.special.entr(self.routing_probabilities()).sum(-1)

    @abstractmethod
    def mutual_information(self, draws: int = 32, generator: torch.Generator | None = None) -> float:
        r"""Mutual information of episode and routing, :math:`\frac1B\sum_i \mathrm{KL}(q_i \| \frac1B\sum_j q_j)`.

        In nats, 0 to log B. Exact where the routing is one of a list, Monte Carlo from ``draws`` of every episode on
        the simplex.
        """

    def kl(self, prior: RoutingPrior, draws: int = KL_DRAWS) -> Tensor:
        """KL(q || prior), ``(B,)`` in nats; how it is computed says :meth:`kl_method`.

        Args:
            prior: a prior with the same sites.
            draws: of the Monte Carlo estimate, where there is no closed form; they come from the global generator and
                carry a gradient.

        Raises:
            ValueError: when the prior is of another family (its sites differ).
        """
        self._check_pair(prior)
        closed = self._closed_kl(prior)
        if closed is not None:
            return closed
        mine = self.sites()
        drawn = {site: distribution.rsample((draws,)) for site, distribution in mine.items()}
        log_q = torch.stack([mine[site].log_prob(value) for site, value in drawn.items()]).sum(0)
        return (log_q - prior.log_prob(drawn)).mean(0).squeeze(-1)

    def kl_method(self, prior: RoutingPrior) -> KLMethod:
        """ "exact", "bound" (an upper bound) or "Monte Carlo".

        Raises:
            ValueError: as in :meth:`kl`, where the pair is refused.
        """
        self._check_pair(prior)
        if self._closed_kl(prior) is None:
            return "Monte Carlo"
        bounded = isinstance(prior, MixturePrior) and prior.kl == "bound" and CATALOG_SITE not in prior.site_names
        return "bound" if bounded else "exact"

    def _closed_kl(self, prior: RoutingPrior) -> Tensor | None:
        """The exact KL ``(B,)`` or its bound; None where neither is known."""
        mine = self.sites()
        if not mine:
            return self.mean.new_zeros(self.mean.shape[0])
        if isinstance(prior, MixturePrior) and len(mine) > 1:
            return self._mixture_bound(prior) if prior.kl == "bound" else None
        pairs = [(q, prior.distribution(site, {})) for site, q in mine.items()]
        try:
            terms = [kl_divergence(q, p).squeeze(-1) for q, p in pairs]
        except NotImplementedError:  # how torch says that no closed form is registered
            return None
        return torch.stack(terms).sum(0)

    def _mixture_bound(self, prior: MixturePrior) -> Tensor | None:
        r""":math:`-\log \sum_j \pi_j e^{-KL_j}` of the joint of all sites (facts: Jensen)."""
        parts = [self._closed_kl(component) for component in prior.components]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        return -torch.logsumexp(prior.log_weights - torch.stack(known, dim=-1), dim=-1)

    def _check_pair(self, prior: RoutingPrior) -> None:
        mine, theirs = set(self.sites()), set(prior.site_names)
        if mine != theirs:
            raise ValueError(
                f"{type(self).__name__} has sites {sorted(mine)} and {type(prior).__name__} {sorted(theirs)}; "
                "expected a prior of the same family"
            )


def keep_largest(weights: Tensor, k: int) -> Tensor:
    """Weights ``(*b, n)`` with all but the k largest set to 0, renormalised."""
    if weights.shape[-1] <= k:
        return weights
    kept = torch.zeros_like(weights).scatter(-1, weights.topk(k, dim=-1).indices, 1.0) * weights
    return kept / kept.sum(-1, keepdim=True)
