r"""ILRNormal: Gaussian ILR coordinates, the logistic-normal distribution of weights.

Logits l ~ N(mu, S) with any S give ILR coordinates u = V'l ~ N(V'mu, V'SV): softmax forgets the common shift of the
logits, so the KL of two such distributions is the exact KL of the weights that they induce.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from pyro.distributions import MultivariateNormal
from torch import Tensor

from pyro_smat.float64 import in_float64
from pyro_smat.routing.coordinates import ilr_basis
from pyro_smat.routing.distributions.ilr import ILRDistribution, check_size
from pyro_smat.routing.distributions.quasi_random import uniform_points


class ILRNormal(ILRDistribution, MultivariateNormal):
    """u ~ N(loc, covariance), ``(*b, n - 1)``; built from what the n logits do by one of the ``from_`` methods.

    The KL of two of them is torch's, exact.
    """

    @classmethod
    def from_logits(cls, loc: Tensor, scale: Tensor) -> Self:
        """Independent logits of mean ``loc`` and deviation ``scale``, ``(*b, n)`` each.

        Raises:
            ValueError: for a single logit, shapes that differ, or a scale that is not > 0.
        """
        _check_logits(loc, scale)
        basis = ilr_basis(loc.shape[-1], loc)
        return cls._of_covariance(loc @ basis, (basis.mT * scale.square().unsqueeze(-2)) @ basis)

    @classmethod
    def from_factor(cls, loc: Tensor, scale: Tensor, factor: Tensor) -> Self:
        """Logits with covariance diag(scale^2) + F F'.

        Args:
            loc, scale: ``(*b, n)``.
            factor: F, ``(*b, n, k)``.

        Raises:
            ValueError: as :meth:`from_logits`, or for a factor of another shape.
        """
        _check_logits(loc, scale)
        if factor.ndim < 2 or factor.shape[:-1] != loc.shape:
            raise ValueError(f"factor has shape {tuple(factor.shape)}; expected {(*loc.shape, 'k')} after loc")
        basis = ilr_basis(loc.shape[-1], loc)
        projected = basis.mT @ factor
        diagonal = (basis.mT * scale.square().unsqueeze(-2)) @ basis
        return cls._of_covariance(loc @ basis, diagonal + projected @ projected.mT)

    @classmethod
    def from_log_covariance(cls, loc: Tensor, log_covariance: Tensor) -> Self:
        """ILR coordinates with covariance expm(V' S V): any symmetric S is allowed, S = 0 is the identity.

        Args:
            loc: ``(*b, n)`` logit means.
            log_covariance: S, ``(*b, n, n)``; only its symmetric part counts.

        Raises:
            ValueError: for a single logit or shapes that do not fit.
        """
        check_size("loc", loc)
        if log_covariance.shape != (*loc.shape, loc.shape[-1]):
            raise ValueError(
                f"log_covariance has shape {tuple(log_covariance.shape)}; expected {(*loc.shape, loc.shape[-1])}"
            )
        basis = ilr_basis(loc.shape[-1], loc)
        projected = basis.mT @ (0.5 * (log_covariance + log_covariance.mT)) @ basis
        # matrix_exp has a finite gradient at equal eigenvalues, eigh does not; S = 0 is where training starts.
        return cls._of_covariance(loc @ basis, torch.linalg.matrix_exp(in_float64(projected)))

    @classmethod
    def _of_covariance(cls, loc: Tensor, covariance: Tensor) -> Self:
        # In float64: float32 has no Cholesky factor once deviations differ by 1e4.
        scale_tril = torch.linalg.cholesky(in_float64(covariance)).to(loc)
        return cls(loc, scale_tril=scale_tril, validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> ILRNormal:
        return MultivariateNormal.expand(self, torch.Size(batch_shape), _instance)

    def _draw(self, shape: torch.Size, generator: torch.Generator | None) -> Tensor:
        shape = shape + self.event_shape
        noise = torch.randn(shape, generator=generator, device=self.loc.device, dtype=self.loc.dtype)
        return self._place(noise)

    def mean_weights(self) -> Tensor:
        """By 512 quasi-random draws, the same ones every time."""
        noise = torch.special.ndtri(uniform_points(self.size - 1)).to(self.loc)
        ilr = self._place(noise.view(-1, *(1,) * len(self.batch_shape), self.size - 1))
        return (ilr @ ilr_basis(self.size, ilr).mT).softmax(-1).mean(0)

    def mode_weights(self) -> Tensor:
        return (self.loc @ ilr_basis(self.size, self.loc).mT).softmax(-1)

    def _place(self, noise: Tensor) -> Tensor:
        return self.loc + (self._unbroadcasted_scale_tril @ noise.unsqueeze(-1)).squeeze(-1)


def _check_logits(loc: Tensor, scale: Tensor) -> None:
    check_size("loc", loc)
    if scale.shape != loc.shape:
        raise ValueError(f"scale has shape {tuple(scale.shape)}; expected that of loc, {tuple(loc.shape)}")
    if not (scale > 0).all():
        raise ValueError(f"scale has entries down to {scale.min().item():g}; expected standard deviations > 0")
