"""The catalog on the way from the start to each source: weights by hand, blocks, experts, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from pyro_smat.registry import build, choose

NAMES = ("base", "a", "b")


def made(options: Mapping[str, Any] = {}, **supplied: Any) -> Any:
    return build(choose("catalog", {"kind": "wise_ft", **options}), {"source_names": NAMES, **supplied})


def test_weights_and_names_of_every_part() -> None:
    catalog = made({"start": "b", "parts": [1.0, 0.25]})
    rows = [[0, 0, 1], [0.25, 0, 0.75], [1, 0, 0], [0, 0.25, 0.75], [0, 1, 0]]
    assert catalog.coefficients.tolist() == rows
    assert catalog.names == ("b", "b>base 0.25", "base", "b>a 0.25", "a")


def test_parts_of_a_third_are_mixtures() -> None:
    assert torch.allclose(made({"parts": [1 / 3, 2 / 3]}).coefficients.sum(-1), torch.ones(5))


@pytest.mark.parametrize("num_experts", [0, 2])
@pytest.mark.parametrize("num_blocks", [1, 2])
def test_every_block_chooses_by_itself_with_every_expert(num_experts: int, num_blocks: int) -> None:
    catalog = made(num_experts=num_experts, num_blocks=num_blocks)
    assert len(catalog) == (5 * max(num_experts, 1)) ** num_blocks
    assert len(catalog.coefficients.unique(dim=0)) == len(catalog)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"start": "c"}, r"start is 'c'; expected one of the sources: base, a, b"),
        ({"parts": []}, r"parts is \[\]; expected different shares"),
        ({"parts": [0.5, 0.5]}, r"parts is \[0.5, 0.5\]"),
        ({"parts": [0.0]}, r"parts is \[0.0\]"),
        ({"parts": [1.5]}, r"parts is \[1.5\]"),
    ],
)
def test_what_is_no_way_is_refused(options: Mapping[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        made(options)


def test_more_routings_than_the_guide_can_hold_are_refused() -> None:
    with pytest.raises(ValueError, match="5 routings; expected at most 4"):
        made(limit=4)
    with pytest.raises(ValueError, match="make 25 routings; expected at most 24"):
        made(num_blocks=2, limit=24)
