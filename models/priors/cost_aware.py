"""Cost-aware: the prior of the guide's own family that shuns what costs much."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyro_smat.models.priors.family import of_family
from pyro_smat.models.priors.prior import RoutingPrior
from pyro_smat.registry import register
from pyro_smat.routing import Catalog

if TYPE_CHECKING:
    from pyro_smat.guides import RoutingGuide


@register("prior", "cost_aware")
def cost_aware(
    guide_class: type[RoutingGuide],
    num_sources: int,
    *,
    num_experts: int,
    num_blocks: int,
    catalog: Catalog | None,
    beta: float = 1.0,
    target_cost: float | None = None,
    costs: Sequence[float] | None = None,
    learn: bool | None = None,
    hyperprior: Sequence[float] | None = None,
    scale: float | None = None,
) -> RoutingPrior:
    r""":math:`p(c) \propto e^{-\beta\,\mathrm{cost}(c)}` (Bayes-routed SMAT, section 4).

    So over a catalog and for Dirichlet and Concrete guides; logistic-normal ones get logit means -beta x cost.

    Args:
        guide_class: whose family of priors is taken.
        num_sources, num_experts, num_blocks: R, M and L.
        catalog: of a guide over a catalog, else None.
        beta: >= 0, how much log probability one unit of cost takes away.
        target_cost: instead of beta: the expected cost of a task's routing, for which beta is solved.
        costs: R + M prices of opening each source and expert; default 0 for the fallback, 1 for every other.
        learn: make beta a parameter (empirical Bayes).
        hyperprior: (shape, rate) of a gamma density of a learned beta.
        scale: standard deviation of logistic-normal logits; default 2.

    Raises:
        ValueError: for an option that the guide's family does not have, or values that make no prior.
    """
    supplied = {"num_sources": num_sources, "num_experts": num_experts, "num_blocks": num_blocks, "catalog": catalog}
    options = {"beta": beta, "target_cost": target_cost, "costs": costs, "learn": learn, "hyperprior": hyperprior}
    return of_family("cost_aware", guide_class, supplied, options | {"scale": scale})
