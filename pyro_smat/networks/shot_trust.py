r"""Shot trust: which labels of a support are right, inferred with the prototypes that they make.

Every shot has a latent :math:`z_i`, 1 where its label is right:

.. math::
    z_i \sim \mathrm{Bernoulli}(1 - \varepsilon), \qquad
    y_i \mid z_i = 1 \sim \mathrm{softmax}(s \cdot \mathrm{sim}(f_i, p^{(-i)})), \qquad
    y_i \mid z_i = 0 \sim \mathrm{Uniform}(W)

and the prototypes :math:`p_k` are means of the shots weighted by :math:`\rho_i = q(z_i = 1)`, leaving shot i out where
it is scored. Mean-field updates find the :math:`\rho`. The prototype of a class with one shot is this shot, however
far it is trusted.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F

from pyro_smat.networks.heads import Metric, leave_one_out_logits

STEPS = 4  # damped by a half; more change little


def shot_trust(
    features: Tensor,
    labels: Tensor,
    mask: Tensor,
    class_mask: Tensor,
    label_noise: float,
    scale: Tensor | float = 10.0,
    metric: Metric = "cosine",
) -> Tensor:
    r"""Probability :math:`\rho_i` that the label of a shot is right, ``(*b, S)``; 0 where masked.

    Args:
        features: ``(*b, S, f)``.
        labels: ``(*b, S)``, or broadcastable to it.
        mask: ``(*b, S)`` bool, likewise.
        class_mask: ``(*b, W)`` bool, likewise.
        label_noise: :math:`\varepsilon` in (0, 1), the share of labels that may be wrong before any evidence.
        scale: s > 0.
        metric: "cosine" or "euclidean".

    Raises:
        ValueError: for a label noise that is not in (0, 1).

    Example:
        >>> import torch
        >>> features = torch.tensor([[1.0, 0], [1, 0.1], [0.1, 1], [0, 1], [0.1, 1], [1, 0]])
        >>> labels = torch.tensor([0, 0, 0, 1, 1, 1])  # the third and the last belong to each other's class
        >>> trust = shot_trust(features, labels, labels >= 0, torch.ones(2, dtype=torch.bool), label_noise=0.3)
        >>> (trust > 0.5).tolist()
        [True, True, False, True, True, False]
    """
    if not 0 < label_noise < 1:
        raise ValueError(f"label_noise is {label_noise}; expected a share of labels between 0 and 1, both excluded")
    trust = mask.expand(features.shape[:-1]).to(features.dtype)
    for _ in range(STEPS):
        log_odds = _log_odds(features, labels, mask, class_mask, label_noise, scale, metric, trust)
        trust = (trust + log_odds.sigmoid()) / 2 * mask
    return trust


def shot_evidence(
    features: Tensor,
    labels: Tensor,
    mask: Tensor,
    class_mask: Tensor,
    label_noise: float,
    scale: Tensor | float = 10.0,
    metric: Metric = "cosine",
) -> Tensor:
    r"""Log likelihood of every label given the other shots, allowing for wrong ones, ``(*b, S)`` in nats.

    .. math:: \log\left((1 - \varepsilon)\, p(y_i \mid x_i, S_{-i}) + \varepsilon / W\right)

    With prototypes of trusted shots; at least :math:`\log(\varepsilon / W)`. Arguments as of :func:`shot_trust`, but a
    label noise of 0 is the plain leave-one-out log likelihood.
    """
    if label_noise == 0:
        logits = leave_one_out_logits(features, labels, mask, class_mask, scale, metric)
        return logits.log_softmax(-1).gather(-1, labels.expand(logits.shape[:-1]).unsqueeze(-1)).squeeze(-1)
    trust = shot_trust(features, labels, mask, class_mask, label_noise, scale, metric)
    log_odds = _log_odds(features, labels, mask, class_mask, label_noise, scale, metric, trust)
    ways = class_mask.sum(-1, keepdim=True).clamp(min=1).to(log_odds)
    return math.log(label_noise) - ways.log() + F.softplus(log_odds)


def _log_odds(
    features: Tensor,
    labels: Tensor,
    mask: Tensor,
    class_mask: Tensor,
    label_noise: float,
    scale: Tensor | float,
    metric: Metric,
    trust: Tensor,
) -> Tensor:
    """Log odds ``(*b, S)`` of a right label, under prototypes of so trusted shots."""
    logits = leave_one_out_logits(features, labels, mask, class_mask, scale, metric, trust)
    own = labels.expand(logits.shape[:-1]).unsqueeze(-1)
    right = logits.log_softmax(-1).gather(-1, own).squeeze(-1)
    ways = class_mask.sum(-1, keepdim=True).clamp(min=1).to(right)
    return right + math.log1p(-label_noise) - math.log(label_noise) + ways.log()
