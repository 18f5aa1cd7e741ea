r"""Logistic-normal prior: Gaussian contrasts of the logits, softmax to the simplex.

    u ~ N(V' mu, V' diag(sigma^2) V),   w = softmax(V u)

for the sources and, when there are experts, independently for alpha. V is an orthonormal basis of the zero-sum plane:
softmax forgets a common shift of the logits, so the latent has one coordinate less than there are weights, and the KL
of two such distributions is the exact KL of the weights they induce.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_smat.local_module import LocalModule
from pyro_smat.routing import EXPERT_SITE, SOURCE_SITE, contrast_basis, softmax_of_contrasts


def contrast_normal(loc: Tensor, scale: Tensor) -> dist.MultivariateNormal:
    """The Gaussian that independent logits ``loc``, ``scale`` ``(*b, n)`` induce on their n - 1 contrasts."""
    basis = contrast_basis(loc.shape[-1], loc)
    covariance = (basis.mT * scale.square().unsqueeze(-2)) @ basis
    return dist.MultivariateNormal(loc @ basis, scale_tril=torch.linalg.cholesky(covariance), validate_args=False)


class LogisticNormalPrior(LocalModule):
    """Prior over w (R sources) and alpha (M experts), both logistic-normal.

    Args:
        sources: R >= 1.
        experts: M >= 0.
        loc: ``(R + M,)`` logit means; default 0, which treats all alike ("uniform").
        scale: deviation of every logit, > 0. About 2 is close to flat on a simplex of five; larger prefers its corners.

    Calling it inside the episode plate samples the sites "source_contrasts" (when R > 1) and "expert_contrasts" (when
    M > 1) and returns coefficients ``(*b, R + M)``.

    Raises:
        ValueError: for shapes or a scale that make no distribution.
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, sources: int, experts: int = 0, loc: Tensor | None = None, scale: float = 2.0) -> None:
        super().__init__()
        size = sources + experts
        if sources < 1 or experts < 0:
            raise ValueError(f"sources is {sources} and experts {experts}; expected at least 1 and 0")
        if not scale > 0:
            raise ValueError(f"scale is {scale}; expected a deviation > 0")
        loc = torch.zeros(size) if loc is None else loc
        if loc.shape != (size,):
            raise ValueError(f"loc has shape {tuple(loc.shape)}; expected ({size},): one logit a source and expert")
        self.sources, self.experts = sources, experts
        self.register_buffer("loc", loc)
        self.register_buffer("scale", torch.full((size,), float(scale)))

    @classmethod
    def cost_aware(
        cls, sources: int, experts: int, costs: Tensor, beta: float, scale: float = 2.0
    ) -> LogisticNormalPrior:
        """Logit means -beta x cost: the median weight of an entry falls by exp(-beta) for every unit that it costs.

        Raises:
            ValueError: for a negative beta, or another number of costs than of sources and experts.
        """
        if not beta >= 0:
            raise ValueError(f"beta is {beta}; expected >= 0 (0 treats all alike)")
        if costs.shape != (sources + experts,):
            raise ValueError(
                f"costs have shape {tuple(costs.shape)}; expected ({sources + experts},), one a source and expert"
            )
        return cls(sources, experts, -beta * costs, scale)

    def distributions(self) -> dict[str, dist.MultivariateNormal]:
        """The distribution of every site."""
        parts = {SOURCE_SITE: slice(0, self.sources), EXPERT_SITE: slice(self.sources, None)}
        return {
            site: contrast_normal(self.loc[part], self.scale[part])
            for site, part in parts.items()
            if len(self.loc[part]) > 1
        }

    def forward(self) -> Tensor:
        drawn = {site: pyro.sample(site, distribution) for site, distribution in self.distributions().items()}
        return coefficients_from_contrasts(drawn, self.sources, self.experts, self.loc)


def coefficients_from_contrasts(drawn: dict[str, Tensor], sources: int, experts: int, like: Tensor) -> Tensor:
    """Coefficients ``(*b, R + M)`` from the sites that were drawn; a lone source or expert has weight 1."""
    parts = []
    for site, size in ((SOURCE_SITE, sources), (EXPERT_SITE, experts)):
        if site in drawn:
            parts.append(softmax_of_contrasts(drawn[site]))
        elif size == 1:
            parts.append(like.new_ones(1))
    leading = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(*leading, part.shape[-1]) for part in parts], dim=-1)
