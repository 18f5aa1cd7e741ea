"""A conjugate toy, z_i ~ N(0, 1) and y_ij ~ N(z_i, s^2), and how values and gradients are compared."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.optim
import pytest
import torch
from pyro import poutine
from pyro.infer.elbo import ELBO
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_smat.inference import CVaR_ELBO
from pyro_smat.routing.local_module import LocalModule

RHOS = (1.0, 0.5, 0.2, 0.05)
TIGHT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}
small_tail = pytest.mark.filterwarnings("ignore:rho x B")


def value_and_gradient(elbo: ELBO, model: Callable, guide: Callable, args: tuple, parameters: list) -> list[Tensor]:
    """The loss and all gradients (zero where there is none) at seed 3."""
    pyro.set_rng_seed(3)
    loss = elbo.differentiable_loss(model, guide, *args)
    grads = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [loss.detach(), *(torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True))]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    scale = max(float(e.abs().max()) for e in expected[1:] if e.numel())
    assert scale > 1e-3, "no gradient: the comparison would show nothing"
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, rtol=1e-9, atol=1e-9 * max(scale, 1.0))


def assert_one_loss(elbo: CVaR_ELBO, model: Callable, guide: Callable, args: tuple, parameters: list) -> None:
    """loss == differentiable_loss == loss_and_grads == elbo(model, guide)(...), and their gradients."""
    expected = value_and_gradient(elbo, model, guide, args, parameters)
    pyro.set_rng_seed(3)
    assert elbo.loss(model, guide, *args) == pytest.approx(expected[0].item(), rel=1e-12)
    for p in parameters:
        p.grad = None
    pyro.set_rng_seed(3)
    assert elbo.loss_and_grads(model, guide, *args) == pytest.approx(expected[0].item(), rel=1e-12)
    assert_same([expected[0], *(torch.zeros_like(p) if p.grad is None else p.grad for p in parameters)], expected)
    pyro.set_rng_seed(3)
    assert_same([expected[0], *expected[1:]], value_and_gradient(elbo, model, guide, args, parameters))
    if isinstance(model, nn.Module) and isinstance(guide, nn.Module):
        pyro.set_rng_seed(3)
        torch.testing.assert_close(elbo(model, guide)(*args).detach(), expected[0], **TIGHT)


NOISE = 0.8


class Toy(LocalModule):
    """The model, over all episodes or a subsample; ``scaled`` puts a constant poutine.scale around the plates."""

    def __init__(self, options: dict | None = None, scaled: float = 1.0) -> None:
        super().__init__()
        self.options = options or {}
        self.scaled = scaled

    def forward(self, y: Tensor) -> None:
        with poutine.scale(scale=self.scaled), pyro.plate("episodes", len(y), dim=-2, **self.options) as rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("points", y.shape[1], dim=-1):
                pyro.sample("y", dist.Normal(z, NOISE), obs=y[rows])


class ToyGuide(LocalModule):
    def __init__(self, episodes: int, options: dict | None = None, scaled: float = 1.0) -> None:
        super().__init__()
        self.options = options or {}
        self.scaled = scaled
        generator = torch.Generator().manual_seed(5)
        self.loc = nn.Parameter(torch.randn(episodes, 1, generator=generator))
        self.raw = nn.Parameter(0.3 * torch.randn(episodes, 1, generator=generator))

    def forward(self, y: Tensor) -> None:
        with poutine.scale(scale=self.scaled), pyro.plate("episodes", len(y), dim=-2, **self.options) as rows:
            pyro.sample("z", dist.Normal(self.loc[rows], F.softplus(self.raw[rows])))


class PointToyGuide(LocalModule):
    def __init__(self, loc: Tensor) -> None:
        super().__init__()
        self.loc = nn.Parameter(loc)

    def forward(self, y: Tensor) -> None:
        with pyro.plate("episodes", len(y), dim=-2):
            pyro.sample("z", dist.Delta(self.loc))


def toy_data(episodes: int = 16, points: int = 3) -> Tensor:
    return 1.5 * torch.randn(episodes, points, generator=torch.Generator().manual_seed(1))


def tail_by_hand(losses: list[float], rho: float) -> tuple[float, list[float]]:
    """CVaR and its weights by sorting, ties at the boundary sharing equally; plain floats."""
    size = max(1.0, rho * len(losses))
    threshold = sorted(losses, reverse=True)[math.ceil(size - 1e-9) - 1]
    above, tied = sum(x > threshold for x in losses), sum(x == threshold for x in losses)
    weights = [1 / size if x > threshold else (size - above) / tied / size if x == threshold else 0.0 for x in losses]
    return sum(w * x for w, x in zip(weights, losses, strict=True)), weights
