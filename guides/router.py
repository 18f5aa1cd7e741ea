"""The network under the guides, and the base class that turns its posterior into Pyro sample sites.

support features -> source evidence -> logits of sources and experts -> posterior -> pyro.sample.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import pyro
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_smat.encoders import SourceEncoder, source_evidence
from pyro_smat.episodes import EpisodeBatch
from pyro_smat.guides.posterior import RoutingPosterior
from pyro_smat.local_module import LocalModule


class RouterNetwork(nn.Module):
    """Support features -> location and scale of the logits of R sources and M experts.

    A source is scored from its own evidence in the context of the others, by one network for all (equivariant in the
    sources), starting from the negative leave-one-out loss: before any training the router already prefers the
    source that explains the support best. Experts are scored from a pooled view of all sources.

    Args:
        sources: R.
        experts: M.
        hidden: width.
        trust: initial weight of the leave-one-out loss, in logits per nat of normalised loss.
        scale: initial deviation of the logits.
    """

    def __init__(self, sources: int, experts: int, hidden: int = 64, trust: float = 8.0, scale: float = 1.0) -> None:
        super().__init__()
        self.sources, self.experts = sources, experts
        self.encoder = SourceEncoder(hidden)
        self.source_head = nn.Linear(hidden, 2)
        self.trust = nn.Parameter(torch.tensor(float(trust)))
        initial = torch.tensor(float(scale)).expm1().log()
        with torch.no_grad():
            self.source_head.weight.mul_(0.1)
            self.source_head.bias.copy_(torch.stack([torch.zeros(()), initial]))
        if not experts:
            return
        self.identity = nn.Parameter(torch.randn(sources, hidden, generator=torch.Generator().manual_seed(0)) * 0.1)
        self.expert_head = nn.Sequential(nn.Linear(2 * hidden, hidden), nn.GELU(), nn.Linear(hidden, 2 * experts))
        last = self.expert_head[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            last.weight.mul_(0.1)
            last.bias.zero_()
            last.bias[experts:] = initial

    def embed(self, batch: EpisodeBatch) -> tuple[Tensor, Tensor]:
        """Embedding ``(B, R, h)`` and leave-one-out loss ``(B, R)`` of the sources.

        Raises:
            ValueError: when the batch has no support features.
        """
        if batch.support_features is None:
            raise ValueError("the batch has no support_features; call SourceFeatures(...).attach(batch) first")
        evidence = source_evidence(batch.support_features, batch.support_labels, batch.support_mask, batch.class_mask)
        return self.encoder(evidence, batch.support_mask.sum(-1)), evidence[..., 0]

    def forward(self, batch: EpisodeBatch) -> tuple[Tensor, Tensor]:
        """Location and scale, each ``(B, R + M)``."""
        return self.locate(*self.embed(batch))

    def locate(self, embedding: Tensor, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Location and scale from what :meth:`embed` returns."""
        location, raw_scale = self.source_head(embedding).unbind(-1)
        location = location - self.trust * loss
        if self.experts:
            pooled = [embedding.mean(1), location.softmax(-1) @ self.identity]
            expert_location, expert_scale = self.expert_head(torch.cat(pooled, dim=-1)).chunk(2, dim=-1)
            location, raw_scale = torch.cat([location, expert_location], -1), torch.cat([raw_scale, expert_scale], -1)
        return location, F.softplus(raw_scale) + 1e-3


class RoutingGuide(LocalModule):
    """A guide is a posterior and the sites it samples; families implement :meth:`posterior` alone."""

    @abstractmethod
    def posterior(self, batch: EpisodeBatch) -> RoutingPosterior:
        """q(c | S) for the episodes of a batch."""

    infer: ClassVar[dict[str, str]] = {}

    def forward(self, batch: EpisodeBatch) -> dict[str, Tensor]:
        """Sample the routing sites inside the "episodes" plate."""
        posterior = self.posterior(batch)
        with pyro.plate("episodes", len(batch), dim=-2):
            return {
                site: pyro.sample(site, distribution, infer=dict(self.infer))
                for site, distribution in posterior.sites().items()
            }
