"""Which prior a name means for a guide: asked of the guide's family of priors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pyro_smat.models.priors.prior import RoutingPrior
from pyro_smat.registry import accepts

if TYPE_CHECKING:
    from pyro_smat.guides import RoutingGuide


def of_family(
    member: str, guide_class: type[RoutingGuide], supplied: Mapping[str, Any], options: Mapping[str, Any]
) -> RoutingPrior:
    """The member "uniform" or "cost_aware" of a guide's family of priors.

    Args:
        member: see :meth:`~pyro_smat.models.priors.RoutingPrior.member`.
        guide_class: its ``prior_family`` is asked.
        supplied: what the program knows; the family takes what it has parameters for.
        options: those that are None were not given.

    Raises:
        ValueError: for an option that was given and that the family does not have.
    """
    make = guide_class.prior_family.member(member)
    given = {name: value for name, value in options.items() if value is not None}
    idle = [name for name in given if not accepts(make, name)]
    if idle:
        known = [name for name in options if accepts(make, name)]
        idle_options = ", ".join(f"prior.{name}" for name in idle)
        raise ValueError(
            f"{idle_options} does nothing for kind {member!r} with {guide_class.__name__}; it uses "
            f"{', '.join(known) or 'no options'}"
        )
    return make(**{name: value for name, value in supplied.items() if accepts(make, name)}, **given)
