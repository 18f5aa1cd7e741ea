"""Choices without a gradient of their own, and what their estimator is on average over ALL outcomes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_smat.inference import CVaR_ELBO

RHOS = (1.0, 0.5, 0.2, 0.05)
FIXED = -60.0  # logit of an episode that always takes option 0
KL_WEIGHT = 0.3
PRIOR = torch.tensor([0.4, 0.6], dtype=torch.float64)
CONSTANT = 0.5 * math.log(2 * math.pi)


class Script:
    """Makes guide sites draw what a test says, in the order in which they are drawn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.values: list[Tensor] = []

        def scripted(fn: Any, *sample_shape: Any) -> Tensor:
            value = self.values.pop(0)
            assert value.shape == fn.batch_shape
            return value

        for kind in (dist.Bernoulli, dist.Categorical, dist.Poisson):
            monkeypatch.setattr(kind, "sample", scripted)


def two(logits: Tensor) -> dist.Categorical:
    """Option 0 or 1, from the logit of option 1."""
    return dist.Categorical(logits=torch.stack([torch.zeros_like(logits), logits], -1))


class Choices:
    """Every episode chooses between two predictions; ``free`` of them at random, the others always take the first."""

    def __init__(self, episodes: int, free: tuple[int, ...], ties: bool = False, shift: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(episodes)
        self.free = free
        self.y = 1.2 * torch.randn(episodes, 1, generator=generator)
        self.locs = torch.randn(episodes, 2, generator=generator)
        if ties:  # copies of a free episode: the boundary of the tail is a tie in some outcomes
            for i in range(free[0] + 1, free[0] + 4):
                self.y[i], self.locs[i] = self.y[free[0]], self.locs[free[0]]
            self.locs[free[1], 1] = self.y[free[1]] - (self.y[free[0]] - self.locs[free[0], 0]).squeeze()
        self.logits = torch.full((episodes, 1), FIXED)
        self.logits[list(free)] = torch.linspace(-0.8, 0.9, len(free)).unsqueeze(1)
        self.logits.requires_grad_()
        self.shift = shift  # of all losses

    def table(self) -> Tensor:
        """Episode losses ``(B, 2)`` by option."""
        return 0.5 * (self.y - self.locs).square() + CONSTANT + self.shift

    def model(self) -> None:
        with pyro.plate("episodes", len(self.y), dim=-2):
            k = pyro.sample("k", dist.Categorical(PRIOR))
            loc = self.locs[torch.arange(len(self.y)).unsqueeze(1), k]
            pyro.sample("y", dist.Normal(loc, 1.0), obs=self.y)
            pyro.factor("floor", torch.full_like(self.y, -self.shift))

    def guide(self) -> None:
        with pyro.plate("episodes", len(self.y), dim=-2):
            pyro.sample("k", two(self.logits))

    def outcomes(self, particles: int) -> Iterator[Tensor]:
        """All draws ``(K, B)`` that are possible."""
        for chosen in itertools.product([0, 1], repeat=particles * len(self.free)):
            draws = torch.zeros(particles, len(self.y), dtype=torch.long)
            draws[:, list(self.free)] = torch.tensor(chosen).reshape(particles, -1)
            yield draws

    def probability(self, draws: Tensor) -> Tensor:
        return two(self.logits.squeeze(1)).log_prob(draws).sum().exp()

    def kl(self) -> Tensor:
        q = torch.stack([-self.logits, self.logits], -1).mul(0.5).softmax(-1)
        return (q * (q / PRIOR).log()).sum()


def cvar_by_hand(losses: list[float], rho: float) -> float:
    size, left, total = max(1.0, rho * len(losses)), max(1.0, rho * len(losses)), 0.0
    for x in sorted(losses, reverse=True):
        total += min(left, 1.0) * x
        left -= min(left, 1.0)
        if left < 1e-9:
            break
    return total / size


Outcomes = Iterable[tuple[list[Tensor], Tensor]]  # what the guide draws, and its probability with gradient


def estimates(
    elbo: CVaR_ELBO, model: Callable, guide: Callable, parameter: Tensor, outcomes: Outcomes, script: Script
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean loss, mean gradient and the sum of the gradient's variances, over all outcomes."""
    loss, mean, square = torch.zeros(()), torch.zeros_like(parameter), torch.zeros_like(parameter)
    state = elbo.state_dict()
    for draws, probability in outcomes:
        script.values = list(draws)
        elbo.load_state_dict(state)
        found = elbo.differentiable_loss(model, guide)
        assert not script.values, "the guide did not draw everything"
        gradient = torch.autograd.grad(found, parameter)[0]
        p = probability.detach()
        loss, mean, square = loss + p * found.detach(), mean + p * gradient, square + p * gradient.square()
    elbo.load_state_dict(state)
    return loss, mean, (square - mean.square()).sum()


def assert_gradient(found: tuple[Tensor, Tensor, Tensor], truth: Tensor, parameter: Tensor) -> None:
    """The mean of the estimates is the truth, in value and gradient."""
    slope = torch.autograd.grad(truth, parameter, retain_graph=True)[0]
    assert slope.abs().max() > 1e-2, "no gradient: the comparison would show nothing"
    torch.testing.assert_close(found[0], truth.detach(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[1], slope, rtol=1e-8, atol=1e-8)


def of_choices(elbo: CVaR_ELBO, toy: Choices, script: Script) -> tuple[Tensor, Tensor, Tensor]:
    vectorised = elbo.vectorize_particles and elbo.num_particles > 1
    outcomes = (
        ([draws.unsqueeze(-1)] if vectorised else list(draws.unsqueeze(-1)), toy.probability(draws))
        for draws in toy.outcomes(elbo.num_particles)
    )
    return estimates(elbo, toy.model, toy.guide, toy.logits, outcomes, script)


def expected(toy: Choices, particles: int, objective: Callable[[list[float]], float]) -> Tensor:
    """E[B objective(X averaged over particles)] + kl_weight KL; its gradient is that of the probabilities."""
    table, total = toy.table(), torch.zeros(())
    for draws in toy.outcomes(particles):
        losses = table.gather(1, draws.T).mean(1).tolist()
        total = total + toy.probability(draws) * len(losses) * objective(losses)
    return total + KL_WEIGHT * toy.kl()


def assert_unbiased(elbo: CVaR_ELBO, toy: Choices, script: Script, objective: Callable[[list[float]], float]) -> None:
    truth = expected(toy, elbo.num_particles, objective)
    assert_gradient(of_choices(elbo, toy, script), truth, toy.logits)
