r"""The head of a task: a classifier on features, fitted in closed form on the support.

*Prototypes* compare a query with the class means. A *mixture* also has a ridge regression
(:mod:`pyro_smat.networks.ridge`), which is better where classes overlap and worse where labels are wrong, so which of
the two is right is latent, with a posterior from what each says of shots that it has not seen:

.. math::
    p(y \mid x, S) = \sum_h q(h \mid S)\, p_h(y \mid x, S), \qquad
    q(\mathrm{ridge} \mid S) =
    \sigma\Bigl(\frac{e_\mathrm{ridge} - e_\mathrm{prototypes} - \varepsilon}{T}\Bigr), \qquad
    e_h = \frac1n \sum_i \log\Bigl((1 - \varepsilon)\, p_h(y_i \mid x_i, S_{-i}) + \frac{\varepsilon}{W}\Bigr)

with the share :math:`\varepsilon` of wrong labels of :mod:`pyro_smat.networks.shot_trust`, which is taken off the
ridge's evidence because it follows single shots. Shots that are alone in their class are no evidence; without any, both
heads count half.

*Transduction* lets the queries speak: the label of a query is latent, and queries are shots whose labels are
:math:`\pi_{jk} = p(y_j = k)` and which weigh :math:`\beta`. Damped mean-field updates find the :math:`\pi`; no query
helps to place the prototype that it is compared with, nor founds a class that has no shots. Predictions then depend on
which queries are asked together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_smat.networks.heads import (
    LEAST_WEIGHT,
    NO_CLASS,
    Metric,
    class_sums,
    compared,
    similarities,
    similarities_of_products,
)
from pyro_smat.networks.ridge import ridge_regression
from pyro_smat.networks.shot_trust import shot_trust

Classifier = Literal["prototypes", "mixture"]
CLASSIFIERS: tuple[Classifier, ...] = ("prototypes", "mixture")
PENALTY = 0.5  # lambda of the ridge
TEMPERATURE = 0.1  # T, nats per shot
LEAST_TRUST = 0.02  # of a shot in the ridge
STEPS = 5  # of transduction, damped by a half


@dataclass(frozen=True)
class HeadSettings:
    """What the head of a model is.

    Attributes:
        classifier: "prototypes", or "mixture" of prototypes and ridge regression.
        metric: "cosine", "euclidean" or "bhattacharyya"; the ridge regression takes the length of features away.
        label_noise: share of wrong labels that a support is expected to have, in [0, 1).
        transduction: :math:`\\beta` in [0, 1], what a query weighs beside a shot; 0 keeps queries apart.

    Raises:
        ValueError: for values outside of these.
    """

    classifier: Classifier = "prototypes"
    metric: Metric = "cosine"
    label_noise: float = 0.0
    transduction: float = 0.0

    def __post_init__(self) -> None:
        if self.classifier not in CLASSIFIERS:
            raise ValueError(f"classifier is {self.classifier!r}; expected one of {CLASSIFIERS}")
        if not 0 <= self.label_noise < 1:
            raise ValueError(f"label_noise is {self.label_noise}; expected a share of labels in [0, 1)")
        if not 0 <= self.transduction <= 1:
            raise ValueError(f"transduction is {self.transduction}; expected a weight of a query in [0, 1]")


@dataclass(frozen=True)
class SupportHead:
    """A head that is fitted; made by :func:`fit_head`.

    Attributes:
        settings: what it is.
        scale: of the prototypes' similarities, and of the ridge's outputs.
        class_mask: ``(*b, W)`` bool.
        sums: ``(*b, W, f)`` of the weighted shots of each class.
        counts: ``(*b, W)``, what they weigh.
        trust: ``(*b, S)``, how far each shot is trusted; 0 where there is none.
        rows: of the ridge: shots of length one ``(*b, S, f)``, their targets ``(*b, S, W)`` and weights ``(*b, S)``;
            None without.
        ridge: V ``(*b, W, f)``, or None.
        ridge_share: q(ridge | S) ``(*b)``, or None.
    """

    settings: HeadSettings
    scale: tuple[Tensor | float, Tensor | float]
    class_mask: Tensor
    sums: Tensor
    counts: Tensor
    trust: Tensor
    rows: tuple[Tensor, Tensor, Tensor] | None = None
    ridge: Tensor | None = None
    ridge_share: Tensor | None = None

    def logits(self, queries: Tensor, mask: Tensor | None = None) -> Tensor:
        """Class logits ``(*b, Q, W)`` of features ``(*b, Q, f)``; -1e4 at classes that the episode does not have.

        Args:
            queries: of the queries that are asked together.
            mask: ``(*b, Q)`` bool, those that are real; matters to transduction only. None for all.
        """
        queries = compared(queries, self.settings.metric)
        centres = self.sums / self.counts.clamp(min=LEAST_WEIGHT).unsqueeze(-1)
        logits = self._present(self.scale[0] * similarities(queries, centres, self.settings.metric))
        shares = None
        if self.settings.transduction:
            logits, shares = self._with_queries(queries, logits, mask)
        if self.ridge is None or self.ridge_share is None:
            return logits
        share = self.ridge_share.unsqueeze(-1).unsqueeze(-1)
        ridge = self._present(self.scale[1] * self._ridge_outputs(F.normalize(queries, dim=-1), shares))
        mixed = torch.logaddexp(torch.log1p(-share) + logits.log_softmax(-1), share.log() + ridge.log_softmax(-1))
        return self._present(mixed)

    def _present(self, logits: Tensor) -> Tensor:
        return logits.masked_fill(~self.class_mask.unsqueeze(-2), NO_CLASS)

    def _with_queries(self, queries: Tensor, logits: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits with the other queries among the shots, and what each query weighs in each class ``(*b, Q, W)``."""
        weight = self.settings.transduction * (self.counts > LEAST_WEIGHT).unsqueeze(-2).to(queries.dtype)
        if mask is not None:
            weight = weight * mask.unsqueeze(-1)
        squares = queries.square().sum(-1, keepdim=True)
        with torch.no_grad():  # at the fixed point the labels of the others are what they are, whatever moves them
            shares = weight * logits.softmax(-1)
            for _ in range(STEPS):
                shares = (shares + weight * self._among(queries, squares, shares).softmax(-1)) / 2
        return self._among(queries, squares, shares), shares

    def _among(self, queries: Tensor, squares: Tensor, shares: Tensor) -> Tensor:
        """Logits against prototypes of shots and of all queries but the one that is asked."""
        sums, counts = self.sums + shares.mT @ queries, self.counts + shares.sum(-2)
        products, lengths = queries @ sums.mT, sums.square().sum(-1).unsqueeze(-2)
        similar = similarities_of_products(
            products - shares * squares,
            squares,
            lengths - 2 * shares * products + shares.square() * squares,
            counts.unsqueeze(-2) - shares,
            lengths,
            queries.shape[-1],
            self.settings.metric,
        )
        return self._present(self.scale[0] * similar)

    def _ridge_outputs(self, queries: Tensor, shares: Tensor | None) -> Tensor:
        """``(*b, Q, W)``; with queries among the rows, what the others say of each."""
        assert self.ridge is not None
        assert self.rows is not None
        if shares is None:
            return queries @ self.ridge.mT
        features, targets, weights = self.rows
        weight = shares.sum(-1)
        guessed = _targets(shares / weight.unsqueeze(-1).clamp(min=LEAST_WEIGHT), self.class_mask)
        _, left_out = ridge_regression(
            torch.cat([features, queries], -2),
            torch.cat([targets, guessed], -2),
            torch.cat([weights, weight], -1),
            PENALTY,
        )
        return left_out[..., features.shape[-2] :, :]


