"""MixturePrior: several beliefs about the routing at once, such as "cheap" against "accurate"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_smat.models.priors.catalog import CatalogPrior
from pyro_smat.models.priors.prior import RoutingPrior, SimplexPrior
from pyro_smat.registry import register
from pyro_smat.routing import CATALOG_SITE
from pyro_smat.routing.distributions import ILRMixture
from pyro_smat.routing.distributions.catalog import CatalogCategorical


@register("prior", "mixture")
class MixturePrior(RoutingPrior):
    r"""p(c) = sum_j pi_j p_j(c), the component summed out of the density.

    Args:
        components: J priors with the same sites: all on the simplex (same R, M and blocks) or all over one catalog.
        weights: pi up to a factor, J numbers >= 0; default equal. > 0 when learned.
        learn: make them parameters (empirical Bayes), through their logits.
        hyperprior: a Dirichlet or its concentrations, the density of learned weights on their simplex.
        kl: "sampled" leaves KL(q || p) to Monte Carlo; "bound" takes its upper bound
            :math:`-\ln \sum_j \pi_j e^{-KL(q \| p_j)}`, where the KL of q to every component is known. Over a catalog
            the KL is exact either way.

    One component is drawn for sources, experts and all blocks of a task together: with two parts the expert site is a
    mixture whose weights are the responsibilities pi_j p_j(source ILR coordinates) of the components.

    Example:
        Cheap against accurate, and one component for every domain that a source was trained on::

            MixturePrior([SimplexCostPrior(3, beta=5.0), DirichletPrior(3)], weights=[0.7, 0.3], learn=True)
            MixturePrior([LogisticNormalPrior(3, loc=3.0 * torch.eye(3)[r]) for r in range(3)])

    Raises:
        ValueError: for components or weights that make no mixture, or a hyperprior on fixed weights.

    Example:
        >>> from pyro_smat.models.priors import DirichletPrior
        >>> prior = MixturePrior([DirichletPrior(3), DirichletPrior(3, concentration=0.1)], weights=[0.5, 0.5])
        >>> prior.site_names
        ('source_ilr',)
    """

    raw_log_weights: Tensor

    def __init__(
        self,
        components: Sequence[RoutingPrior],
        weights: Sequence[float] | Tensor | None = None,
        *,
        learn: bool = False,
        hyperprior: dist.Dirichlet | Sequence[float] | None = None,
        kl: Literal["sampled", "bound"] = "sampled",
    ) -> None:
        super().__init__()
        _check_components(components)
        if kl not in ("sampled", "bound"):
            raise ValueError(f"kl is {kl!r}; expected 'sampled' or 'bound'")
        count = len(components)
        log_weights = _log_weights(weights, count)
        if learn and not torch.isfinite(log_weights).all():
            raise ValueError(f"weights are {log_weights.exp().tolist()}; expected all > 0, as learned ones are logits")
        if hyperprior is not None and not learn:
            raise ValueError("a hyperprior of the weights was given, but they are fixed: pass learn=True")
        density = hyperprior
        if isinstance(density, Sequence):
            density = dist.Dirichlet(torch.tensor([float(value) for value in density]))
        if density is not None and density.concentration.shape != (count,):
            raise ValueError(
                f"the hyperprior has concentrations {tuple(density.concentration.shape)}; expected ({count},), one "
                "a component"
            )
        self.count, self.kl = count, kl
        self.num_blocks = components[0].num_blocks
        # As attributes, not in a ModuleList: Pyro needs a full name of its own for every parameter inside.
        for j, component in enumerate(components):
            setattr(self, f"component{j}", component)
        if learn:
            self.raw_log_weights = nn.Parameter(log_weights)
        else:
            self.register_buffer("raw_log_weights", log_weights)
        self.register_buffer("concentration", None if density is None else density.concentration.clone())

    @property
    def components(self) -> tuple[RoutingPrior, ...]:
        return tuple(getattr(self, f"component{j}") for j in range(self.count))

    @property
    def log_weights(self) -> Tensor:
        """ln pi ``(J,)``, normalised."""
        return self.raw_log_weights.log_softmax(-1)

    @property
    def size(self) -> int:
        return self.components[0].size

    @property
    def site_names(self) -> tuple[str, ...]:
        return self.components[0].site_names

    def distribution(self, site: str, drawn: Mapping[str, Tensor]) -> TorchDistribution:
        self._check_site(site)
        each = [component.distribution(site, drawn) for component in self.components]
        log_weights = self.log_weights
        if site == CATALOG_SITE:
            rows = torch.stack([distribution.logits for distribution in each], dim=-1)
            return CatalogCategorical((log_weights + rows).logsumexp(-1))
        for before in self.site_names[: self.site_names.index(site)]:
            scores = [component.distribution(before, drawn).log_prob(drawn[before]) for component in self.components]
            log_weights = log_weights + torch.stack(scores, dim=-1)
        return ILRMixture(log_weights, each, bound=self.kl == "bound")

    def base_logits(self) -> Tensor:
        each = torch.stack([component.base_logits() for component in self.components], dim=-1)
        return (each + self.log_weights).logsumexp(-1)

    def coefficients_of(self, drawn: Mapping[str, Tensor]) -> Tensor:
        return self.components[0].coefficients_of(drawn)

    def hyper_log_densities(self) -> dict[str, Tensor]:
        densities = {
            f"component{j}_{name}": density
            for j, component in enumerate(self.components)
            for name, density in component.hyper_log_densities().items()
        }
        if self.concentration is not None:
            densities["weights"] = dist.Dirichlet(self.concentration).log_prob(self.log_weights.exp())
        return densities


def _check_components(components: Sequence[RoutingPrior]) -> None:
    if not components:
        raise ValueError("got no components; expected at least one prior")
    first, *others = [_leaf(component) for component in components]
    for j, other in enumerate(others, start=1):
        if not _same_routings(first, other):
            raise ValueError(
                f"component {j} ({type(other).__name__}) is no prior of the same routings as component 0 "
                f"({type(first).__name__}); expected all on the simplex with the same sources, experts and blocks, or "
                "all over one catalog"
            )


def _leaf(prior: RoutingPrior) -> RoutingPrior:
    return _leaf(prior.components[0]) if isinstance(prior, MixturePrior) else prior


def _same_routings(first: RoutingPrior, other: RoutingPrior) -> bool:
    if isinstance(first, SimplexPrior) and isinstance(other, SimplexPrior):
        return (first.num_sources, first.num_experts, first.num_blocks) == (
            other.num_sources,
            other.num_experts,
            other.num_blocks,
        )
    if isinstance(first, CatalogPrior) and isinstance(other, CatalogPrior):
        same_names = first.catalog.names == other.catalog.names
        return same_names and torch.equal(first.catalog.coefficients, other.catalog.coefficients)
    return False


def _log_weights(weights: Sequence[float] | Tensor | None, count: int) -> Tensor:
    values = torch.ones(count) if weights is None else torch.as_tensor(weights, dtype=torch.get_default_dtype())
    if values.shape != (count,):
        raise ValueError(f"weights have shape {tuple(values.shape)}; expected ({count},), one a component")
    if not (torch.isfinite(values).all() and (values >= 0).all() and values.sum() > 0):
        raise ValueError(f"weights are {values.tolist()}; expected finite numbers >= 0, not all 0")
    return (values / values.sum()).log()
