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

import torch
from torch import Tensor

from pyro_smat.networks.heads import LeaveOneOut, Metric

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
        alone: which shots have a class of their own, ``(*b, S)``, or broadcastable.
    """

    trust: Tensor
    evidence: Tensor
    label_noise: Tensor
    alone: Tensor


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
    trust, log_classes = mask.to(features.dtype), class_mask.sum(-1, keepdim=True).clamp(min=1).to(features.dtype).log()
    shots = trust.sum(-1, keepdim=True)
    noise = torch.full_like(shots, label_noise)
    pairs = LeaveOneOut(features, labels, mask, class_mask, metric)
    with torch.no_grad():  # at the fixed point the trust is what it is, whatever moves it
        without = log_classes.masked_fill(~mask, -torch.inf)  # log odds of a label at even noise, less its likelihood
        share = 1 / (shots + STRENGTH)  # of a shot in the posterior mean of the noise
        most = share * (shots + STRENGTH * label_noise)
        for _ in range(STEPS if label_noise else 0):
            odds = (pairs.log_likelihood(trust, scale) + (without - noise.logit())).sigmoid()
            trust = torch.lerp(trust.expand_as(odds), odds, 0.5)
            noise = torch.addcmul(most, share, odds.sum(-1, keepdim=True), value=-1).clamp(LEAST_NOISE, MOST_NOISE)
    evidence = pairs.log_likelihood(trust, scale)
    if label_noise:
        evidence = torch.logaddexp(evidence + torch.log1p(-noise), noise.log() - log_classes)
    leading = features.shape[:-1]
    return ShotTrust(trust.expand(leading), evidence, noise.squeeze(-1).expand(leading[:-1]), pairs.alone)
