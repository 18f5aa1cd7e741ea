"""Catalog routing: an amortised categorical over a finite catalog of routings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, Literal, Self

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_smat.encoders import SupportEncoder
from pyro_smat.episodes import EpisodeBatch
from pyro_smat.guides.posterior import RoutingPosterior
from pyro_smat.guides.router import RouterNetwork, RoutingGuide
from pyro_smat.models.priors import CatalogPrior, RoutingPrior
from pyro_smat.registry import register
from pyro_smat.routing import CATALOG_SITE, Catalog
from pyro_smat.routing.distributions.catalog import CatalogCategorical, RelaxedCatalog

Estimator = Literal["enumerate", "gumbel_softmax", "straight_through", "score_function"]
ESTIMATORS: tuple[Estimator, ...] = ("enumerate", "gumbel_softmax", "straight_through", "score_function")
ENUMERATION_LIMIT = 256


class CatalogPosterior(RoutingPosterior):
    """A categorical over the rows of a catalog.

    Args:
        logits: ``(B, J)``.
        catalog: the J routings.
        num_sources: R.
    """

    def __init__(self, logits: Tensor, catalog: Catalog, *, num_sources: int) -> None:
        self.logits = logits
        self.coefficients = catalog.coefficients.to(logits, non_blocking=True)  # (J, [L,] C)
        self.num_sources, self.num_experts = num_sources, self.coefficients.shape[-1] - num_sources
        self.num_blocks = self.coefficients.shape[1] if self.coefficients.ndim == 3 else 1

    def __getitem__(self, episodes: slice | Sequence[int]) -> Self:
        part = copy(self)
        part.logits = self.logits[episodes]
        return part

    def sites(self) -> Mapping[str, dist.TorchDistribution]:
        return {CATALOG_SITE: CatalogCategorical(self.logits.unsqueeze(-2))}

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        rows = torch.multinomial(self.routing_probabilities(), count, replacement=True, generator=generator)  # (B, K)
        return self.coefficients[rows.mT]

    @property
    def mean(self) -> Tensor:
        return torch.tensordot(self.routing_probabilities(), self.coefficients, 1)

    @property
    def mode(self) -> Tensor:
        return self.coefficients[self.logits.argmax(-1)]

    def top(self, k: int) -> tuple[Tensor, Tensor]:
        """The k most probable routings, their probabilities renormalised."""
        probabilities, rows = self.routing_probabilities().topk(min(k, self.logits.shape[-1]), dim=-1)
        return self.coefficients[rows.mT], (probabilities / probabilities.sum(-1, keepdim=True)).mT

    def log_prob(self, coefficients: Tensor) -> Tensor:
        event = 2 if self.num_blocks > 1 else 1
        same = torch.isclose(coefficients.unsqueeze(-1 - event), self.coefficients)  # (*k, B, J, [L,] C)
        same = same.flatten(-event).all(-1)
        return torch.where(same, self.logits.log_softmax(-1), -torch.inf).logsumexp(-1)

    def mutual_information(self, draws: int = 32, generator: torch.Generator | None = None) -> float:
        entropy, choice = torch.special.entr, self.routing_probabilities()
        return float(entropy(choice.mean(0)).sum() - entropy(choice).sum(-1).mean())

    def routing_probabilities(self) -> Tensor:
        return self.logits.softmax(-1)


@register("guide", "catalog")
class CatalogGuide(RoutingGuide):
    r"""q(A | S) over the J routings of a catalog.

    A routing is scored from the embeddings of its members, weighted as the routing weights them, plus the mixture of
    their logits.

    Args:
        catalog: the J routings, ``(J, C)`` or blockwise ``(J, L, C)``.
        num_sources: R.
        prior: where the posterior stands before any evidence; routings that it forbids stay forbidden.
        encoder: of the support; default :class:`~pyro_smat.encoders.EvidenceEncoder`.
        estimator: of the gradient in training. "enumerate": every routing is run, expectations are exact (at most 256
            routings); "gumbel_softmax": one relaxed routing, a mixture of rows; "straight_through": one row, with the
            gradient of the relaxed one; "score_function": one row, see ``baseline`` of CVaR_ELBO. In evaluation mode
            the posterior is always the exact categorical.
        temperature: of the relaxations.

    Attributes:
        temperature_scale: T by which the posterior's logits are divided, 1 until it is fitted on held-out episodes
            (:func:`pyro_smat.inference.training.temperature_scaling.calibrate_guide`).

    Example:
        >>> from pyro_smat import EpisodeSampler, glyph_pool
        >>> batch = EpisodeSampler(glyph_pool("validation"), 3, 2, 1).sample(4)
        >>> batch = batch.with_features(torch.rand(4, 5, 6, 8))  # (B, R, S, f); SourceFeatures gives real ones
        >>> guide = CatalogGuide(Catalog.k_hot("abcde", max_sources=2), 5)
        >>> guide.posterior(batch).routing_probabilities().shape
        torch.Size([4, 15])
    """

    prior_family = CatalogPrior

    members: Tensor
    temperature_scale: Tensor

    def __init__(
        self,
        catalog: Catalog,
        num_sources: int,
        *,
        prior: RoutingPrior | None = None,
        encoder: SupportEncoder | None = None,
        estimator: Estimator = "enumerate",
        temperature: float = 0.5,
    ) -> None:
        super().__init__(prior)
        if estimator not in ESTIMATORS:
            raise ValueError(f"estimator is {estimator!r}; expected one of {ESTIMATORS}")
        if estimator == "enumerate" and len(catalog) > ENUMERATION_LIMIT:
            raise ValueError(
                f"the catalog has {len(catalog)} routings; exact enumeration takes at most {ENUMERATION_LIMIT}: use a "
                "smaller catalog (kind = 'greedy') or estimator='score_function' or 'gumbel_softmax'"
            )
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; expected > 0")
        self.catalog, self.num_sources, self.estimator, self.temperature = catalog, num_sources, estimator, temperature
        coefficients = catalog.coefficients
        num_blocks = coefficients.shape[1] if coefficients.ndim == 3 else 1
        num_experts = coefficients.shape[-1] - num_sources
        self.router = RouterNetwork(num_sources, num_experts, num_blocks=num_blocks, encoder=encoder)
        width = self.router.encoder.hidden
        generator = torch.Generator().manual_seed(1)
        self.expert_embedding = nn.Parameter(torch.randn(num_experts, width, generator=generator) * 0.1)
        self.score = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))
        if num_blocks > 1:
            self.block_gain = nn.Parameter(1 + 0.1 * torch.randn(num_blocks, 1, width, generator=generator))
        members = coefficients.unsqueeze(1) if num_blocks == 1 else coefficients
        self.register_buffer("members", members.clone(), persistent=False)
        self.register_buffer("temperature_scale", torch.ones(()))

    @classmethod
    def largest_catalog(cls, options: Mapping[str, Any]) -> int:
        """The most routings that a guide with these options can hold."""
        return ENUMERATION_LIMIT if options["estimator"] == "enumerate" else 4096

    def posterior(self, batch: EpisodeBatch) -> CatalogPosterior:
        embeddings, locations = self.member_views(batch)
        logits = self.scores(embeddings) + locations
        logits = logits + self.prior_logits(logits)
        return CatalogPosterior(logits / self.temperature_scale, self.catalog, num_sources=self.num_sources)

    def member_views(self, batch: EpisodeBatch) -> tuple[Tensor, Tensor]:
        """What the router says of a routing's sources and experts, mixed as the routing mixes them.

        Returns:
            embeddings ``(B, J, h)`` and logits ``(B, J)``.
        """
        router, members = self.router, self.members  # asked for once: Pyro is told of every parameter each time
        encoding = router.encode(batch)
        location = router.locate(encoding).location.reshape(len(batch), -1, members.shape[-1], 1)  # (B, L, C, 1)
        of_experts = self.expert_embedding.expand(len(batch), -1, -1)
        rows = torch.cat([encoding.embedding, of_experts], dim=1).unsqueeze(1)  # (B, 1, C, h)
        if router.num_blocks > 1:
            rows = rows * self.block_gain
        mixed = members.flatten(1) @ torch.cat([rows, location], dim=-1).flatten(1, 2) / router.num_blocks
        return mixed[..., :-1], mixed[..., -1]

    def scores(self, embeddings: Tensor) -> Tensor:
        """Logits ``(B, n)`` from embeddings ``(B, n, h)``."""
        return self.score(embeddings).squeeze(-1)

    def sites(self, posterior: RoutingPosterior) -> Mapping[str, dist.TorchDistribution]:
        exact = posterior.sites()
        if self.training and self.estimator in ("gumbel_softmax", "straight_through"):
            logits = exact[CATALOG_SITE].logits
            return {CATALOG_SITE: RelaxedCatalog(logits, self.temperature, self.estimator == "straight_through")}
        return exact

    @property
    def infer(self) -> Mapping[str, str]:
        """Enumerated, but where training estimates; a catalog too large to enumerate never is."""
        exact = self.estimator == "enumerate" or not (self.training or len(self.catalog) > ENUMERATION_LIMIT)
        return {"enumerate": "parallel"} if exact else {}
