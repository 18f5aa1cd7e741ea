"""A catalog that was made in Python: a config can say that there is one, and not which."""

from __future__ import annotations

from pyro_smat.inference.training.catalogs.search import CatalogSearch
from pyro_smat.registry import register
from pyro_smat.routing import Catalog


@register("catalog", "given")
def given_catalog(search: CatalogSearch) -> Catalog:
    """What a saved router says of a catalog that no other name makes; its routings are saved with it.

    Args:
        search: nothing is searched; the catalog is as fixed as one that was.

    Raises:
        ValueError: always: the catalog has to be passed.
    """
    raise ValueError(
        "guide.catalog is 'given': a list of routings that was made in Python; pass it to "
        "build_router(..., catalog=...), or name a catalog that can be made, such as 'k_hot' or 'greedy'"
    )
