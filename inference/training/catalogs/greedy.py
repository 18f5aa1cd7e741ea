"""Greedy proposals: forward selection of sources, episode by episode."""

from __future__ import annotations

from pyro_smat.inference.training.catalogs.search import CANDIDATES, CatalogSearch, check_counts, forward_selection
from pyro_smat.registry import register
from pyro_smat.routing import Catalog


@register("catalog", "greedy")
def greedy_catalog(
    search: CatalogSearch,
    num_experts: int = 0,
    *,
    size: int = 32,
    max_sources: int = 1,
    episodes: int = 64,
    candidates: int = CANDIDATES,
) -> Catalog:
    """A catalog of routings that a forward selection proposes; the same arguments give the same catalog.

    For every episode the end of a forward selection is proposed: from its best single source and expert (or none),
    the source that lowers its query loss most is added until none does.
    Single sources, with every expert and with none, are always candidates.

    Args:
        search: model and training episodes.
        num_experts: M of the router.
        size: J, the most routings of the catalog; fewer when more do not help.
        max_sources: the most sources of a routing.
        episodes: to propose and try them on.
        candidates: the most proposals that are tried on all episodes, those of the most episodes.

    Returns:
        The catalog, with names like "letter+face/expert0"; where the model mixes in blocks, every block has the same
        mixture.

    Raises:
        ValueError: for numbers below 1, or no episodes.

    Example:
        >>> from pyro_smat import EpisodeSampler, glyph_pool
        >>> from pyro_smat.inference.assembly.config import RunConfig
        >>> from pyro_smat.inference.assembly.router import build_router
        >>> model = build_router(RunConfig(experts={"count": 0})).model
        >>> sampler = EpisodeSampler(glyph_pool("validation"), 3, 2, 1)
        >>> search = CatalogSearch(model, lambda episodes: [sampler.sample(episodes)])
        >>> 1 <= len(greedy_catalog(search, size=6, max_sources=2, episodes=4)) <= 6
        True
    """
    check_counts(size=size, max_sources=max_sources, candidates=candidates)
    tables = search.tables(episodes)
    proposed = forward_selection(search, tables, max_sources, width=1)
    return search.best(tables, proposed, size, num_experts, candidates)
