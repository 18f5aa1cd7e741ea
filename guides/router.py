"""The network under the guides, and the base class that turns its posterior into Pyro sample sites.

support features -> encoder -> logits of sources and experts -> posterior -> pyro.sample.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_smat.encoders import Encoding, EvidenceEncoder, SupportEncoder
from pyro_smat.episodes import EpisodeBatch
from pyro_smat.guides.announced import announce
from pyro_smat.guides.posterior import RoutingPosterior
from pyro_smat.models.priors import LogisticNormalPrior, RoutingPrior
from pyro_smat.registry import Remembered
from pyro_smat.routing.local_module import LocalModule


@dataclass(frozen=True)
class RoutingLogits:
    """What a router says of the logits of R sources and M experts.

    Attributes:
        location: ``(B, C)``, or ``(B, L, C)`` with blocks.
        raw_scale: likewise, before it is made positive.
        factor: ``(B, [L,] C, k)``, columns of a covariance; k may be 0.
        embedding: ``(B, R, h)`` of the sources.
    """

    location: Tensor
    raw_scale: Tensor
    factor: Tensor
    embedding: Tensor

    @property
    def scale(self) -> Tensor:
        """Standard deviations, like ``location``."""
        return F.softplus(self.raw_scale) + 1e-3

    @property
    def summary(self) -> Tensor:
        """``(B, 2 h)``, the whole support at a glance."""
        location = self.location[..., : self.embedding.shape[1]]
        return _summary(self.embedding, location if location.ndim == 2 else location.mean(1))


def _summary(embedding: Tensor, location: Tensor) -> Tensor:
    """``(B, 2 h)`` from embeddings ``(B, R, h)``: their mean, and their mean under logits ``(B, R)``."""
    chosen = location.softmax(-1).unsqueeze(1) @ embedding
    return torch.cat([embedding.mean(1), chosen.squeeze(1)], dim=-1)


class RouterNetwork(nn.Module):
    """Support features -> location, scale and covariance columns of the logits of R sources and M experts.

    A source is scored from its own embedding in the context of the others, by one network for all (equivariant in the
    sources), on top of the encoder's head start: with source evidence the router prefers, before any training, the
    source that explains the support best. Experts are scored from a pooled view of all sources.

    Args:
        num_sources: R.
        num_experts: M.
        num_blocks: L.
        encoder: of the support; default :class:`~pyro_smat.encoders.EvidenceEncoder`.
        columns: k of the factor.
        scale: initial standard deviation of the logits.
    """

    def __init__(
        self,
        num_sources: int,
        num_experts: int = 0,
        *,
        num_blocks: int = 1,
        encoder: SupportEncoder | None = None,
        columns: int = 0,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.num_sources, self.num_experts, self.num_blocks, self.columns = (
            num_sources,
            num_experts,
            num_blocks,
            columns,
        )
        self.encoder = EvidenceEncoder() if encoder is None else encoder
        width = self.encoder.hidden
        outputs = 2 + columns
        initial = torch.zeros(outputs)
        initial[1] = torch.tensor(float(scale)).expm1().log()
        self.source_head = nn.Linear(width, num_blocks * outputs)
        with torch.no_grad():
            self.source_head.weight.mul_(0.1)
            self.source_head.bias.copy_(initial.repeat(num_blocks))
        if not num_experts:
            return
        last = nn.Linear(width, num_blocks * num_experts * outputs)
        self.expert_head = nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), last)
        with torch.no_grad():
            last.weight.mul_(0.1)
            last.bias.copy_(initial.repeat(num_blocks * num_experts))

    def encode(self, batch: EpisodeBatch) -> Encoding:
        """The encoder's view of the support.

        Raises:
            ValueError: when the batch has no support features.
        """
        if batch.support.features is None:
            raise ValueError("the support has no features; call SourceFeatures(...).attach(batch) first")
        return self.encoder(batch.support.features, batch.support.labels, batch.support.mask, batch.class_mask)

    def forward(self, batch: EpisodeBatch) -> RoutingLogits:
        """The logits of a batch's episodes."""
        return self.locate(self.encode(batch))

    def locate(self, encoding: Encoding) -> RoutingLogits:
        """The logits from what :meth:`encode` returns."""
        embedding, score = encoding.embedding, encoding.score
        shape = (self.num_blocks, 2 + self.columns)
        values = self.source_head(embedding).unflatten(-1, shape).movedim(2, 1)  # (B, L, R, 2 + k)
        location = values[..., 0] + score.unsqueeze(1)
        rest = values[..., 1:]
        if self.num_experts:
            of_experts = self.expert_head(_summary(embedding, location.mean(1)))
            of_experts = of_experts.unflatten(-1, (self.num_blocks, self.num_experts, 2 + self.columns))
            location = torch.cat([location, of_experts[..., 0]], dim=-1)
            rest = torch.cat([rest, of_experts[..., 1:]], dim=-2)
        if self.num_blocks == 1:
            location, rest = location.squeeze(1), rest.squeeze(1)
        return RoutingLogits(location, rest[..., 0], rest[..., 1:], embedding)


class RoutingGuide(Remembered, LocalModule):
    """A guide is a posterior and the sites it samples; families implement :meth:`posterior` alone.

    Args:
        prior: where the posterior stands before any evidence: its log probabilities (catalog) or the logarithm of its
            mean weights (simplex) are added to what the network says, without gradient. The network then learns what
            the *support* says, alike for all sources, and a prior that treats them unlike is not lost on it. None
            treats all alike.
    """

    prior_family: ClassVar[type[RoutingPrior]] = LogisticNormalPrior  # what "uniform" and "cost_aware" mean for it

    def __init__(self, prior: RoutingPrior | None = None) -> None:
        super().__init__()
        self._prior = (prior,)  # in a tuple: the prior is the model's, its parameters are not the guide's

    @property
    def prior(self) -> RoutingPrior | None:
        """The prior on which the posterior builds."""
        return self._prior[0]

    @abstractmethod
    def posterior(self, batch: EpisodeBatch) -> RoutingPosterior:
        """q(c | S) for the episodes of a batch."""

    @property
    def infer(self) -> Mapping[str, str]:
        """What Pyro is told of the sites, e.g. to enumerate them."""
        return {}

    def sites(self, posterior: RoutingPosterior) -> Mapping[str, dist.TorchDistribution]:
        """The distributions to sample; a family may relax those of its posterior in training."""
        return posterior.sites()

    def forward(self, batch: EpisodeBatch) -> dict[str, Tensor]:
        """Sample the routing sites inside the "episodes" plate; :class:`~pyro_smat.guides.announced.Heard` hears the
        posterior."""
        sites = self.sites(announce(self.posterior(batch)))
        with pyro.plate("episodes", len(batch), dim=-2):
            return {
                name: pyro.sample(name, distribution, infer=dict(self.infer)) for name, distribution in sites.items()
            }

    def prior_logits(self, like: Tensor) -> Tensor | float:
        """What the prior adds to the logits of a routing ``(J,)``, or of every weight ``([L,] C)``."""
        if self.prior is None:
            return 0.0
        with torch.no_grad():
            return self.prior.base_logits().to(like)

    def anneal(self, progress: float) -> None:
        """Called by the trainer with the share of training that is done, 0 to 1; relaxed families cool down."""
