"""Prototype heads: what turns the features of a task network into class logits.

A head sees features only, never parameters, so the same functions serve the composed task network, a frozen
source (the guide's evidence, the best-source baseline) and a plain network in pretraining.

Shapes: ``*b`` are any leading dims (particles, episodes), S support shots, Q queries, W classes, f features.
"""

from __future__ import annotations

from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Metric = Literal["cosine", "euclidean", "bhattacharyya"]
METRICS: tuple[Metric, ...] = ("cosine", "euclidean", "bhattacharyya")
NO_CLASS = -1e4  # logit of a class that the episode does not have: finite, so that 0 x log 0 stays 0
LEAST_WEIGHT = 1e-6  # of the shots of a class, below which it is empty
SMALLEST = 1e-24  # squared length
LEAST_LEFT = 1e-5  # of the squared length of a sum, below which only rounding is left of it
LEAST_ROOTED = 1e-12  # magnitude, below which a square root has no gradient


def compared(features: Tensor, metric: Metric) -> Tensor:
    r"""What is averaged into prototypes and compared: the features, or for "bhattacharyya" their signed square roots.

    The cosine of square roots is the Bhattacharyya coefficient :math:`\sum_j \sqrt{p_j q_j}` of features >= 0 that are
    scaled to sum to one: a few large features count for less.

    Example:
        >>> compared(torch.tensor([4.0, 0.0, -9.0]), "bhattacharyya")
        tensor([ 2.,  0., -3.])
    """
    if metric != "bhattacharyya":
        return features
    return features.sign() * features.abs().clamp(min=LEAST_ROOTED).sqrt()


def class_sums(features: Tensor, labels: Tensor, mask: Tensor, way: int) -> tuple[Tensor, Tensor]:
    """Sum of the features of every class, and its number of shots.

    Args:
        features: ``(*b, S, f)``.
        labels: ``(*b, S)`` integers in [0, way); entries that ``mask`` hides may hold anything in that range.
        mask: ``(*b, S)`` bool, True where the shot is real; or weights of the shots, which then count as so many.
        way: W.

    Returns:
        sums ``(*b, W, f)`` and counts ``(*b, W)``, in the dtype of ``features``.
    """
    membership = F.one_hot(labels, way).to(features.dtype) * mask.unsqueeze(-1)  # (*b, S, W)
    return membership.mT @ features, membership.sum(-2)


def prototypes(features: Tensor, labels: Tensor, mask: Tensor, way: int) -> Tensor:
    r"""Class means :math:`p_k = \frac{1}{n_k} \sum_{i: y_i = k} f_i`, ``(*b, W, f)``; zero for an empty class.

    Arguments as in :func:`class_sums`. Source: Snell et al. 2017, eq. 1.
    """
    sums, counts = class_sums(features, labels, mask, way)
    return sums / counts.clamp(min=LEAST_WEIGHT).unsqueeze(-1)


def similarities(features: Tensor, prototypes: Tensor, metric: Metric = "cosine") -> Tensor:
    """Cosine, or minus the squared Euclidean distance per feature, between features and prototypes.

    Args:
        features: ``(*b, Q, f)``, as :func:`compared`.
        prototypes: ``(*b, W, f)``, means of these.
        metric: "cosine", "euclidean" or "bhattacharyya".

    Returns:
        ``(*b, Q, W)``; multiply with a scale to get logits.
    """
    if metric == "euclidean":
        cross = features @ prototypes.mT
        squares = features.square().sum(-1, keepdim=True) + prototypes.square().sum(-1).unsqueeze(-2)
        return (2 * cross - squares) / features.shape[-1]
    if metric in METRICS:
        return F.normalize(features, dim=-1) @ F.normalize(prototypes, dim=-1).mT
    raise ValueError(f"metric is {metric!r}; expected one of {METRICS}")


