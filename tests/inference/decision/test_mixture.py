"""Mixtures: merging changes no prediction, and leaves no routing twice."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_smat.inference.decision import Mixture
from pyro_smat.inference.decision.mixture import distinct

shapes = st.tuples(st.integers(1, 7), st.integers(1, 4), st.integers(1, 3), st.integers(0, 1000), st.booleans())


@settings(max_examples=80, deadline=None)
@given(shapes)
def test_merging_by_loop(shape: tuple[int, int, int, int, bool]) -> None:
    count, tasks, kinds, seed, blocks = shape
    generator = torch.Generator().manual_seed(seed)
    rows = torch.rand(kinds, *((2, 3) if blocks else (3,)), generator=generator, dtype=torch.float64)
    drawn = rows[torch.randint(kinds, (count, tasks), generator=generator)]
    weights = torch.rand(count, tasks, generator=generator, dtype=torch.float64).softmax(0)
    found, index = Mixture(drawn, weights).merged(), distinct(drawn)[1]
    widest = 0
    for b in range(tasks):
        totals: dict[tuple[float, ...], float] = {}
        for k in range(count):
            key = tuple(drawn[k, b].flatten().tolist())
            totals[key] = totals.get(key, 0.0) + float(weights[k, b])
            assert torch.equal(found.coefficients[index[k, b], b], drawn[k, b])
        widest = max(widest, len(totals))
        for position, (key, total) in enumerate(totals.items()):  # in the order of first appearance
            assert tuple(found.coefficients[position, b].flatten().tolist()) == key
            assert float(found.weights[position, b]) == pytest.approx(total)
        assert not found.weights[len(totals) :, b].any()
    assert len(found) == widest


def test_one_and_equal() -> None:
    coefficients = torch.rand(3, 2, 4)
    torch.testing.assert_close(Mixture.equal(coefficients).weights, torch.full((3, 2), 1 / 3))
    one = Mixture.one(coefficients[0])
    assert one.coefficients.shape == (1, 2, 4)
    assert one.weights.tolist() == [[1, 1]]
