"""Named routings: fixed coefficients that a config can name, such as what a task falls back to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from pyro_smat.models.routed import RoutedModel
from pyro_smat.routing import CATALOG_SITE, Catalog

SOURCE_0 = "source 0"
PRIOR_MEAN = "prior mean"


class NamedRoutings(Mapping[str, Tensor]):
    """Name -> coefficients ``([L,] R + M)``, made when they are asked for.

    The names are "source 0"; "prior mean", the mean weights that the prior gives (where they have no closed form: those
    that guides start from); every source; and every routing of the catalog.

    Args:
        model: gives sources and prior.
        catalog: of a guide over a catalog.
    """

    def __init__(self, model: RoutedModel, catalog: Catalog | None = None) -> None:
        self.model, self.catalog = model, catalog

    def __iter__(self) -> Iterator[str]:
        catalog = () if self.catalog is None else self.catalog.names
        yield from dict.fromkeys((SOURCE_0, PRIOR_MEAN, *self.model.source_names, *catalog))

    def __len__(self) -> int:
        return len(list(iter(self)))

    @torch.no_grad()
    def __getitem__(self, name: str) -> Tensor:
        """The coefficients.

        Raises:
            ValueError: for a name that is none of these.
        """
        prior, sources = self.model.prior, self.model.source_names
        blocks = len(self.model.network.space.block_names)
        coefficients = torch.zeros(
            (prior.size,) if blocks == 1 else (blocks, prior.size), device=self.model.source_basis.device
        )
        if name == PRIOR_MEAN:
            log_weights = prior.base_logits().to(coefficients)
            if CATALOG_SITE in prior.site_names:
                return prior.coefficients_of({CATALOG_SITE: log_weights.softmax(-1)}).to(coefficients)
            parts = log_weights.split([len(sources), prior.size - len(sources)], dim=-1)
            return torch.cat([part.softmax(-1) for part in parts], dim=-1)
        if name == SOURCE_0 or name in sources:
            coefficients[..., 0 if name == SOURCE_0 else sources.index(name)] = 1.0
            return coefficients
        if self.catalog is not None and name in self.catalog.names:
            return self.catalog.coefficients[self.catalog.names.index(name)].to(coefficients)
        raise ValueError(f"routing is {name!r}; expected one of {', '.join(self)}")
