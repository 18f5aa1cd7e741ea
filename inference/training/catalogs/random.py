"""Random proposals: routings drawn uniformly from all, of which the best are kept."""

from __future__ import annotations

from itertools import combinations, product
from math import comb
from random import Random

from pyro_smat.inference.training.catalogs.search import CANDIDATES, CatalogSearch, Member, check_counts
from pyro_smat.registry import register
from pyro_smat.routing import Catalog


@register("catalog", "random")
def random_catalog(
    search: CatalogSearch,
    num_experts: int = 0,
    *,
    size: int = 32,
    max_sources: int = 1,
    episodes: int = 64,
    candidates: int = CANDIDATES,
) -> Catalog:
    """A catalog of the best of some routings drawn at random; the same arguments give the same catalog.

    Args:
        search: model and training episodes.
        num_experts: M of the router.
        size: J, the most routings of the catalog; fewer when more do not help.
        max_sources: the most sources of a routing.
        episodes: to try them on.
        candidates: how many are drawn; single sources are always among them.

    Raises:
        ValueError: for numbers below 1, or no episodes.

    Example:
        >>> from pyro_smat import EpisodeSampler, glyph_pool
        >>> from pyro_smat.inference.assembly.config import RunConfig
        >>> from pyro_smat.inference.assembly.router import build_router
        >>> model = build_router(RunConfig(experts={"count": 0})).model
        >>> sampler = EpisodeSampler(glyph_pool("validation"), 3, 2, 1)
        >>> search = CatalogSearch(model, lambda episodes: [sampler.sample(episodes)])
        >>> 1 <= len(random_catalog(search, size=6, max_sources=2, episodes=4)) <= 6
        True
    """
    check_counts(size=size, max_sources=max_sources, candidates=candidates)
    tables = search.tables(episodes)
    sources = len(search.model.source_names)
    drawn = draw_routings(sources, search.num_experts, max_sources, candidates, Random(search.seed))
    return search.best(tables, drawn, size, num_experts, candidates)


def draw_routings(sources: int, experts: int, max_sources: int, count: int, generator: Random) -> list[Member]:
    """Distinct routings, uniformly from all; all of them when there are no more than ``count``."""
    sizes = range(1, min(max_sources, sources) + 1)
    options = [None, *range(experts)]
    subsets = [comb(sources, k) for k in sizes]
    if sum(subsets) * len(options) <= count:
        everything = (subset for k in sizes for subset in combinations(range(sources), k))
        return [Member(subset, expert) for subset, expert in product(everything, options)]
    drawn: dict[Member, None] = {}
    while len(drawn) < count:
        k = generator.choices(sizes, subsets)[0]
        drawn[Member(tuple(sorted(generator.sample(range(sources), k))), generator.choice(options))] = None
    return list(drawn)
