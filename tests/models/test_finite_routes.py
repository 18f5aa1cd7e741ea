"""Finitely many known routes: Bayes' rule, exact error curves, bounds that hold, and calibration of the posterior."""

from __future__ import annotations

import itertools
import math

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO
from torch import Tensor

from pyro_smat.models.finite_routes import (
    FiniteRoutes,
    bernoulli_error,
    bhattacharyya_bound,
    chernoff_bound,
    gaussian_error,
    total_variation_bound,
)

PRIOR = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
LAWS = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.3, 0.2, 0.5], [1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64)


def all_supports(count: int) -> Tensor:
    return torch.tensor(list(itertools.product(range(3), repeat=count)))


def exact_error(count: int, prior: Tensor = PRIOR, likelihoods: Tensor = LAWS) -> float:
    """1 - sum over all supports of max_A p(A, x)."""
    joint = prior * likelihoods[:, all_supports(count)].prod(-1).T
    return float(1 - joint.amax(1).sum())


def test_bayes_rule_is_pyros_enumeration() -> None:
    model = FiniteRoutes(PRIOR, LAWS)
    data = all_supports(3)[:9]
    guide = lambda _: None  # noqa: E731
    marginals = TraceEnum_ELBO(max_plate_nesting=2).compute_marginals(model, guide, data)
    torch.testing.assert_close(marginals["routing"].probs.squeeze(1), model.posterior(data))


@pytest.mark.parametrize("count", [1, 3, 6])
def test_bounds_hold_in_their_order(count: int) -> None:
    error = exact_error(count)
    distance = min(float(0.5 * (LAWS[a] - LAWS[b]).abs().sum()) for a, b in itertools.combinations(range(4), 2))
    chernoff, bhattacharyya = chernoff_bound(PRIOR, LAWS, count), bhattacharyya_bound(PRIOR, LAWS, count)
    assert error <= chernoff <= bhattacharyya + 1e-12
    assert bhattacharyya <= total_variation_bound(4, distance, count)


def test_doubt_is_the_misrouting_rate() -> None:
    """E[1 - max q] = P(argmax q is wrong) when q is the posterior, exactly."""
    model, data = FiniteRoutes(PRIOR, LAWS), all_supports(4)
    q = model.posterior(data)
    probability = (PRIOR * LAWS[:, data].prod(-1).T).sum(1)
    assert float((probability * (1 - q.amax(1))).sum()) == pytest.approx(exact_error(4), abs=1e-12)
    routes, drawn = model.draw(20_000, 4, torch.Generator().manual_seed(0))
    posterior = model.posterior(drawn)
    wrong = (posterior.argmax(1) != routes).double().mean()
    assert wrong.item() == pytest.approx(exact_error(4), abs=0.01)
    assert (1 - posterior.amax(1)).mean().item() == pytest.approx(wrong.item(), abs=0.01)
    sharp = posterior.pow(3) / posterior.pow(3).sum(1, keepdim=True)  # overconfident: the doubt is too small
    assert (1 - sharp.amax(1)).mean() < wrong - 0.05


@pytest.mark.parametrize(("count", "expected"), [(5, 0.3174), (25, 0.1538), (100, 0.02193), (400, 2.69e-5)])
def test_bernoulli_curve(count: int, expected: float) -> None:
    error = bernoulli_error(0.2, count)
    assert error == pytest.approx(expected, rel=3e-3)
    assert 0.25 * (1 - 0.04) ** count <= error <= 0.5 * (1 - 0.04) ** (count / 2)


def test_curves_against_enumeration_and_simulation() -> None:
    pair = torch.tensor([[0.6, 0.4], [0.4, 0.6]], dtype=torch.float64)
    supports = torch.tensor(list(itertools.product(range(2), repeat=4)))
    joint = 0.5 * pair[:, supports].prod(-1).T
    assert bernoulli_error(0.2, 4) == pytest.approx(float(1 - joint.amax(1).sum()))
    a = 2 * dist.Normal(0.0, 1.0).icdf(torch.tensor(0.65)).item()  # total variation .3
    draws = torch.randn(200_000, 9, generator=torch.Generator().manual_seed(0)) + a / 2
    assert gaussian_error(0.3, 9) == pytest.approx((draws.mean(1) < 0).double().mean().item(), abs=3e-3)
    assert gaussian_error(0.3, 1) == pytest.approx((1 - 0.3) / 2)


def test_what_is_no_distribution_is_refused() -> None:
    with pytest.raises(ValueError, match=r"likelihoods .* sum to 1"):
        FiniteRoutes(PRIOR, 2 * LAWS)
    with pytest.raises(ValueError, match="4 likelihoods for 2 routes"):
        FiniteRoutes(torch.tensor([0.5, 0.5], dtype=torch.float64), LAWS)
    assert math.isfinite(chernoff_bound(PRIOR, torch.eye(4, dtype=torch.float64), 2))