def fit_head(
    features: Tensor,
    labels: Tensor,
    mask: Tensor,
    class_mask: Tensor,
    settings: HeadSettings,
    scale: Tensor | float = 10.0,
    ridge_scale: Tensor | float = 10.0,
) -> SupportHead:
    """Fit a head.

    Args:
        features: ``(*b, S, f)`` of the support.
        labels: ``(*b, S)``, or broadcastable to it.
        mask: ``(*b, S)`` bool, likewise.
        class_mask: ``(*b, W)`` bool, likewise.
        settings: what to fit.
        scale: > 0, of the prototypes' similarities.
        ridge_scale: > 0, of the ridge's outputs.

    Example:
        >>> support, labels = torch.rand(2, 6, 8), torch.tensor([0, 0, 1, 1, 2, 2])
        >>> everyone = torch.ones(2, 6, dtype=torch.bool), torch.ones(2, 3, dtype=torch.bool)
        >>> head = fit_head(support, labels, *everyone, HeadSettings("mixture", label_noise=0.1))
        >>> head.logits(torch.rand(2, 4, 8)).exp().sum(-1)  # of a mixture, log probabilities
        tensor([[1.0000, 1.0000, 1.0000, 1.0000],
                [1.0000, 1.0000, 1.0000, 1.0000]])
    """
    way, mixture, metric = class_mask.shape[-1], settings.classifier == "mixture", settings.metric
    features = compared(features, metric)
    leading = features.shape[:-1]
    own, shown = labels.expand(leading), mask.expand(leading)
    if settings.label_noise or mixture:
        of_compared: Metric = "euclidean" if metric == "euclidean" else "cosine"
        found = shot_trust(features, labels, mask, class_mask, settings.label_noise, scale, of_compared)
        trust = found.trust
    else:
        found, trust = None, shown.to(features.dtype)
    sums, counts = class_sums(features, own, trust, way)
    everywhere = class_mask.expand(*leading[:-1], way)
    if not mixture or found is None:
        return SupportHead(settings, (scale, ridge_scale), everywhere, sums, counts, trust)
    rows = F.normalize(features, dim=-1)
    targets = _targets(F.one_hot(labels, way).to(features.dtype), class_mask) * mask.unsqueeze(-1)
    weights = trust.clamp(min=LEAST_TRUST) * mask
    ridge, left_out = ridge_regression(rows, targets, weights, PENALTY)
    right = (ridge_scale * left_out).masked_fill(~class_mask.unsqueeze(-2), NO_CLASS).log_softmax(-1)
    right = right.gather(-1, own.unsqueeze(-1)).squeeze(-1)
    noise = found.label_noise.unsqueeze(-1)
    if settings.label_noise:
        classes = class_mask.sum(-1, keepdim=True).to(features.dtype)
        right = torch.logaddexp(right + torch.log1p(-noise), noise.log() - classes.log())
    counted = mask & ~found.alone
    ahead = ((right - found.evidence) * counted).sum(-1) / counted.sum(-1).clamp(min=1)
    ahead = torch.where(counted.any(-1), ahead - noise.squeeze(-1), 0.0)
    share = (ahead / TEMPERATURE).sigmoid().clamp(LEAST_WEIGHT, 1 - LEAST_WEIGHT)
    rest = (rows, targets.expand(*leading, way), weights)
    return SupportHead(settings, (scale, ridge_scale), everywhere, sums, counts, trust, rest, ridge, share)


def _targets(shares: Tensor, class_mask: Tensor) -> Tensor:
    """Shares of classes ``(*b, n, W)``, less what each would have by chance; 0 at classes that are absent."""
    classes = class_mask.sum(-1, keepdim=True).clamp(min=1).to(shares.dtype).unsqueeze(-1)
    return (shares - 1 / classes).masked_fill(~class_mask.unsqueeze(-2), 0.0)
