r"""Aligned source: one universal network and a linear map of its features, fitted to the support of each task.

.. math::
    \min_A \frac1n \sum_i -\log \mathrm{softmax}_k\left(s \, \mathrm{sim}(A f(x_i), p_k)\right)_{y_i}, \qquad
    p_k = \frac{1}{n_k} \sum_{i: y_i = k} A f(x_i)

by gradient steps from the identity. Source: Li, Liu and Bilen 2021, "Universal Representation Learning from Multiple
Domains for Few-shot Classification" (URL), section 3.3; there the network is distilled from one for each domain, here
it is the source that is named: a generalist, or a network distilled from the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.inference.evaluation.baselines.baseline import Baseline, ComposedLibrary
from pyro_smat.inference.evaluation.baselines.sources_alone import SingleSource
from pyro_smat.networks.heads import Metric, compared, prototype_logits
from pyro_smat.registry import register


@register("baseline", "aligned_source")
@dataclass(frozen=True)
class AlignedSource(Baseline):
    r"""A source whose features are mapped linearly for each task before prototypes are compared.

    Gradients of A are sums of :math:`g_i f(x_i)^\top` with :math:`g_i` in the span of the support's features too, so A
    stays the identity outside that span and is found in its coordinates: exactly the same steps at the cost of an
    n x n matrix in place of f x f.

    Attributes:
        source: its name; None is source 0, the fallback.
        steps: gradient steps, at least 0.
        learning_rate: > 0.

    Raises:
        ValueError: for settings outside these ranges, or a name that is no source.
    """

    composed: ComposedLibrary
    source: str | None = None
    steps: int = 40
    learning_rate: float = 0.05

    def __post_init__(self) -> None:
        SingleSource(self.composed, self.source)  # refuses a name that is none
        if self.steps < 0 or not 0 < self.learning_rate < math.inf:
            raise ValueError(
                f"steps is {self.steps} and learning_rate {self.learning_rate}; expected at least 0 and a number > 0"
            )

    @property
    def name(self) -> str:  # type: ignore[override]  # read only here: it says which source
        return f"{SingleSource(self.composed, self.source).name}, aligned"

    @torch.no_grad()
    def __call__(self, batch: EpisodeBatch) -> Tensor:
        support, query = SingleSource(self.composed, self.source).features(batch)
        logits = aligned_logits(
            support, query, batch, self.composed.scale, self.composed.metric, self.steps, self.learning_rate
        )
        return logits.softmax(-1)


def aligned_logits(
    support: Tensor,
    query: Tensor,
    batch: EpisodeBatch,
    scale: float,
    metric: Metric,
    steps: int,
    learning_rate: float,
) -> Tensor:
    """Logits ``(B, Q, W)`` of the queries after the map is fitted.

    Args:
        support, query: features ``(B, S, f)`` and ``(B, Q, f)``.
        batch: labels and masks.
        scale, metric: of the prototype head.
        steps, learning_rate: of gradient descent on the mean loss of each task.
    """
    support, query = compared(support, metric), compared(query, metric)
    metric = "euclidean" if metric == "euclidean" else "cosine"  # the map moves what is compared
    mask, width = batch.support.mask, support.shape[-1]
    basis, triangle = torch.linalg.qr(support.masked_fill(~mask.unsqueeze(-1), 0.0).mT)  # (B, f, m), (B, m, S)
    known = triangle.mT
    asked = query @ basis
    outside = (query.square().sum(-1) - asked.square().sum(-1)).clamp(min=0).sqrt().unsqueeze(-1)
    if metric == "euclidean":  # its distance is per feature, and there are fewer here
        scale = scale * (known.shape[-1] + 1) / width

    def logits(change: Tensor, points: Tensor, beyond: Tensor) -> Tensor:
        """Of points that have a component ``beyond`` the span, which is that of no shot."""
        shots = torch.cat([known + known @ change.mT, torch.zeros_like(known[..., :1])], -1)
        moved = torch.cat([points + points @ change.mT, beyond], -1)
        return prototype_logits(shots, batch.support.labels, mask, moved, batch.class_mask, scale, metric)

    change = known.new_zeros(len(known), basis.shape[-1], basis.shape[-1])  # A = I + basis change basis'
    count = mask.sum(-1, keepdim=True).clamp(min=1)
    for _ in range(steps):
        with torch.enable_grad():
            leaf = change.requires_grad_()
            scores = logits(leaf, known, torch.zeros_like(known[..., :1])).log_softmax(-1)
            own = scores.gather(-1, batch.support.labels.unsqueeze(-1)).squeeze(-1)
            (gradient,) = torch.autograd.grad(-(own * mask / count).sum(), leaf)
        change = change.detach() - learning_rate * gradient
    return logits(change, asked, outside)
