"""Every uniform mixture of a few sources: a catalog that needs no search."""

from __future__ import annotations

from collections.abc import Sequence

from pyro_smat.registry import register
from pyro_smat.routing import Catalog


@register("catalog", "k_hot")
def k_hot_catalog(
    source_names: Sequence[str],
    num_experts: int = 0,
    num_blocks: int = 1,
    limit: int = 256,
    *,
    max_sources: int = 1,
) -> Catalog:
    """Every uniform mixture of 1 to ``max_sources`` sources, each with every single expert, each block by itself.

    Args:
        source_names: of the R sources.
        num_experts: M.
        num_blocks: L.
        limit: the largest number of routings that the guide can hold.
        max_sources: the most sources of a routing.

    Raises:
        ValueError: when that makes no routing, or more than ``limit``.

    Example:
        >>> k_hot_catalog(("letter", "face"), max_sources=2).names
        ('letter', 'face', 'letter+face')
    """
    one = Catalog.k_hot(source_names, num_experts, max_sources, limit)
    return one if num_blocks == 1 else Catalog.blockwise([one] * num_blocks, limit)