def similarities_of_products(
    product: Tensor,
    square: Tensor | None,
    centre_square: Tensor,
    count: Tensor | None,
    whole: Tensor,
    width: int,
    metric: Metric,
) -> Tensor:
    """:func:`similarities` to sums of so many features, from inner products with the sum and squared lengths.

    What the sums were left with by features that were taken out again: of one that consisted of these only rounding is
    left, and it counts as an empty class, whose centre is zero.

    Args:
        product: of the feature and the sum.
        square: squared length of the feature; None for 1, of features that were scaled to it.
        centre_square: of the sum.
        count: of features in the sum, or what they weigh together; matters to "euclidean" only.
        whole: squared length of the sum before features were taken out.
        width: f.
        metric: "cosine", "euclidean" or "bhattacharyya", of features as :func:`compared`.
    """
    nothing = centre_square <= LEAST_LEFT * whole
    product = product.masked_fill(nothing, 0.0)
    if metric == "euclidean":
        assert square is not None
        assert count is not None
        count, centre_square = count.clamp(min=LEAST_WEIGHT), centre_square.masked_fill(nothing, 0.0)
        return (2 * product / count - square - centre_square / count.square()) / width
    if square is not None:
        product = product * square.clamp(min=SMALLEST).rsqrt()
    return product * centre_square.clamp(min=SMALLEST).rsqrt()


def prototype_logits(
    support_features: Tensor,
    support_labels: Tensor,
    support_mask: Tensor,
    query_features: Tensor,
    class_mask: Tensor,
    scale: Tensor | float = 10.0,
    metric: Metric = "cosine",
) -> Tensor:
    r"""Logits of the queries, :math:`\ell_{qk} = s \cdot \mathrm{sim}(f_q, p_k)`.

    Args:
        support_features: ``(*b, S, f)``.
        support_labels: ``(*b, S)`` or broadcastable to it.
        support_mask: ``(*b, S)`` bool, likewise; or weights of the shots (:mod:`pyro_smat.networks.shot_trust`).
        query_features: ``(*b, Q, f)``.
        class_mask: ``(*b, W)`` bool, likewise, True for the classes that the episode has.
        scale: s > 0.
        metric: "cosine", "euclidean" or "bhattacharyya".

    Returns:
        ``(*b, Q, W)``; -1e4 at classes that the episode does not have (finite, so that 0 x log 0 stays 0).
    """
    leading = support_features.shape[:-1]
    labels, mask = support_labels.expand(leading), support_mask.expand(leading)
    centres = prototypes(compared(support_features, metric), labels, mask, class_mask.shape[-1])
    logits = scale * similarities(compared(query_features, metric), centres, metric)
    return logits.masked_fill(~class_mask.unsqueeze(-2), NO_CLASS)


def leave_one_out_logits(
    features: Tensor,
    labels: Tensor,
    mask: Tensor,
    class_mask: Tensor,
    scale: Tensor | float = 10.0,
    metric: Metric = "cosine",
    weights: Tensor | None = None,
) -> Tensor:
    """Logits of every shot against prototypes that leave this shot out of its own class.

    A shot that is alone in its class cannot be left out: its own class keeps the prototype of all shots of the
    episode (an uninformative centre), so one-shot supports still get finite, honest scores.

    Args:
        features: ``(*b, S, f)``.
        labels: ``(*b, S)``.
        mask: ``(*b, S)`` bool.
        class_mask: ``(*b, W)`` bool.
        scale: s > 0.
        metric: "cosine", "euclidean" or "bhattacharyya".
        weights: ``(*b, S)`` of the shots in the prototypes; None for 1.

    Returns:
        ``(*b, S, W)``; -1e4 at classes that the episode does not have.
    """
    weights = mask if weights is None else weights * mask
    return LeaveOneOut(features, labels, mask, class_mask, metric).logits(weights.to(features.dtype), scale)


