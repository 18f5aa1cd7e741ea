"""Routing priors: their masses, densities, draws and what they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro
import pytest
import torch

from pyro_smat.models.priors import CatalogPrior, CostAwareCatalogPrior, LogisticNormalPrior
from pyro_smat.routing import Catalog, contrast_basis

CATALOG = Catalog.k_hot(("a", "b", "c"), 2, max_sources=2)
COSTS = torch.tensor([0.0, 1.0, 2.5, 0.5, 3.0])


def test_cost_aware_catalog_is_the_softmax_of_the_costs() -> None:
    """A routing costs the sum of what it opens, whatever the weights; enumerated by hand from the names."""
    price = {"a": 0.0, "b": 1.0, "c": 2.5, "expert0": 0.5, "expert1": 3.0}
    cost = [sum(price[s] for s in name.replace("/", "+").split("+")) for name in CATALOG.names]
    for beta in (0.0, 0.3, 2.0):
        prior = CostAwareCatalogPrior(CATALOG, COSTS, beta)
        weights = [math.exp(-beta * c) for c in cost]
        expected = torch.tensor([w / sum(weights) for w in weights])
        torch.testing.assert_close(prior.distributions()["routing"].probs, expected)


def test_uniform_catalog() -> None:
    torch.testing.assert_close(CatalogPrior(CATALOG).distributions()["routing"].probs, torch.full((12,), 1 / 12))


def test_catalog_draws() -> None:
    prior = CatalogPrior(CATALOG, torch.arange(12.0) / 3)
    pyro.set_rng_seed(0)
    with pyro.plate("episodes", 20_000, dim=-2):
        drawn = prior()
    assert drawn.shape == (20_000, 1, 5)
    for row, p in zip(CATALOG.coefficients, (torch.arange(12.0) / 3).softmax(-1), strict=True):
        assert (drawn[:, 0] == row).all(-1).float().mean().item() == pytest.approx(p.item(), abs=0.015)


def test_logistic_normal_draws_are_softmaxes_of_independent_logits() -> None:
    """Contrasts of the drawn weights have the mean and covariance of contrasts of N(loc, scale^2) logits."""
    loc = torch.tensor([1.0, -0.5, 0.2, 0.7, -0.7], dtype=torch.float64)
    prior = LogisticNormalPrior(3, 2, loc, scale=0.8).double()
    pyro.set_rng_seed(0)
    with pyro.plate("episodes", 100_000, dim=-2):
        drawn = prior()[:, 0]
    logits = loc + 0.8 * torch.randn(100_000, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for part in (slice(0, 3), slice(3, 5)):
        v = contrast_basis(len(loc[part]), loc)
        found, expected = drawn[:, part].log() @ v, logits[:, part] @ v
        torch.testing.assert_close(found.mean(0), expected.mean(0), rtol=0, atol=0.02)
        torch.testing.assert_close(found.T.cov(), expected.T.cov(), rtol=0.03, atol=0.02)


def test_logistic_normal_treats_all_alike_by_default() -> None:
    pyro.set_rng_seed(0)
    with pyro.plate("episodes", 50_000, dim=-2):
        drawn = LogisticNormalPrior(4)()[:, 0]
    torch.testing.assert_close(drawn.mean(0), torch.full((4,), 0.25), rtol=0, atol=0.01)
    assert drawn.min() >= 0


def test_cost_aware_median() -> None:
    """The median of w_r / w_s falls by exp(-beta) for every unit by which r costs more."""
    prior = LogisticNormalPrior.cost_aware(3, 2, COSTS, beta=0.7, scale=1.0)
    pyro.set_rng_seed(0)
    with pyro.plate("episodes", 50_000, dim=-2):
        drawn = prior()[:, 0]
    ratio = (drawn[:, 2] / drawn[:, 1]).median().item()
    assert ratio == pytest.approx(math.exp(-0.7 * 1.5), rel=0.05)


@pytest.mark.parametrize(("sources", "experts"), [(1, 0), (1, 1), (1, 3), (2, 0), (3, 1), (3, 2)])
def test_sites_and_shapes(sources: int, experts: int) -> None:
    prior = LogisticNormalPrior(sources, experts)
    wanted = ["source_contrasts"] * (sources > 1) + ["expert_contrasts"] * (experts > 1)
    assert sorted(prior.distributions()) == sorted(wanted)
    with pyro.plate("episodes", 6, dim=-2):
        drawn = prior()
    assert drawn.shape[-1] == sources + experts
    drawn = drawn.expand(6, 1, -1)
    torch.testing.assert_close(drawn[..., :sources].sum(-1), torch.ones(6, 1))
    if experts:
        torch.testing.assert_close(drawn[..., sources:].sum(-1), torch.ones(6, 1))


REFUSED: list[tuple[Callable[[], object], str]] = [
    (lambda: CatalogPrior(CATALOG, torch.zeros(3)), r"logits have shape \(3,\); expected \(12,\), one a routing"),
    (lambda: CatalogPrior(CATALOG, torch.full((12,), math.nan)), "logits"),
    (lambda: CatalogPrior(CATALOG, torch.full((12,), -math.inf)), "logits"),
    (lambda: CostAwareCatalogPrior(CATALOG, COSTS, -0.1), r"beta is -0.1; expected >= 0 \(0 is the uniform prior\)"),
    (lambda: CostAwareCatalogPrior(CATALOG, COSTS, math.nan), r"beta is nan; expected >= 0"),
    (lambda: CostAwareCatalogPrior(CATALOG, COSTS[:3], 1.0), r"costs have shape \(3,\); expected \(5,\)"),
    (lambda: LogisticNormalPrior(0, 2), r"sources is 0 and experts 2; expected at least 1 and 0"),
    (lambda: LogisticNormalPrior(2, -1), r"sources is 2 and experts -1"),
    (lambda: LogisticNormalPrior(2, 1, scale=0.0), r"scale is 0.0; expected a deviation > 0"),
    (lambda: LogisticNormalPrior(2, 1, scale=math.nan), r"scale is nan"),
    (lambda: LogisticNormalPrior(2, 1, loc=torch.zeros(2)), r"loc has shape \(2,\); expected \(3,\)"),
    (lambda: LogisticNormalPrior.cost_aware(3, 2, COSTS, beta=-1.0), r"beta is -1.0; expected >= 0"),
    (lambda: LogisticNormalPrior.cost_aware(3, 2, COSTS[:2], beta=1.0), r"costs have shape \(2,\); expected \(5,\)"),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_refused(number: int) -> None:
    make, message = REFUSED[number]
    with pytest.raises(ValueError, match=message):
        make()
