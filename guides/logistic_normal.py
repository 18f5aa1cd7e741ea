r"""Logistic-normal routing: amortised Gaussian logits over sources and experts.

.. math:: u \sim N(\mu(S), \Sigma(S)), \quad w = \mathrm{softmax}(u_{1:R}), \quad \alpha = \mathrm{softmax}(u_{R+1:R+M})

The sample sites are the ILR coordinates of u (Bayes-routed SMAT, section 4, without the common shift of the logits,
which softmax forgets).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

import torch
from torch import Tensor

from pyro_smat.encoders import SupportEncoder
from pyro_smat.episodes import EpisodeBatch
from pyro_smat.guides.router import RouterNetwork, RoutingGuide
from pyro_smat.guides.simplex import SimplexPosterior, site_slices
from pyro_smat.models.priors import RoutingPrior
from pyro_smat.registry import register
from pyro_smat.routing.distributions import ILRNormal

Covariance = Literal["diagonal", "low_rank", "full"]
COVARIANCES: tuple[Covariance, ...] = ("diagonal", "low_rank", "full")


class LogisticNormalPosterior(SimplexPosterior):
    r"""Gaussian logits, softmax over the sources and over the experts.

    Args:
        loc, scale: ``(B, R + M)`` of the logits, ``(B, L, R + M)`` with blocks.
        num_sources: R.
        factor: ``(B, [L,] R + M, k)`` or None; see ``covariance``.
        covariance: of the logits, "diagonal" :math:`D = \mathrm{diag}(s^2)` or "low_rank" :math:`D + F F^\top`; or of
            their ILR coordinates V'l, "full" :math:`\exp(V^\top (\log D + F_1 F_2^\top + F_2 F_1^\top) V)` with F_1,
            F_2 the halves of the factor: any covariance once k >= 2 R and 2 M.
    """

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        *,
        num_sources: int,
        factor: Tensor | None = None,
        covariance: Covariance = "diagonal",
    ) -> None:
        self.loc, self.scale, self.factor = loc, scale, factor
        self.covariance: Covariance = covariance
        parts = {}
        for name, part in site_slices(num_sources, loc.shape[-1] - num_sources).items():
            location, spread = loc[..., part].unsqueeze(1), scale[..., part].unsqueeze(1)
            if covariance == "diagonal" or factor is None:
                parts[name] = ILRNormal.from_logits(location, spread)
                continue
            columns = factor[..., part, :].unsqueeze(1)
            if covariance == "low_rank":
                parts[name] = ILRNormal.from_factor(location, spread, columns)
            else:
                first, second = columns.chunk(2, dim=-1)
                product = first @ second.mT
                log_covariance = torch.diag_embed(2 * spread.log()) + product + product.mT
                parts[name] = ILRNormal.from_log_covariance(location, log_covariance)
        super().__init__(parts, num_sources, loc.shape[-1] - num_sources, loc, loc.shape[1] if loc.ndim == 3 else 1)

    def __getitem__(self, episodes: slice | Sequence[int]) -> Self:
        return type(self)(
            self.loc[episodes],
            self.scale[episodes],
            num_sources=self.num_sources,
            factor=None if self.factor is None else self.factor[episodes],
            covariance=self.covariance,
        )


@register("guide", "logistic_normal")
class LogisticNormalGuide(RoutingGuide):
    """q(w, alpha | S) with Gaussian logits; pairs with every prior on the simplex.

    Args:
        num_sources: R.
        num_experts: M.
        num_blocks: L, one routing for each block of the network.
        prior: where the posterior stands before any evidence.
        encoder: of the support; default :class:`~pyro_smat.encoders.EvidenceEncoder`.
        covariance: "diagonal", "low_rank" or "full", equivariant in the sources.
        rank: k of "low_rank"; "full" takes R + M instead.

    Example:
        >>> from pyro_smat import EpisodeSampler, glyph_pool
        >>> batch = EpisodeSampler(glyph_pool("validation"), 3, 2, 1).sample(4)
        >>> batch = batch.with_features(torch.rand(4, 5, 6, 8))  # (B, R, S, f); SourceFeatures gives real ones
        >>> guide = LogisticNormalGuide(5, num_experts=2, covariance="full")
        >>> guide.posterior(batch).sample(10).shape
        torch.Size([10, 4, 7])
    """

    def __init__(
        self,
        num_sources: int,
        num_experts: int = 0,
        *,
        num_blocks: int = 1,
        prior: RoutingPrior | None = None,
        encoder: SupportEncoder | None = None,
        covariance: Covariance = "diagonal",
        rank: int = 2,
    ) -> None:
        super().__init__(prior)
        if covariance not in COVARIANCES or rank < 1:
            raise ValueError(
                f"covariance is {covariance!r} and rank {rank}; expected one of {COVARIANCES} and rank >= 1"
            )
        self.covariance: Covariance = covariance
        columns = {"diagonal": 0, "low_rank": rank, "full": 2 * (num_sources + num_experts)}[covariance]
        self.router = RouterNetwork(num_sources, num_experts, num_blocks=num_blocks, encoder=encoder, columns=columns)

    def posterior(self, batch: EpisodeBatch) -> LogisticNormalPosterior:
        logits = self.router(batch)
        factor = logits.factor
        if self.covariance == "full":  # an exponential: entries of the log covariance stay within +-6 of log D
            factor = (6.0 / factor.shape[-1]) ** 0.5 * factor.tanh()
        location = logits.location + self.prior_logits(logits.location)
        return LogisticNormalPosterior(
            location, logits.scale, num_sources=self.router.num_sources, factor=factor, covariance=self.covariance
        )
