r"""ILRDistribution: what every distribution of simplex weights has in common.

Weights w on the simplex of n entries are softmax(V u); the random variable is the vector u of n - 1 ILR coordinates, V
the
orthonormal basis of the zero-sum plane. A density of w (of its first n - 1 entries, Lebesgue) becomes a density of u by

.. math:: p(u) = p(w)\, \sqrt n \prod_i w_i ,

so Gaussian, Concrete, Dirichlet and cost densities all live on the same sites and can be compared. KL divergences,
which the change of variables leaves alone, are registered with torch beside the classes.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_smat.routing.coordinates import ilr_basis


class ILRDistribution(TorchDistribution):
    """A distribution of ILR coordinates u, event shape ``(n - 1,)``, of weights on the simplex of n entries.

    Subclasses say how to draw (:meth:`_draw`), ``log_prob`` and what the weights are on average and at the mode.
    """

    has_rsample = True

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def size(self) -> int:
        """Number of weights, n."""
        return int(self.event_shape[-1]) + 1

    def rsample(self, sample_shape: Sequence[int] = (), generator: torch.Generator | None = None) -> Tensor:
        """Reparametrised draws of u, ``(*sample_shape, *b, n - 1)``.

        Raises:
            NotImplementedError: where draws have no gradient (``has_rsample`` is False).
        """
        if not self.has_rsample:
            raise NotImplementedError(f"draws of {type(self).__name__} have no gradient: use sample()")
        return self._draw(torch.Size(sample_shape) + self.batch_shape, generator)

    def sample(self, sample_shape: Sequence[int] = (), generator: torch.Generator | None = None) -> Tensor:
        """Draws of u without gradient, ``(*sample_shape, *b, n - 1)``."""
        with torch.no_grad():
            return self._draw(torch.Size(sample_shape) + self.batch_shape, generator)

    @abstractmethod
    def _draw(self, shape: torch.Size, generator: torch.Generator | None) -> Tensor:
        """One draw for every entry of ``shape`` (it ends in the batch shape), ``(*shape, n - 1)``."""

    @abstractmethod
    def mean_weights(self) -> Tensor:
        """E w, ``(*b, n)``."""

    @abstractmethod
    def mode_weights(self) -> Tensor:
        """The weights where the density of u is largest, ``(*b, n)``."""

    def _expanded(self, batch_shape: Sequence[int], **fields: Any) -> Self:
        """A copy of another batch shape with these fields, its values not checked again."""
        new = type(self).__new__(type(self))
        for name, value in fields.items():
            setattr(new, name, value)
        TorchDistribution.__init__(new, torch.Size(batch_shape), self.event_shape, validate_args=False)
        return new


def log_weights(ilr: Tensor) -> Tensor:
    """ln w ``(*b, n)`` of ILR coordinates ``(*b, n - 1)``; finite where w itself would be 0."""
    return (ilr @ ilr_basis(ilr.shape[-1] + 1, ilr).mT).log_softmax(-1)


def log_jacobian(log_w: Tensor) -> Tensor:
    """ln(sqrt(n) prod w), ``(*b)``: what turns the log density of the weights into that of the ILR coordinates."""
    return log_w.sum(-1) + 0.5 * math.log(log_w.shape[-1])


def standard_exponential(shape: Sequence[int], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Exp(1) draws that are never 0, so that their logarithm is finite."""
    drawn = torch.empty(shape, dtype=like.dtype, device=like.device).exponential_(generator=generator)
    # The uniform behind a draw has steps of eps / 2: a draw of 0 stands for the cell [0, eps / 2), so for its middle.
    return drawn.clamp(min=torch.finfo(like.dtype).eps / 4)


def check_size(what: str, tensor: Tensor) -> None:
    """Raises ValueError unless the last dim of ``tensor`` has at least 2 entries: one weight is always 1."""
    if tensor.ndim < 1 or tensor.shape[-1] < 2:
        raise ValueError(f"{what} has shape {tuple(tensor.shape)}; expected (*b, n), n >= 2: a lone weight is always 1")
