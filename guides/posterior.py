"""RoutingPosterior: what every guide returns, and all that decisions, abstention and reports know of a guide.

Shapes: B episodes, C = R + M coefficients, K draws.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_smat.models.priors import LogisticNormalPrior
from pyro_smat.models.priors.catalog import CatalogPrior
from pyro_smat.models.priors.logistic_normal import coefficients_from_contrasts, contrast_normal
from pyro_smat.routing import CATALOG_SITE, EXPERT_SITE, SOURCE_SITE, Catalog, contrast_basis

Uncertainty = Literal["confidence", "entropy", "variance", "prior"]
UNCERTAINTIES: tuple[Uncertainty, ...] = ("confidence", "entropy", "variance", "prior")
VARIANCE_DRAWS = 64


class RoutingPosterior(ABC):
    """q(c | S) for B episodes.

    Attributes:
        sources: R.
        experts: M.
    """

    sources: int
    experts: int

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
        """Log density (contrast coordinates) or log mass of coefficients ``(*k, B, C)``, ``(*k, B)``, in nats."""

    @abstractmethod
    def choice(self) -> Tensor:
        """Probabilities ``(B, J)`` of what the posterior is torn between: rows of the catalog, or sources."""

    def entropy(self) -> Tensor:
        """Shannon entropy of :meth:`choice`, ``(B,)`` in nats."""
        probabilities = self.choice()
        return torch.special.entr(probabilities).sum(-1)

    def kl(self, prior: LogisticNormalPrior | CatalogPrior) -> Tensor:
        """Exact KL(q || prior), ``(B,)`` in nats.

        Raises:
            ValueError: when the prior is of another family (its sites differ).
        """
        mine, theirs = self.sites(), self._sites_of(prior)
        terms = [kl_divergence(mine[site], theirs[site]).squeeze(-1) for site in mine]
        return torch.stack(terms).sum(0) if terms else self.mean.new_zeros(self.mean.shape[0])

    def _sites_of(self, prior: LogisticNormalPrior | CatalogPrior) -> Mapping[str, dist.TorchDistribution]:
        mine, theirs = self.sites(), prior.distributions()
        if set(mine) != set(theirs):
            raise ValueError(
                f"{type(self).__name__} has sites {sorted(mine)} and {type(prior).__name__} {sorted(theirs)}; "
                "expected a prior of the same family"
            )
        return theirs

    def uncertainty(
        self,
        kind: Uncertainty = "entropy",
        prior: LogisticNormalPrior | CatalogPrior | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """U(S) ``(B,)``; larger is less sure.

        Args:
            kind: "confidence" 1 - max choice; "entropy" of the choice; "variance" summed over coefficients, from
                draws; "prior" minus KL(q || prior), for which ``prior`` is needed.
            prior: the routing prior.
            generator: for "variance".
        """
        if kind == "confidence":
            return 1.0 - self.choice().amax(-1)
        if kind == "entropy":
            return self.entropy()
        if kind == "variance":
            return self.sample(VARIANCE_DRAWS, generator).var(0).sum(-1)
        if kind == "prior":
            if prior is None:
                raise ValueError("uncertainty kind 'prior' is minus KL(q || prior): pass the prior")
            return -self.kl(prior)
        raise ValueError(f"uncertainty kind is {kind!r}; expected one of {UNCERTAINTIES}")


class LogisticNormalPosterior(RoutingPosterior):
    """Independent Gaussian logits, softmax over the sources and over the experts.

    Args:
        loc, scale: ``(B, R + M)`` of the logits.
        sources: R.
    """

    def __init__(self, loc: Tensor, scale: Tensor, sources: int) -> None:
        self.loc, self.scale = loc, scale
        self.sources, self.experts = sources, loc.shape[-1] - sources

    def sites(self) -> Mapping[str, dist.MultivariateNormal]:
        parts = {SOURCE_SITE: slice(0, self.sources), EXPERT_SITE: slice(self.sources, None)}
        return {
            site: contrast_normal(self.loc[:, None, part], self.scale[:, None, part])
            for site, part in parts.items()
            if self.loc[:, part].shape[-1] > 1
        }

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        noise = torch.randn((count, *self.loc.shape), generator=generator, device=self.loc.device, dtype=self.loc.dtype)
        return self._weights(self.loc + self.scale * noise)

    @property
    def mean(self) -> Tensor:
        """By 512 quasi-random draws, the same ones every time."""
        engine = torch.quasirandom.SobolEngine(self.loc.shape[-1], scramble=True, seed=0)
        uniform = engine.draw(512, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
        noise = torch.special.ndtri(uniform).to(self.loc).unsqueeze(1)
        return self._weights(self.loc + self.scale * noise).mean(0)

    @property
    def mode(self) -> Tensor:
        """The weights at the mode of the contrasts, softmax(loc)."""
        return self._weights(self.loc)

    def top(self, k: int) -> tuple[Tensor, Tensor]:
        """One mixture: the mean with all but its k largest source weights (and expert weights) set to 0."""
        parts = [_keep_largest(part, k) for part in self.mean.split([self.sources, self.experts], dim=-1)]
        return torch.cat(parts, dim=-1).unsqueeze(0), self.loc.new_ones(1, self.loc.shape[0])

    def log_prob(self, coefficients: Tensor) -> Tensor:
        total = coefficients.new_zeros(coefficients.shape[:-1])
        for site, distribution in self.sites().items():
            part = coefficients[..., : self.sources] if site == SOURCE_SITE else coefficients[..., self.sources :]
            contrasts = part.clamp(min=1e-30).log() @ contrast_basis(part.shape[-1], part)
            total = total + distribution.log_prob(contrasts.unsqueeze(-2)).squeeze(-1)
        return total

    def choice(self) -> Tensor:
        return self.mean[:, : self.sources]

    def _weights(self, logits: Tensor) -> Tensor:
        return torch.cat([logits[..., : self.sources].softmax(-1), logits[..., self.sources :].softmax(-1)], dim=-1)


class PointPosterior(RoutingPosterior):
    """All mass on one routing: point routing.

    Args:
        logits: ``(B, R + M)``.
        sources: R.
    """

    def __init__(self, logits: Tensor, sources: int) -> None:
        self.logits = logits
        self.sources, self.experts = sources, logits.shape[-1] - sources

    def sites(self) -> Mapping[str, dist.Delta]:
        parts = {SOURCE_SITE: self.logits[:, None, : self.sources], EXPERT_SITE: self.logits[:, None, self.sources :]}
        return {
            site: dist.Delta(part @ contrast_basis(part.shape[-1], part), event_dim=1)
            for site, part in parts.items()
            if part.shape[-1] > 1
        }

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        return self.mean.expand(count, -1, -1)

    @property
    def mean(self) -> Tensor:
        values = {site: d.v.squeeze(-2) for site, d in self.sites().items()}
        if not values:
            return torch.ones_like(self.logits)
        return coefficients_from_contrasts(values, self.sources, self.experts, self.logits)

    @property
    def mode(self) -> Tensor:
        return self.mean

    def top(self, k: int) -> tuple[Tensor, Tensor]:
        parts = [_keep_largest(part, k) for part in self.mean.split([self.sources, self.experts], dim=-1)]
        return torch.cat(parts, dim=-1).unsqueeze(0), self.logits.new_ones(1, self.logits.shape[0])

    def log_prob(self, coefficients: Tensor) -> Tensor:
        here = torch.isclose(coefficients, self.mean).all(-1)
        return torch.where(here, 0.0, -torch.inf)

    def choice(self) -> Tensor:
        """The mixing weights themselves, read as probabilities: all that a point router can say of its doubt."""
        return self.mean[:, : self.sources]

    def kl(self, prior: LogisticNormalPrior | CatalogPrior) -> Tensor:
        """Minus the log prior density at the point (a point mass has no finite KL; this is what MAP training uses)."""
        theirs = self._sites_of(prior)
        terms = [-theirs[site].log_prob(d.v).squeeze(-1) for site, d in self.sites().items()]
        return torch.stack(terms).sum(0) if terms else self.logits.new_zeros(self.logits.shape[0])


class CatalogPosterior(RoutingPosterior):
    """A categorical over the rows of a catalog.

    Args:
        logits: ``(B, J)``.
        catalog: the J routings.
        sources: R.
    """

    def __init__(self, logits: Tensor, catalog: Catalog, sources: int) -> None:
        self.logits = logits
        self.coefficients = catalog.coefficients.to(logits)
        self.sources, self.experts = sources, catalog.coefficients.shape[-1] - sources

    def sites(self) -> Mapping[str, dist.Categorical]:
        return {CATALOG_SITE: dist.Categorical(logits=self.logits.unsqueeze(-2))}

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        rows = torch.multinomial(self.choice(), count, replacement=True, generator=generator)  # (B, K)
        return self.coefficients[rows.mT]

    @property
    def mean(self) -> Tensor:
        return self.choice() @ self.coefficients

    @property
    def mode(self) -> Tensor:
        return self.coefficients[self.logits.argmax(-1)]

    def top(self, k: int) -> tuple[Tensor, Tensor]:
        """The k most probable routings, their probabilities renormalised."""
        probabilities, rows = self.choice().topk(min(k, self.logits.shape[-1]), dim=-1)
        return self.coefficients[rows.mT], (probabilities / probabilities.sum(-1, keepdim=True)).mT

    def log_prob(self, coefficients: Tensor) -> Tensor:
        same = torch.isclose(coefficients.unsqueeze(-2), self.coefficients).all(-1)  # (*k, B, J)
        return torch.where(same, self.logits.log_softmax(-1), -torch.inf).logsumexp(-1)

    def choice(self) -> Tensor:
        return self.logits.softmax(-1)


def _keep_largest(weights: Tensor, k: int) -> Tensor:
    if weights.shape[-1] <= k:
        return weights
    kept = torch.zeros_like(weights).scatter(-1, weights.topk(k, dim=-1).indices, 1.0) * weights
    return kept / kept.sum(-1, keepdim=True)
