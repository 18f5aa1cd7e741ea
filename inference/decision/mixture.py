"""Mixture: the networks that a task runs, and how their predictions are weighted. What every decision rule returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_smat.inference.objective.outcome import first_equal


@dataclass(frozen=True)
class Mixture:
    """K routings of each of B tasks; a task's prediction is the weighted mean of those of its K networks.

    Attributes:
        coefficients: ``(K, B, [L,] C)``.
        weights: ``(K, B)``, sum 1 over K.
        mass: ``(B,)`` the share of the posterior that they hold, where they are a part of a list; None where not.

    Example:
        >>> draws = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[1.0, 0.0]]])  # three draws for one task
        >>> Mixture.equal(draws).merged().weights.squeeze(1)
        tensor([0.6667, 0.3333])
    """

    coefficients: Tensor
    weights: Tensor
    mass: Tensor | None = None

    @classmethod
    def equal(cls, coefficients: Tensor) -> Mixture:
        """Routings ``(K, B, [L,] C)`` with equal weights."""
        return cls(coefficients, coefficients.new_full(coefficients.shape[:2], 1.0 / len(coefficients)))

    @classmethod
    def one(cls, coefficients: Tensor) -> Mixture:
        """One routing ``(B, [L,] C)`` a task."""
        return cls.equal(coefficients.unsqueeze(0))

    def __len__(self) -> int:
        """K."""
        return len(self.weights)

    def merged(self) -> Mixture:
        """The same mixture with equal routings of a task as one, in the order of their first appearance.

        K becomes the largest number of different routings of a task; tasks with fewer repeat one with weight 0.
        """
        rows, index = distinct(self.coefficients)
        return Mixture(rows, self.weights.new_zeros(rows.shape[:2]).scatter_add(0, index, self.weights), self.mass)


def distinct(coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """The different routings of every task, so that each is run once.

    Args:
        coefficients: ``(K, B, [L,] C)``.

    Returns:
        Routings ``(k, B, [L,] C)``, k the largest number of different ones of a task, and the index ``(K, B)`` of each
        of the K among them. Tasks with fewer different routings than k repeat their later ones.
    """
    first = first_equal(coefficients)
    is_first = first == torch.arange(len(first), device=first.device).unsqueeze(-1)
    index = (is_first.cumsum(0) - 1).gather(0, first)
    order = (~is_first).to(torch.uint8).argsort(dim=0, stable=True)[: int(is_first.sum(0).max())]
    return coefficients[order, torch.arange(coefficients.shape[1], device=order.device)], index
