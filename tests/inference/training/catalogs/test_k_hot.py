"""The k-hot catalog by counting, and which catalogs need a search."""

from __future__ import annotations

from itertools import combinations, product

import pytest

from pyro_smat.inference.training.catalogs import needs_search
from pyro_smat.registry import Supply, build, choose, names

NAMES = ("a", "b", "c", "d")


def refuse() -> object:
    raise AssertionError("a catalog that needs no search asked for one")


@pytest.mark.parametrize("num_experts", [0, 2])
@pytest.mark.parametrize("num_blocks", [1, 2])
@pytest.mark.parametrize("max_sources", [1, 2])
def test_every_mixture_in_every_block(max_sources: int, num_blocks: int, num_experts: int) -> None:
    supplied = Supply(
        source_names=lambda: NAMES,
        num_experts=lambda: num_experts,
        num_blocks=lambda: num_blocks,
        limit=lambda: 400,
        search=refuse,
    )
    catalog = build(choose("catalog", {"kind": "k_hot", "max_sources": max_sources}), supplied)
    subsets = [subset for k in range(1, max_sources + 1) for subset in combinations(range(4), k)]
    rows = [
        [1 / len(subset) if r in subset else 0.0 for r in range(4)] + [float(m == expert) for m in range(num_experts)]
        for subset, expert in product(subsets, range(num_experts) if num_experts else [None])
    ]
    found = catalog.coefficients.tolist()
    assert found == (rows if num_blocks == 1 else [list(pair) for pair in product(rows, repeat=2)])


def test_more_routings_than_the_guide_can_hold_are_refused() -> None:
    with pytest.raises(ValueError, match=r"make 10 routings; expected at most 9"):
        build(choose("catalog", {"kind": "k_hot", "max_sources": 2}), {"source_names": NAMES, "limit": 9})


def test_which_catalogs_need_a_search() -> None:
    found = {name: needs_search(choose("catalog", name)) for name in names("catalog")}
    assert found == {"k_hot": False, "wise_ft": False, "greedy": True, "beam": True, "random": True, "given": True}
    with pytest.raises(ValueError, match=r"'k_hot' has no option 'size'"):
        choose("catalog", {"kind": "k_hot", "size": 3})
