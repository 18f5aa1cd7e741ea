"""Uniform: the prior of the guide's own family that treats all routings alike, so that its KL is exact."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyro_smat.models.priors.family import of_family
from pyro_smat.models.priors.prior import RoutingPrior
from pyro_smat.registry import register
from pyro_smat.routing import Catalog

if TYPE_CHECKING:
    from pyro_smat.guides import RoutingGuide


@register("prior", "uniform")
def uniform(
    guide_class: type[RoutingGuide],
    num_sources: int,
    *,
    num_experts: int,
    num_blocks: int,
    catalog: Catalog | None,
    scale: float | None = None,
    concentration: float | None = None,
) -> RoutingPrior:
    """All routings alike: over the catalog, or logistic-normal or Dirichlet, as the guide is.

    Args:
        guide_class: whose family of priors is taken.
        num_sources, num_experts, num_blocks: R, M and L.
        catalog: of a guide over a catalog, else None.
        scale: standard deviation of logistic-normal logits; default 2.
        concentration: of a Dirichlet; default 1, flat on the simplex.

    Raises:
        ValueError: for an option that the guide's family does not have.
    """
    supplied = {"num_sources": num_sources, "num_experts": num_experts, "num_blocks": num_blocks, "catalog": catalog}
    return of_family("uniform", guide_class, supplied, {"scale": scale, "concentration": concentration})
