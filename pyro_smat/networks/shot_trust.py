r"""Shot trust: which labels of a support are right, inferred with the prototypes that they make.

The share of wrong labels of a task and, for every shot, whether its label is right, are latent:

.. math::
    \varepsilon \sim \mathrm{Beta}(m \varepsilon_0, m (1 - \varepsilon_0)), \qquad
    z_i \sim \mathrm{Bernoulli}(1 - \varepsilon), \qquad
    y_i \sim \begin{cases} \mathrm{softmax}(s \cdot \mathrm{sim}(f_i, p^{(-i)})) & z_i = 1 \\
    \mathrm{Uniform}(W) & z_i = 0 \end{cases}

Prototypes :math:`p_k` are means of the shots weighted by :math:`\rho_i = q(z_i = 1)`, leaving shot i out where it is
scored. Mean-field updates find the :math:`\rho` and a point estimate of :math:`\varepsilon`, so that clean supports
stay as they are. The prototype of a class with one shot is this shot, however far it is trusted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_smat.networks.heads import NO_CLASS, Metric, compared, similarities_of_products

STRENGTH = 10.0  # m, shots that the expected share of wrong labels weighs
STEPS = 6  # damped by a half; more change little
LEAST_NOISE, MOST_NOISE = 1e-3, 0.9


@dataclass(frozen=True)
class ShotTrust:
    """What is inferred of a support.

    Attributes:
        trust: :math:`\\rho`, probability that the label of a shot is right, ``(*b, S)``; 0 where masked.
        evidence: :math:`\\log((1 - \\varepsilon) p(y_i \\mid x_i, S_{-i}) + \\varepsilon / W)` of every shot, in nats,
            ``(*b, S)``.
        label_noise: :math:`\\varepsilon`, ``(*b)``.
    """

    trust: Tensor
    evidence: Tensor
    label_noise: Tensor


def shot_trust(
    features: Tensor,
    labels: Tensor,
    mask: Tensor,
    class_mask: Tensor,
    label_noise: float,
    scale: Tensor | float = 10.0,
    metric: Metric = "cosine",
) -> ShotTrust:
    r"""Infer which labels are right.

    Args:
        features: ``(*b, S, f)``.
        labels: ``(*b, S)``, or broadcastable to it.
        mask: ``(*b, S)`` bool, likewise.
        class_mask: ``(*b, W)`` bool, likewise.
        label_noise: :math:`\varepsilon_0` in [0, 1), the share of wrong labels that is expected; 0 trusts every label.
        scale: s > 0.
        metric: "cosine", "euclidean" or "bhattacharyya".

    Raises:
        ValueError: for a label noise that is not in [0, 1).

    Example:
        >>> features = torch.tensor([[1.0, 0], [1, 0.1], [0.1, 1], [0, 1], [0.1, 1], [1, 0]])
        >>> labels = torch.tensor([0, 0, 0, 1, 1, 1])  # the third and the last belong to each other's class
        >>> found = shot_trust(features, labels, labels >= 0, torch.ones(2, dtype=torch.bool), label_noise=0.2)
        >>> (found.trust > 0.5).tolist()
        [True, True, False, True, True, False]
    """
    if not 0 <= label_noise < 1:
        raise ValueError(f"label_noise is {label_noise}; expected a share of labels in [0, 1)")
    leading = features.shape[:-1]
    labels, mask = labels.expand(leading), mask.expand(leading)
    real, classes = mask.to(features.dtype), class_mask.sum(-1, keepdim=True).clamp(min=1).to(features.dtype)
    shots = real.sum(-1)
    pairs = _Pairs(features, labels, mask, class_mask, metric)
    trust, noise = real, torch.full_like(shots, label_noise)
    with torch.no_grad():  # at the fixed point the trust is what it is, whatever moves it
        for _ in range(STEPS if label_noise else 0):
            odds = (pairs.right(trust, scale) + classes.log() + torch.logit(1 - noise).unsqueeze(-1)).sigmoid() * real
            trust = (trust + odds) / 2
            wrong = (real - odds).sum(-1)
            noise = ((STRENGTH * label_noise + wrong) / (STRENGTH + shots)).clamp(LEAST_NOISE, MOST_NOISE)
    evidence = pairs.right(trust, scale)
    if label_noise:
        share = noise.unsqueeze(-1)
        evidence = torch.logaddexp(evidence + torch.log1p(-share), share.log() - classes.log())
    return ShotTrust(trust, evidence, noise)


class _Pairs:
    """Leave-one-out log likelihoods from inner products of shots, S x S numbers in place of S x f for every step.

    The same as :func:`~pyro_smat.networks.heads.leave_one_out_logits` with weights.
    """

    def __init__(self, features: Tensor, labels: Tensor, mask: Tensor, class_mask: Tensor, metric: Metric) -> None:
        features = compared(features, metric)
        self.products = features @ features.mT  # (*b, S, S)
        self.squares = self.products.diagonal(dim1=-2, dim2=-1)
        self.similarity = partial(similarities_of_products, width=features.shape[-1], metric=metric)
        self.class_mask = class_mask
        self.labels = labels.unsqueeze(-1)
        self.is_own = F.one_hot(labels, class_mask.shape[-1]).to(features.dtype)  # (*b, S, W)
        counted = (self.is_own * mask.unsqueeze(-1)).sum(-2, keepdim=True)
        self.alone = (counted * self.is_own).sum(-1) < 2

    def right(self, weights: Tensor, scale: Tensor | float) -> Tensor:
        """Log likelihood ``(*b, S)`` of the labels, under prototypes of shots that weigh ``(*b, S)``."""
        members = self.is_own * weights.unsqueeze(-1)
        to_class, total = self.products @ members, weights.sum(-1, keepdim=True)  # f_i . P_k
        squares, counts = (members * to_class).sum(-2), members.sum(-2)  # |P_k|^2 and its weight, (*b, W)
        others = self.similarity(to_class, self.squares.unsqueeze(-1), squares.unsqueeze(-2), counts.unsqueeze(-2))
        own, own_squares, own_count = (
            (self.is_own * part).sum(-1) for part in (to_class, squares.unsqueeze(-2), counts.unsqueeze(-2))
        )
        left = own - weights * self.squares
        left_squares = own_squares - 2 * weights * own + weights.square() * self.squares
        to_all = (self.products * weights.unsqueeze(-2)).sum(-1)
        all_squares = (weights * to_all).sum(-1, keepdim=True).expand_as(to_all)
        centre = [
            torch.where(self.alone, of_all, of_left)
            for of_all, of_left in ((to_all, left), (all_squares, left_squares), (total, own_count - weights))
        ]
        mine = self.similarity(centre[0], self.squares, centre[1], centre[2]).unsqueeze(-1)
        logits = scale * torch.where(self.is_own.bool(), mine, others)
        logits = logits.masked_fill(~self.class_mask.unsqueeze(-2), NO_CLASS)
        return logits.log_softmax(-1).gather(-1, self.labels).squeeze(-1)
