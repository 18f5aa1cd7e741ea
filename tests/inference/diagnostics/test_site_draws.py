"""Draws of sites: their law, shapes, and a generator that is theirs alone."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import TorchDistribution

from pyro_smat.inference.diagnostics.site_draws import draw_sites
from pyro_smat.routing.distributions.catalog import CatalogCategorical
from pyro_smat.routing.distributions.normal import ILRNormal

PROBABILITIES = torch.tensor([[[0.7, 0.2, 0.1]], [[0.0, 0.5, 0.5]]])  # (B, 1, J)
LOC = torch.tensor([[[1.0, -2.0]], [[0.5, 3.0]]])
COUNT = 20_000


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_routings_come_as_often_as_they_are_probable() -> None:
    drawn = draw_sites({"route": CatalogCategorical(PROBABILITIES.log())}, COUNT, seeded())["route"]
    assert drawn.shape == (COUNT, 2, 1, 3)
    assert torch.equal(drawn.sum(-1), torch.ones(COUNT, 2, 1))
    torch.testing.assert_close(drawn.mean(0), PROBABILITIES, rtol=0, atol=0.02)
    assert drawn[:, 1, 0, 0].sum() == 0


def test_blocks_are_drawn_one_by_one() -> None:
    blocks = torch.stack([PROBABILITIES, PROBABILITIES.flip(-1)], dim=-2)  # (B, 1, L, J)
    site = dist.OneHotCategorical(blocks).to_event(1)
    drawn = draw_sites({"route": site}, COUNT, seeded())["route"]
    assert drawn.shape == (COUNT, 2, 1, 2, 3)
    torch.testing.assert_close(drawn.mean(0), blocks, rtol=0, atol=0.02)
    together = (drawn[:, 0, 0, 0, 0] * drawn[:, 0, 0, 1, 2]).mean()
    assert together.item() == pytest.approx(0.7 * 0.7, abs=0.02)


def test_coordinates_have_their_mean_and_scale() -> None:
    drawn = draw_sites({"ilr": ILRNormal(LOC, 0.25 * torch.eye(2))}, COUNT, seeded())["ilr"]
    torch.testing.assert_close(drawn.mean(0), LOC, rtol=0, atol=0.02)
    torch.testing.assert_close(drawn.std(0), torch.full_like(LOC, 0.5), rtol=0, atol=0.02)


def test_a_point_is_itself() -> None:
    drawn = draw_sites({"ilr": dist.Delta(LOC, event_dim=1)}, 3, None)["ilr"]
    assert torch.equal(drawn, LOC.expand(3, *LOC.shape))


def test_the_generator_decides_and_the_global_one_is_left_alone() -> None:
    sites: dict[str, TorchDistribution] = {
        "route": CatalogCategorical(PROBABILITIES.log()),
        "ilr": ILRNormal(LOC, torch.eye(2)),
    }
    before = torch.get_rng_state()
    first, again, other = (draw_sites(sites, 50, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    for name in sites:
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])
