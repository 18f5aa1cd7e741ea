"""HierarchicalPrior: first a family of routings, then a routing of that family."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_smat.models.priors.catalog import CatalogPrior, check_logits
from pyro_smat.registry import register
from pyro_smat.routing import Catalog


@register("prior", "hierarchical")
class HierarchicalPrior(CatalogPrior):
    """p(A) = p(family of A) p(A | family of A), the family summed out: every catalog guide pairs with it, exactly.

    Uniform over families and inside them, it gives a family of two routings as much mass as one of two hundred:
    "one source" against "a pair" against "any triple", say.

    Args:
        catalog: the J allowed routings.
        families: J numbers 0..F-1, the family of every routing; default: those that open the same sources.
        family_logits: ``(F,)`` unnormalised ln p(family); default uniform.
        member_logits: ``(J,)`` unnormalised ln p(A | family), each family normalised by itself; default uniform.
        learn: make both logits parameters (empirical Bayes).

    Raises:
        ValueError: for another number of families than of routings, a number left out, or logits that make no
            distribution.

    Example:
        >>> from pyro_smat.routing import Catalog
        >>> catalog = Catalog.k_hot(("a", "b"), experts=3)  # a family is a source, its members the three experts
        >>> prior = HierarchicalPrior(catalog, family_logits=torch.tensor([1.0, 0.0]))
        >>> prior.base_logits().exp()
        tensor([0.2437, 0.2437, 0.2437, 0.0896, 0.0896, 0.0896])
    """

    family_logits: Tensor
    families: Tensor

    def __init__(
        self,
        catalog: Catalog,
        families: Sequence[int] | None = None,
        *,
        family_logits: Tensor | None = None,
        member_logits: Tensor | None = None,
        learn: bool = False,
    ) -> None:
        super().__init__(catalog, logits=member_logits, learn=learn)
        families = catalog.families() if families is None else families
        if len(families) != len(catalog):
            raise ValueError(f"got {len(families)} families; expected {len(catalog)}, one a routing")
        count = max(families) + 1
        if set(families) != set(range(count)):
            raise ValueError(f"families are {sorted(set(families))}; expected every number from 0 to {count - 1}")
        family_logits = torch.zeros(count) if family_logits is None else family_logits
        if family_logits.shape != (count,):
            raise ValueError(f"family_logits have shape {tuple(family_logits.shape)}; expected ({count},)")
        check_logits(family_logits, count)
        self.register_buffer("families", torch.tensor(list(families)))
        if learn:
            self.family_logits = nn.Parameter(family_logits.clone())
        else:
            self.register_buffer("family_logits", family_logits)
        inside = self._log_mass_of_families()
        if not torch.isfinite(inside).all():
            raise ValueError(
                f"member_logits forbid all of family {int(inside.isinf().int().argmax())}; forbid the "
                "family itself by a family logit of -inf"
            )

    @property
    def logits(self) -> Tensor:
        inside = self.raw_logits - self._log_mass_of_families()[self.families]
        return self.family_logits.log_softmax(-1)[self.families] + inside

    def _log_mass_of_families(self) -> Tensor:
        member = self.families == torch.arange(len(self.family_logits), device=self.families.device).unsqueeze(-1)
        return torch.where(member, self.raw_logits, -torch.inf).logsumexp(-1)