class LeaveOneOut:
    """:func:`leave_one_out_logits` for weights that change.

    Where there are fewer shots than features, S x S inner products of shots take the place of features; else time and
    memory grow as S does.

    Args:
        features, labels, mask, class_mask, metric: of the support, as there; or broadcastable.

    Attributes:
        shots: ``(*b, S, f)``, features as :func:`compared`, scaled to length one where the metric takes no length.
        alone: ``(*b, S)`` bool, which shots have a class of their own.
    """

    def __init__(self, features: Tensor, labels: Tensor, mask: Tensor, class_mask: Tensor, metric: Metric) -> None:
        self.metric, self.shots, lengths = metric, compared(features, metric), None
        if metric != "euclidean":
            lengths = torch.linalg.vector_norm(self.shots, dim=-1, keepdim=True)
            self.shots = self.shots / lengths.clamp(min=SMALLEST**0.5)
        self.squares = None if lengths is not None else self.shots.square().sum(-1, keepdim=True)
        labels_of, self.absent = labels.unsqueeze(-1), ~class_mask.unsqueeze(-2)
        self.labels = labels_of.expand(*features.shape[:-1], 1)
        way = torch.arange(class_mask.shape[-1] + 1, device=labels.device)
        own = labels_of == way[:-1]  # (*b, S, W)
        real = own & mask.unsqueeze(-1)
        has_others = (real & (real.sum(-2, keepdim=True) > 1)).any(-1, keepdim=True)
        self.alone, self._labels, self._mask = ~has_others.squeeze(-1), labels, mask
        chosen = torch.where(own & ~has_others, way[-1], way[:-1])  # the centre for each class: its own, or that of all
        self.chosen = chosen.expand(*features.shape[:-1], -1)
        centres = F.pad(own.to(features.dtype), (0, 1), value=1.0)  # (*b, S, W + 1), the last one of all shots
        if lengths is not None:
            centres = centres * lengths
        leaving = centres[..., :-1] * has_others
        self.members = torch.cat([centres, leaving], -1)  # (*b, S, 2 W + 1), then what each shot leaves

    @cached_property
    def products(self) -> Tensor:
        """``(*b, S, S)`` inner products of the shots."""
        return self.shots @ self.shots.mT

    @cached_property
    def pairs(self) -> Tensor:
        """``(*b, S, S)`` bool, pairs of two shots."""
        one = torch.eye(self._labels.shape[-1], dtype=torch.bool, device=self._labels.device)
        return self._mask.unsqueeze(-1) & self._mask.unsqueeze(-2) & ~one

    @cached_property
    def same(self) -> Tensor:
        """``(*b, S, S)`` bool, those of one class."""
        return self.pairs & (self._labels.unsqueeze(-1) == self._labels.unsqueeze(-2))

    def logits(self, weights: Tensor, scale: Tensor | float) -> Tensor:
        """``(*b, S, W)``, of centres of shots that weigh ``(*b, S)``, 0 where masked."""
        way = self.chosen.shape[-1]
        members, leaving = (self.members * weights.unsqueeze(-1)).split([way + 1, way], -1)
        few = members.shape[-2] <= self.shots.shape[-1]
        products = self.products @ members if few else self.shots @ (self.shots.mT @ members)  # (*b, S, W + 1)

        def chosen(values: Tensor) -> Tensor:
            return values.expand_as(products).gather(-1, self.chosen)

        product, whole = chosen(products), chosen((members * products).sum(-2, keepdim=True))
        left = product - (leaving if self.squares is None else leaving * self.squares)
        square = torch.addcmul(whole, leaving, product + left, value=-1)
        count = chosen(members.sum(-2, keepdim=True)) - leaving if self.metric == "euclidean" else None
        similar = similarities_of_products(left, self.squares, square, count, whole, self.shots.shape[-1], self.metric)
        return (scale * similar).masked_fill(self.absent, NO_CLASS)

    def log_likelihood(self, weights: Tensor, scale: Tensor | float) -> Tensor:
        """``(*b, S)`` of the labels, likewise."""
        return self.logits(weights, scale).log_softmax(-1).gather(-1, self.labels).squeeze(-1)


def leave_one_out_loss(
    features: Tensor,
    labels: Tensor,
    mask: Tensor,
    class_mask: Tensor,
    scale: Tensor | float = 10.0,
    metric: Metric = "cosine",
) -> Tensor:
    """Mean leave-one-out cross-entropy of the support, ``(*b)``, in nats; arguments as for the logits above."""
    held_out = LeaveOneOut(features, labels, mask, class_mask, metric)
    found = held_out.log_likelihood(mask.to(features.dtype), scale)
    mask = mask.expand(found.shape)
    return -(found * mask).sum(-1) / mask.sum(-1).clamp(min=1)
