"""What the sources can do on their own: baselines, and the reference of regret.

From cached features of support and queries, without running a network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.inference.objective.losses import EpisodeLoss, as_episode_loss, points_of
from pyro_smat.networks.features import SourceFeatures
from pyro_smat.networks.heads import Metric, leave_one_out_loss, prototype_logits
from pyro_smat.registry import Choice

PRETRAINED_SCALE = 10.0


def source_logits(
    features: SourceFeatures, batch: EpisodeBatch, scale: Tensor | float = PRETRAINED_SCALE, metric: Metric = "cosine"
) -> Tensor:
    """Logits of every source by itself, ``(B, R, Q, W)``."""
    support = batch.support.features if batch.known is features else None  # attached
    if support is None:
        support = features.of(batch.support.images, batch.support.rows)
    queries = features.of(batch.query.images, batch.query.rows, batch.query.mask)
    dtype = torch.promote_types(support.dtype, torch.float32)
    return prototype_logits(
        support.to(dtype),
        batch.support.labels.unsqueeze(1),
        batch.support.mask.unsqueeze(1),
        queries.to(dtype),
        batch.class_mask.unsqueeze(1),
        scale,
        metric,
    )


def support_losses(batch: EpisodeBatch, metric: Metric = "cosine") -> Tensor:
    """Leave-one-out support loss of every source, ``(B, R)`` in nats: choosing its minimum is the strong baseline.

    From the features of the support that :meth:`SourceFeatures.attach` put into the batch.
    """
    if batch.support.features is None:
        raise ValueError("the support has no features; call SourceFeatures(...).attach(batch) first")
    features = batch.support.features
    return leave_one_out_loss(
        features.to(torch.promote_types(features.dtype, torch.float32)),
        batch.support.labels.unsqueeze(1),
        batch.support.mask.unsqueeze(1),
        batch.class_mask.unsqueeze(1),
        PRETRAINED_SCALE,
        metric,
    )


class SourceReference:
    """Reference loss of every episode for regret: the best source in hindsight, or the fallback.

    Args:
        features: of the pool that episodes come from.
        kind: "best_source" takes the minimum over the R sources of the query loss; "fallback" the loss of source 0.
        episode_loss: of the objective: a name, a table of a config, or a loss of one's own.
        metric: of the prototypes at scale 10 that a source classifies by, whatever head the model has.

    Raises:
        ValueError: for another kind, or an unknown episode loss.

    Example:
        >>> from pyro_smat import EpisodeSampler, SourceFeatures, SourceLibrary, TaskNetwork, glyph_pool
        >>> from pyro_smat.sources.pretraining import glyph_network, shipped_glyph_sources
        >>> network, files = glyph_network(), shipped_glyph_sources()
        >>> library = SourceLibrary.from_files(network, files)
        >>> features = SourceFeatures(TaskNetwork(network, library.space), library.basis)
        >>> reference = SourceReference(features, "best_source")  # for CVaR_ELBO(reference=reference)
        >>> reference(EpisodeSampler(glyph_pool("validation"), 3, 2, 1).sample(4)).shape
        torch.Size([4])
    """

    def __init__(
        self,
        features: SourceFeatures,
        kind: str = "best_source",
        *,
        episode_loss: str | Mapping[str, Any] | Choice | EpisodeLoss = "nll",
        metric: Metric = "cosine",
    ) -> None:
        if kind not in ("best_source", "fallback"):
            raise ValueError(f"reference is {kind!r}; expected 'best_source' or 'fallback'")
        self.features, self.kind, self.metric = features, kind, metric
        self.episode_loss = as_episode_loss(episode_loss)

    def __call__(self, batch: EpisodeBatch) -> Tensor:
        """``(B,)``, in the units of the episode loss."""
        logits = source_logits(self.features, batch, metric=self.metric)  # (B, R, Q, W)
        labels, mask = (part.unsqueeze(1).expand(logits.shape[:-1]) for part in (batch.query.labels, batch.query.mask))
        known = Categorical(logits=logits, validate_args=False)  # the model has looked at the labels
        points = points_of(self.episode_loss, known, labels, mask, inner=(-1,))
        losses = points.sum(-1)  # (B, R)
        return losses.amin(1) if self.kind == "best_source" else losses[:, 0]


def query_losses(logits: Tensor, batch: EpisodeBatch) -> Tensor:
    """Mean cross-entropy of the queries of every episode, ``(B, *k)`` in nats, from logits ``(B, *k, Q, W)``."""
    extra = (1,) * (logits.ndim - 3)
    labels = batch.query.labels.view(len(batch), *extra, -1).expand(logits.shape[:-1])
    mask = batch.query.mask.view(len(batch), *extra, -1).expand(logits.shape[:-1])
    losses = -torch.gather(logits.log_softmax(-1), -1, labels.unsqueeze(-1)).squeeze(-1) * mask
    return losses.sum(-1) / mask.sum(-1).clamp(min=1)
