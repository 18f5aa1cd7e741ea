"""What diagnostics read from a batch of episodes, and the two ways in which they change one.

The only module of this room that knows the fields of :class:`EpisodeBatch`: batches -> plain arrays, a batch with fewer
shots (nested supports), a batch whose support labels say nothing.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.metrics.arrays import IntArray


def query_labels(batch: EpisodeBatch) -> IntArray:
    """``(B, Q)`` labels of the queries, -1 where there is no query."""
    return torch.where(batch.query.mask, batch.query.labels, -1).cpu().numpy()


def true_routes(batch: EpisodeBatch) -> IntArray:
    """``(B,)`` true route, -1 where it is not known."""
    return batch.route.cpu().numpy()


def shots_per_class(batch: EpisodeBatch) -> IntArray:
    """``(B,)`` support images of the class that has fewest."""
    counts = _class_counts(batch)
    return torch.where(batch.class_mask, counts, counts.max() + 1).amin(-1).cpu().numpy()


def usual_shots(batch: EpisodeBatch) -> int:
    """Support images for every class of the episode that has fewest; label noise moves some between classes."""
    return int((batch.support.mask.sum(-1) // batch.way).min())


def conditions(batch: EpisodeBatch) -> np.ndarray:
    """``(B,)`` of "clean", "label noise", "confounded" and "label noise, confounded"."""
    noisy = (batch.corrupted_labels > 0).cpu().numpy()
    confounded = (batch.confounded_with >= 0).cpu().numpy()
    names = np.array(["clean", "label noise", "confounded", "label noise, confounded"])
    return names[noisy + 2 * confounded]


def class_logits_shape(batch: EpisodeBatch) -> tuple[int, int]:
    """B and Q."""
    episodes, queries = batch.query.labels.shape
    return episodes, queries


def label_targets(batch: EpisodeBatch) -> tuple[Tensor, Tensor]:
    """Labels and mask of the queries, ``(B, Q)`` each, on the batch's device."""
    return batch.query.labels, batch.query.mask


def with_shots(batch: EpisodeBatch, shots: int) -> EpisodeBatch:
    """The batch with the first ``shots`` support images of every class (all of a class that has fewer).

    The supports of a smaller number are prefixes of those of a larger one, so that what changes along shots is the
    evidence and not the sample. Features stay as they are.

    Raises:
        ValueError: for fewer than one shot.
    """
    if shots < 1:
        raise ValueError(f"shots is {shots}; expected at least 1 a class")
    own = torch.nn.functional.one_hot(batch.support.labels, batch.max_way) * batch.support.mask.unsqueeze(-1)
    rank = (own.cumsum(1) * own).sum(-1)  # 1 for the first image of its class
    return replace(batch, support=replace(batch.support, mask=batch.support.mask & (rank <= shots)))


def trimmed(batch: EpisodeBatch) -> EpisodeBatch:
    """The batch without support columns that are padding in every episode: what :func:`with_shots` hid costs nothing.

    The order of the shots that are left stays.
    """
    support = batch.support
    count = int(support.mask.sum(-1).max())
    order = (~support.mask).to(torch.uint8).argsort(dim=-1, stable=True)[:, :count]  # (B, S')

    def chosen(values: Tensor, dim: int = 1) -> Tensor:
        shape = [1] * values.ndim
        shape[0], shape[dim] = order.shape
        return values.take_along_dim(order.view(shape), dim)

    features = None if support.features is None else chosen(support.features, 2)
    return replace(
        batch,
        support=replace(
            support,
            images=chosen(support.images),
            labels=chosen(support.labels),
            mask=chosen(support.mask),
            rows=chosen(support.rows),
            features=features,
        ),
    )


def with_permuted_labels(batch: EpisodeBatch, generator: torch.Generator) -> EpisodeBatch:
    """The batch with the labels of every support shuffled among its images: nothing about a routing is left in them."""
    noise = torch.rand(batch.support.labels.shape, generator=generator).to(batch.support.labels.device)
    order = torch.where(batch.support.mask, noise, 2.0).argsort(-1)  # padding stays last
    place = torch.where(batch.support.mask, 0.0, 2.0) + torch.linspace(0, 1, order.shape[1], device=order.device)
    target = place.argsort(-1)
    shuffled = torch.empty_like(batch.support.labels)
    shuffled.scatter_(1, target, batch.support.labels.gather(1, order))
    return replace(batch, support=replace(batch.support, labels=shuffled))


def _class_counts(batch: EpisodeBatch) -> Tensor:
    own = torch.nn.functional.one_hot(batch.support.labels, batch.max_way)
    return (own * batch.support.mask.unsqueeze(-1)).sum(1)


def support_size(batch: EpisodeBatch) -> Tensor:
    """``(B,)`` number of support images, on the batch's device."""
    return batch.support.mask.sum(-1)
