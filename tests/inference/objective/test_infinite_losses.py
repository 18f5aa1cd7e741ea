"""One episode that is impossible under the model: the loss is infinite, not NaN, and the next batch knows nothing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_smat.inference import CVaR_ELBO
from pyro_smat.inference.objective.threshold import THRESHOLDS, BatchThreshold, Threshold

B = 8
pytestmark = pytest.mark.filterwarnings("ignore:rho x B")
COMBINATIONS = list(itertools.product(THRESHOLDS, (1.0, 0.5, 0.05), (1.0, 0.4, 0.0)))


def model(logits: Tensor) -> None:
    with pyro.plate("episodes", B, dim=-1):
        k = pyro.sample("k", dist.Bernoulli(0.5 * torch.ones(B)))
        one = logits + 0.1 * k
        pyro.sample("y", dist.Categorical(logits=torch.stack([torch.zeros_like(one), one], -1)), obs=torch.ones(B))


def guide_with(infer: dict[str, str]) -> Callable[[Tensor], None]:
    def guide(logits: Tensor) -> None:
        with pyro.plate("episodes", B, dim=-1):
            pyro.sample("k", dist.Bernoulli(0.3 * torch.ones(B).requires_grad_()), infer=infer)

    return guide


def batch(impossible: bool, seed: int = 0) -> Tensor:
    logits = torch.randn(B, generator=torch.Generator().manual_seed(seed))
    if impossible:
        logits[3] = -math.inf
    return logits


@pytest.mark.parametrize("infer", [{}, {"enumerate": "parallel"}], ids=["score function", "enumerated"])
@pytest.mark.parametrize("baseline", ["none", "decaying_average"])
@pytest.mark.parametrize(("threshold", "rho", "tail_weight"), COMBINATIONS)
def test_one_infinite_loss_makes_the_loss_infinite(
    threshold: str, rho: float, tail_weight: float, baseline: Any, infer: dict[str, str]
) -> None:
    guide = guide_with(infer)
    elbo = CVaR_ELBO(rho=rho, threshold=threshold, tail_weight=tail_weight, baseline=baseline)
    terms = elbo.terms(model, guide, batch(True))
    assert terms.loss.item() == terms.tail_loss.item() == terms.mean_loss.item() == math.inf
    assert elbo.loss(model, guide, batch(True)) == math.inf
    assert terms.weights[3] == terms.weights.max() > 0
    assert terms.weights.sum().item() >= 1 - 1e-5
    for seed in range(1, 4):
        after = elbo.terms(model, guide, batch(False, seed))
        assert math.isfinite(after.loss.item())
        assert math.isfinite(after.threshold.item())


@pytest.mark.parametrize("name", THRESHOLDS)
@pytest.mark.parametrize("rho", [0.5, 0.05])
def test_thresholds_forget_an_infinite_loss(name: str, rho: float) -> None:
    """After it the state is what it would be had the other losses of its batch come alone."""
    make: Callable[[], Threshold] = THRESHOLDS[name]
    losses = torch.linspace(0.1, 2.0, 40)
    met, never = make(), make()
    met(torch.cat([losses[:7], torch.tensor([math.inf])]), rho)
    never(losses[:7], rho)
    for part in losses[7:].split(8):
        found, expected = met(part, rho), never(part, rho)
        assert found.loss(part).isfinite()
        if name != "learned":  # a learned t has taken a step
            torch.testing.assert_close(found.weights, expected.weights)
            torch.testing.assert_close(found.threshold, expected.threshold)


def test_infinitely_good_losses_outside_the_tail_do_not_count() -> None:
    """A density may be infinite: -inf is the smallest loss, and 0 of it is 0."""
    losses = torch.tensor([1.0, -math.inf, 3.0, 2.0])
    tail = BatchThreshold()(losses, 0.5)
    assert tail.loss(losses).item() == pytest.approx(2.5)


def test_nan_stays_nan() -> None:
    losses = torch.tensor([1.0, math.nan, 3.0, 2.0])
    for make in THRESHOLDS.values():
        assert make()(losses, 0.5).loss(losses).isnan()
