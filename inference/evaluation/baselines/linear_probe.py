r"""Linear probe: multinomial logistic regression with ridge on the frozen features of the best source, task by task.

.. math::
    \min_V \frac{1}{n} \sum_i -\log \mathrm{softmax}(V \tilde f_i)_{y_i} + \frac{\mu}{2} \|V\|^2, \qquad
    \tilde f = (f, 1)

Convex, solved to convergence by damped Newton steps for all episodes of a batch at once, in the span of the support's
features: the optimum lies there, and that span has no more dims than there are shots.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.float64 import in_float64
from pyro_smat.inference.evaluation.baselines.baseline import Baseline, network_of
from pyro_smat.networks.heads import compared
from pyro_smat.registry import register

HALVINGS = 12  # of a Newton step that does not lower the objective


@register("baseline", "linear_probe")
@dataclass(frozen=True)
class LinearProbe(Baseline):
    """A logistic regression on the features of another baseline's networks.

    Features are scaled to length 1 where the head compares by cosine, so that the ridge means the same for all sources.
    The bias is penalised like the weights: a class whose shots are all mislabelled keeps finite logits.

    Attributes:
        start: gives the networks.
        ridge: mu > 0.
        steps: Newton steps, at least 1; 20 bring the gradient below 1e-8 at ridge 1e-3 and above.
    """

    start: Baseline
    ridge: float = 0.01
    steps: int = 20
    name: str = "linear probe of the best source"

    def __post_init__(self) -> None:
        network_of(self.start, self.name)
        if not self.ridge > 0 or self.steps < 1:
            raise ValueError(f"ridge is {self.ridge} and steps {self.steps}; expected above 0 and at least 1")

    @torch.no_grad()
    def __call__(self, batch: EpisodeBatch) -> Tensor:
        start = network_of(self.start, self.name)
        composed = start.composed
        parts = start.features(batch)
        features = in_float64(compared(torch.cat(parts, dim=1), composed.metric))
        if composed.metric != "euclidean":
            features = F.normalize(features, dim=-1)
        features = F.pad(features, (0, 1), value=1.0)
        support, queries = features.split([part.shape[1] for part in parts], dim=1)
        classes = batch.class_mask
        weights = fit_logistic(support, batch.support.labels, batch.support.mask, classes, self.ridge, self.steps)
        logits = (queries @ weights.mT).masked_fill(~classes.unsqueeze(1), -1e4)
        return logits.softmax(-1).to(composed.sources.dtype)


def fit_logistic(x: Tensor, labels: Tensor, mask: Tensor, class_mask: Tensor, ridge: float, steps: int = 20) -> Tensor:
    """Weights ``(B, W, f)`` of B multinomial logistic regressions.

    Args:
        x: ``(B, n, f)`` float64.
        labels: ``(B, n)`` in [0, W).
        mask: ``(B, n)`` bool, True for the points that count.
        class_mask: ``(B, W)`` bool, True for the classes that a task has; weights of others are 0.
        ridge: mu > 0, of the objective that averages over points.
        steps: Newton steps.
    """
    basis, triangle = torch.linalg.qr(torch.where(mask.unsqueeze(-1), x, 0.0).mT)  # (B, f, m), (B, m, n)
    z = triangle.mT  # coordinates of the points in an orthonormal basis of their span
    share = mask.to(x.dtype) / mask.sum(-1, keepdim=True)
    target = F.one_hot(labels, class_mask.shape[-1]).to(x.dtype)
    tasks, _, width = z.shape
    ways = class_mask.shape[-1]
    weights = z.new_zeros(tasks, ways, width)
    identity = torch.eye(ways * width, dtype=z.dtype, device=z.device)

    def log_probabilities(v: Tensor) -> Tensor:
        return (z @ v.mT).masked_fill(~class_mask.unsqueeze(1), -1e4).log_softmax(-1)

    def objective(v: Tensor) -> Tensor:
        fit = -(log_probabilities(v) * target).sum(-1) * share
        return fit.sum(-1) + 0.5 * ridge * v.square().sum((-2, -1))

    value = objective(weights)
    for _ in range(steps):
        p = log_probabilities(weights).exp()
        gradient = ((p - target) * share.unsqueeze(-1)).mT @ z + ridge * weights
        spread = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)  # (B, n, W, W)
        hessian = torch.einsum("bn,bnjk,bnx,bny->bjxky", share, spread, z, z).reshape(tasks, ways * width, -1)
        direction = torch.linalg.solve(hessian + ridge * identity, gradient.flatten(1)).view_as(weights)
        size = z.new_ones(tasks)
        for _ in range(HALVINGS):
            higher = objective(weights - size[:, None, None] * direction) > value
            if not higher.any():
                break
            size = torch.where(higher, size / 2, size)
        trial = weights - size[:, None, None] * direction
        moved = objective(trial)
        lower = moved < value
        weights, value = torch.where(lower[:, None, None], trial, weights), torch.where(lower, moved, value)
    return weights @ basis.mT
