"""Distributions over the rows of a catalog, as one-hot vectors: exact, and relaxed for training.

A one-hot value times the catalog's rows is a routing; the same product makes sense of a relaxed value, so a prior and a
model need not know which of the two a guide draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.kl import register_kl

from pyro_smat.routing.coordinates import straight_through
from pyro_smat.routing.distributions.ilr import standard_exponential


class CatalogCategorical(dist.OneHotCategorical):
    r"""A one-hot categorical whose log mass is linear in the value, :math:`\sum_j s_j \log p_j`.

    That is the log probability of a one-hot value, and of a relaxed one its expectation over the rows.
    """

    def __init__(self, logits: Tensor, validate_args: bool | None = False) -> None:
        super().__init__(logits=logits, validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> CatalogCategorical:
        return super().expand(batch_shape, _instance or self.__new__(CatalogCategorical))

    def log_prob(self, value: Tensor) -> Tensor:
        return (value * self.logits.masked_fill(value == 0, 0.0)).sum(-1)  # 0 x -inf is 0, in the gradient too


class RelaxedCatalog(TorchDistribution):
    """A Gumbel-softmax relaxation of a categorical over J rows, for training only.

    Draws are ``softmax((logits + G) / T)``; with ``hard`` the one-hot of their largest entry, with the gradient of the
    soft draw. ``log_prob`` and KL are those of the categorical that is being trained and deployed, not of the density
    of the relaxed draws, which is a larger regulariser (data processing by argmax).

    Args:
        logits: ``(*b, J)``.
        temperature: T > 0.
        hard: straight-through.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.simplex
    has_rsample = True

    def __init__(self, logits: Tensor, temperature: float, hard: bool = False) -> None:
        self.categorical = CatalogCategorical(logits)
        self.temperature, self.hard = temperature, hard
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> RelaxedCatalog:
        return RelaxedCatalog(self.categorical.expand(batch_shape).logits, self.temperature, self.hard)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        logits = self.categorical.logits
        gumbel = -standard_exponential((*sample_shape, *logits.shape), logits, None).log()
        soft = ((logits + gumbel) / self.temperature).softmax(-1)
        return straight_through(soft, soft.shape[-1]) if self.hard else soft

    def log_prob(self, value: Tensor) -> Tensor:
        return self.categorical.log_prob(value)

    def entropy(self) -> Tensor:
        return self.categorical.entropy()


@register_kl(CatalogCategorical, CatalogCategorical)
def _kl_catalog(q: CatalogCategorical, p: CatalogCategorical) -> Tensor:
    """From the logits: torch's own takes a probability that rounds to 0, such as exp(-beta cost), to be 0."""
    probabilities = q.probs
    log_ratio = (q.logits - p.logits).masked_fill(probabilities == 0, 0.0)
    return (probabilities * log_ratio).sum(-1)


@register_kl(RelaxedCatalog, CatalogCategorical)
def _kl_relaxed(q: RelaxedCatalog, p: CatalogCategorical) -> Tensor:
    return torch.distributions.kl_divergence(q.categorical, p)
