"""Supports: pairs of images and labels, as ``adapt_many`` is given them, and the episodes that are made of them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_smat.episodes import Episode, Labelled

Support = tuple[Any, Any]  # images and labels, as adapt takes them


def as_pair(support: Any, number: int) -> Support:
    """A support as the pair that it is.

    Args:
        support: anything.
        number: of it, for the message.

    Raises:
        ValueError: for anything but a pair.

    Example:
        >>> as_pair(torch.zeros(5, 1, 8, 8), 0)
        Traceback (most recent call last):
        ValueError: support 0 is a Tensor of 5; expected a pair (images, labels): for one support, [(images, labels)]
    """
    if not isinstance(support, tuple | list) or len(support) != 2:
        count = f" of {len(support)}" if hasattr(support, "__len__") else ""
        raise ValueError(
            f"support {number} is a {type(support).__name__}{count}; expected a pair (images, labels): for one "
            "support, [(images, labels)]"
        )
    return support[0], support[1]


def as_episode(images: Tensor, values: Sequence[Hashable], classes: Sequence[Hashable]) -> Episode:
    """An episode without queries.

    Args:
        images: ``(S, C, H, W)``.
        values: the label of each.
        classes: the different ones, in their order.
    """
    index = {value: k for k, value in enumerate(classes)}
    target = torch.tensor([index[value] for value in values])
    return Episode(Labelled(images, target), class_names=tuple(str(c) for c in classes))
