"""Given: a catalog that was made by hand, in Python; its routings are in the router's file and cannot be named."""

from __future__ import annotations

from pyro_smat.registry import register
from pyro_smat.routing import Catalog


@register("catalog", "given")
def given_catalog() -> Catalog:
    """What a saved router says of a catalog that its user made.

    Raises:
        ValueError: always: the routings themselves have to be there.
    """
    raise ValueError("catalog 'given' is one that was made by hand; expected its routings: pass catalog=Catalog(...)")
