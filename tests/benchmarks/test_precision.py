"""bfloat16 and float16 are within the tolerances of docs/scale.md of float32, for every family."""

from __future__ import annotations

import re
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from pyro_smat.registry import names

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from precision import GUIDES, HALVES, LARGE, NETWORKS, Case, cases, compare  # noqa: E402

CPU = torch.device("cpu")
CASES = [
    *(Case(network, "point") for network in NETWORKS),
    *(Case("conv4", guide, priors[-1]) for guide, priors in GUIDES.items()),
    *(Case("conv4", "dirichlet", prior) for prior in GUIDES["dirichlet"][:-1]),
    *(Case("conv4", "hierarchical", prior) for prior in GUIDES["hierarchical"][1:-1]),
]


def stated() -> dict[str, dict[str, float]]:
    """Precision, of a network where it has tolerances of its own -> column -> tolerance, from the table of the docs."""
    text = (ROOT / "docs" / "scale.md").read_text()
    header, *rows = re.findall(r"^\| (?:difference|`bfloat16`|`float16`).*\|$", text, re.MULTILINE)
    columns = [cell.strip() for cell in header.strip("|").split("|")][1:]
    table = [[cell.strip().replace("`", "") for cell in row.strip("|").split("|")] for row in rows]
    return {name: dict(zip(columns, map(float, values), strict=True)) for name, *values in table}


TOLERANCES = stated()
MARKED = [
    pytest.param(
        *(case, half),
        id="-".join((*asdict(case).values(), half)),
        marks=[pytest.mark.slow] if case.network in LARGE else [],
    )
    for case in CASES
    for half in HALVES
]


def test_every_family_is_compared() -> None:
    compared = list(cases())
    assert {case.guide for case in compared} == set(names("guide"))
    assert {case.prior for case in compared} == set(names("prior"))
    assert set(TOLERANCES) == {*HALVES, *(f"{half} {network}" for half in HALVES for network in LARGE)}


@pytest.mark.parametrize(("case", "half"), MARKED)
def test_within_the_stated_tolerances(case: Case, half: str) -> None:
    found = asdict(compare(case, half, CPU, episodes=2, steps=2))
    assert found["features"] > 1e-5  # it did run in 16 bits
    tolerances = TOLERANCES.get(f"{half} {case.network}", TOLERANCES[half])
    above = {name: value for name, value in found.items() if not value <= tolerances[name]}
    assert not above
