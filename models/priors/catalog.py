"""CatalogPrior: a prior over a finite catalog of routings, uniform or given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from pyro_smat.models.priors.prior import RoutingPrior
from pyro_smat.registry import register
from pyro_smat.routing import CATALOG_SITE, Catalog
from pyro_smat.routing.distributions.catalog import CatalogCategorical


@register("prior", "catalog")
class CatalogPrior(RoutingPrior):
    """Prior over the rows of a catalog.

    Args:
        catalog: the J allowed routings, blockwise ones too.
        logits: ``(J,)`` unnormalised log prior, -inf where a routing is forbidden; default uniform.
        learn: make the logits a parameter (empirical Bayes).

    The site "routing" is one-hot, ``(J,)``; the coefficients are value @ A, so that relaxed values work as well.

    Raises:
        ValueError: for logits of another shape or that make no distribution.

    Example:
        >>> from pyro_smat.routing import Catalog
        >>> catalog = Catalog.k_hot(("a", "b", "c"), max_sources=2)
        >>> prior = CatalogPrior(catalog, logits=[2.0, 0.0, 0.0, 0.0, 0.0, 0.0])
        >>> prior.base_logits().exp()[0]
        tensor(0.5964)
    """

    raw_logits: Tensor
    coefficients: Tensor

    def __init__(
        self, catalog: Catalog, *, logits: Tensor | Sequence[float] | None = None, learn: bool = False
    ) -> None:
        super().__init__()
        logits = torch.zeros(len(catalog)) if logits is None else torch.as_tensor(logits)
        check_logits(logits, len(catalog))
        self.catalog = catalog
        self.num_blocks = catalog.coefficients.shape[1] if catalog.coefficients.ndim == 3 else 1
        if learn:
            self.raw_logits = nn.Parameter(logits.clone())
        else:
            self.register_buffer("raw_logits", logits)
        self.register_buffer("coefficients", catalog.coefficients.clone())

    @classmethod
    def member(cls, name: str) -> Callable[..., RoutingPrior]:
        from pyro_smat.models.priors.cost_aware_catalog import CostAwareCatalogPrior  # which derives from this class

        return {"uniform": CatalogPrior, "cost_aware": CostAwareCatalogPrior}[name]

    @property
    def logits(self) -> Tensor:
        """ln p(A) ``(J,)``, normalised."""
        return self.raw_logits.log_softmax(-1)

    @property
    def size(self) -> int:
        return self.coefficients.shape[-1]

    @property
    def site_names(self) -> tuple[str, ...]:
        return (CATALOG_SITE,)

    def distribution(self, site: str, drawn: Mapping[str, Tensor]) -> CatalogCategorical:
        self._check_site(site)
        return CatalogCategorical(self.logits)

    def base_logits(self) -> Tensor:
        return self.logits

    def coefficients_of(self, drawn: Mapping[str, Tensor]) -> Tensor:
        return torch.tensordot(drawn[CATALOG_SITE].to(self.coefficients.dtype), self.coefficients, 1)


def check_logits(logits: Tensor, size: int) -> None:
    """Raises ValueError unless ``logits`` are ``(size,)`` and leave some routing allowed."""
    if logits.shape != (size,):
        raise ValueError(f"logits have shape {tuple(logits.shape)}; expected ({size},), one a routing")
    if not torch.isfinite(logits.logsumexp(-1)):
        raise ValueError("logits hold NaN or +inf, or are all -inf; expected at least one routing that is allowed")
