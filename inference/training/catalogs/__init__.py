"""Catalogs: what the program knows of the sources goes in, a :class:`~pyro_smat.routing.Catalog` of routings comes out.

To add one, write one function in one file here, registered by its name::

    @register("catalog", "pairs")
    def pair_catalog(source_names, num_experts=0, *, size: int = 10) -> Catalog: ...

Its arguments are what the program supplies (``KINDS["catalog"].supplied``), its keyword-only arguments are options of
a config. One that asks for ``search`` is given a model and training episodes to try routings on (CatalogSearch).
"""

from pyro_smat.inference.training.catalogs.beam import beam_catalog
from pyro_smat.inference.training.catalogs.greedy import greedy_catalog
from pyro_smat.inference.training.catalogs.k_hot import k_hot_catalog
from pyro_smat.inference.training.catalogs.random import random_catalog
from pyro_smat.inference.training.catalogs.search import CatalogSearch, select_routings
from pyro_smat.inference.training.catalogs.wise_ft import wise_ft_catalog
from pyro_smat.registry import Choice, takes

__all__ = [
    "CatalogSearch",
    "beam_catalog",
    "greedy_catalog",
    "k_hot_catalog",
    "needs_search",
    "random_catalog",
    "select_routings",
    "wise_ft_catalog",
]


def needs_search(choice: Choice) -> bool:
    """Whether a catalog is searched on training episodes, so that it cannot be had before there is a model.

    Example:
        >>> from pyro_smat.registry import choose
        >>> needs_search(choose("catalog", "greedy")), needs_search(choose("catalog", "k_hot"))
        (True, False)
    """
    return takes(choice, "search")
