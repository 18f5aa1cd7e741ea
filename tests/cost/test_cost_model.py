"""CostModel: against costs added up by hand, block by block; what the priors take; bad prices and shapes."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from pyro_smat.cost import CostModel, open_entries_of
from pyro_smat.models.priors import CostAwareCatalogPrior, SimplexCostPrior
from pyro_smat.networks.parameters import ParameterSpace
from pyro_smat.routing import Catalog, routing_costs

MODEL = CostModel(mix=(1.0, 10.0), residual=(100.0, 1000.0), entry=0.5, fixed=7.0, unit="ms")
OPENED = torch.tensor([[3, 0], [2, 4]])  # expert 0 touches the first block only


def by_hand(model: CostModel, mixture: list[list[float]], opened: Tensor) -> float:
    """The formula, one block, source and expert at a time."""
    total, experts = model.fixed, len(opened)
    for block, weights in enumerate(mixture):
        sources, alphas = weights[: len(weights) - experts], weights[len(weights) - experts :]
        total += model.mix[block] * sum(1 for w in sources if w != 0)
        counts = [int(opened[m, block]) for m, alpha in enumerate(alphas) if alpha != 0]
        total += model.residual[block] * any(counts) + model.entry * sum(counts)
    return total


def test_a_cost_is_the_sum_by_hand() -> None:
    for bits in itertools.product([0.0, 0.5], repeat=8):
        mixture = [list(bits[:4]), list(bits[4:])]
        cost = MODEL.cost_of(torch.tensor(mixture), OPENED)
        assert cost.shape == ()
        assert float(cost) == by_hand(MODEL, mixture, OPENED)


def test_written_out() -> None:
    one = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.5, 0.5, 0.0, 0.0]])
    # forward 7; block 1: a source 1, residual 100, 3 entries 1.5; block 2: two sources 20
    assert float(MODEL.cost_of(one, OPENED)) == 7 + 1 + 100 + 1.5 + 20
    assert float(MODEL.cost_of(torch.tensor([[1.0, 0.0, 1.0, 0.0]]), OPENED)) == 7 + 1 + 10 + 101.5
    assert float(CostModel((2.0,), (9.0,)).cost_of(torch.tensor([0.2, 0.0, 0.8]))) == 4.0


def test_batches_and_a_mixture_that_blocks_share() -> None:
    shared = torch.rand(3, 2, 1, 5) * (torch.rand(3, 2, 1, 5) > 0.5)
    spread = shared.expand(3, 2, 2, 5)
    costs = MODEL.cost_of(shared, OPENED)
    assert costs.shape == (3, 2)
    assert torch.equal(costs, MODEL.cost_of(spread, OPENED))
    flat = [by_hand(MODEL, row.tolist(), OPENED) for row in spread.flatten(0, 1)]
    assert costs.flatten().tolist() == flat


def test_only_exact_zeros_are_free() -> None:
    model = CostModel((1.0,), (0.0,))
    assert float(model.cost_of(torch.tensor([1.0, 1e-30, -1e-30, 0.0, -0.0]))) == 3


def test_bytes_beyond_float32_are_exact() -> None:
    model = CostModel((float(2**24 + 1),), (0.0,), unit="bytes")
    assert int(model.cost_of(torch.ones(3, dtype=torch.bfloat16))) == 3 * (2**24 + 1)


def test_bytes_are_those_of_the_rows() -> None:
    module = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2))
    space = ParameterSpace.from_module(module, {"first": "0", "second": "1"})
    rows = torch.zeros(1, space.dim, dtype=torch.bfloat16).split(space.block_sizes, dim=-1)
    model = CostModel.of_bytes(space, torch.bfloat16)
    assert model.mix == tuple(part.numel() * part.element_size() for part in rows)
    assert (model.residual, model.fixed, model.unit) == (model.mix, 0.0, "bytes")


def test_open_entries_are_counted_by_block() -> None:
    space = ParameterSpace.from_module(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), {"a": "0", "b": "1"})
    masks = torch.zeros(2, 9, dtype=torch.bool)
    masks[0, [0, 5, 6]] = True
    assert open_entries_of(masks, space).tolist() == [[2, 1], [0, 0]]
    assert open_entries_of(masks * -0.1, space).tolist() == [[2, 1], [0, 0]]
    with pytest.raises(ValueError, match=r"shape \(2, 8\); expected \(M, 9\)"):
        open_entries_of(masks[:, :8], space)


def test_source_prices_make_the_priors_charge_the_cost() -> None:
    """Exact for one mixture with at most one expert, an upper bound where blocks differ or experts share a block."""
    prices = MODEL.source_prices(3, OPENED)
    assert prices.tolist() == [11.0, 11.0, 11.0, 101.5, 1103.0]
    catalog = Catalog.k_hot(("a", "b", "c"), experts=2, max_sources=3)
    charged = routing_costs(catalog.coefficients, prices) + MODEL.fixed
    assert torch.equal(charged.double(), MODEL.cost_of(catalog.coefficients.unsqueeze(1), OPENED))
    both = torch.tensor([1.0, 0.0, 0.0, 0.5, 0.5])
    assert routing_costs(both, prices) + MODEL.fixed > MODEL.cost_of(both.unsqueeze(0), OPENED)
    apart = Catalog.blockwise([Catalog.k_hot(("a", "b"), max_sources=2)] * 2)
    bound = CostAwareCatalogPrior(apart, MODEL.source_prices(2), beta=1.0).costs_of_routings + MODEL.fixed
    exact = MODEL.cost_of(apart.coefficients)
    assert (bound >= exact).all()
    assert (bound > exact).any()


def test_a_prior_holds_a_budget_on_average() -> None:
    """Enforcement by prior: of the routings it draws, the mean cost is the budget, the forward pass included."""
    model = CostModel(mix=(0.4,), residual=(0.5,), fixed=2.0, unit="ms")
    catalog = Catalog.k_hot(("a", "b", "c"), max_sources=3)
    prior = CostAwareCatalogPrior(catalog, model.source_prices(3), target_cost=2.6 - model.fixed)
    assert float(prior.beta) > 0
    assert float(prior.logits.exp().double() @ model.cost_of(catalog.coefficients)) == pytest.approx(2.6, rel=1e-5)
    simplex = SimplexCostPrior(3, 1, costs=model.source_prices(3, torch.tensor([[8]])), beta=2.0)
    assert float(simplex.expected_cost()) == pytest.approx(0.4 + 0.5)  # equal prices: nothing to choose


@pytest.mark.parametrize("price", [-0.1, math.nan, math.inf])
@pytest.mark.parametrize("where", ["mix", "residual", "entry", "fixed"])
def test_prices_that_are_none_are_refused(where: str, price: float) -> None:
    prices = {"mix": (1.0, 2.0), "residual": (1.0, 2.0), "entry": 0.0, "fixed": 0.0}
    prices[where] = (1.0, price) if where in ("mix", "residual") else price
    with pytest.raises(ValueError, match=rf"{where} holds prices .*; expected finite numbers >= 0"):
        CostModel(**prices)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="2 prices of mixing and 1 of residuals; expected one of each for every block"):
        CostModel((1.0, 1.0), (1.0,))
    with pytest.raises(ValueError, match="at least one block"):
        CostModel((), ())
    with pytest.raises(ValueError, match="unit is 'seconds'; expected one of"):
        CostModel((1.0,), (1.0,), unit="seconds")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"shape \(4,\); expected \(\*b, 2, C\), or \(\*b, 1, C\)"):
        MODEL.cost_of(torch.ones(4))
    with pytest.raises(ValueError, match=r"shape \(3, 4\); expected"):
        MODEL.cost_of(torch.ones(3, 4))
    with pytest.raises(ValueError, match="C more than the 2 experts"):
        MODEL.cost_of(torch.ones(2, 2), OPENED)
    with pytest.raises(ValueError, match=r"open entries have shape \(2, 1\); expected \(M, 2\) counts >= 0"):
        MODEL.cost_of(torch.ones(2, 4), OPENED[:, :1])
    with pytest.raises(ValueError, match="counts >= 0"):
        MODEL.source_prices(2, -OPENED)
    with pytest.raises(ValueError, match="hold NaN or infinite weights"):
        MODEL.cost_of(torch.tensor([[1.0, math.nan]]))
    with pytest.raises(ValueError, match="sources is 0; expected at least 1"):
        MODEL.source_prices(0)
