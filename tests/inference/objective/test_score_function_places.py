"""Score-function gradients of choices in other places: global, of queries, before enumerated ones, auxiliary."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.poutine import Trace
from scored_choices import (
    CONSTANT,
    KL_WEIGHT,
    PRIOR,
    Choices,
    Script,
    assert_gradient,
    cvar_by_hand,
    estimates,
    expected,
    of_choices,
    two,
)
from torch import Tensor

from pyro_smat.inference import CVaR_ELBO
from pyro_smat.metrics.risk import cvar

Y = torch.tensor([[0.3, -1.2], [2.0, 1.4], [0.1, 0.9]], dtype=torch.float64)
B, Q = Y.shape
pytestmark = [pytest.mark.filterwarnings("ignore:rho x B"), pytest.mark.usefixtures("double_precision")]


def nll(loc: Tensor) -> Tensor:
    return 0.5 * (Y - loc).square() + CONSTANT


def bits(count: int) -> Iterator[Tensor]:
    return (torch.tensor(chosen) for chosen in itertools.product([0, 1], repeat=count))


@pytest.mark.parametrize("rho", [1.0, 0.5, 0.4])
@pytest.mark.parametrize("kl", ["exact", "sampled"])
def test_a_global_choice_and_the_choices_that_follow_it(kl: Any, rho: float, script: Script) -> None:
    """q(g) prod_i q(k_i | g): g feels the whole tail, k_i what its episode adds; the KL of k_i depends on g."""
    parameter = torch.linspace(-0.5, 0.8, 1 + 2 * B).requires_grad_()
    local, prior = parameter[1:].reshape(2, B), torch.tensor([0.3, 0.8])

    def model() -> None:
        g = pyro.sample("g", dist.Categorical(PRIOR))
        with pyro.plate("episodes", B, dim=-2):
            k = pyro.sample("k", dist.Bernoulli(prior[g]))
            with pyro.plate("queries", Q, dim=-1):
                pyro.sample("y", dist.Normal(g - 1.5 * k, 1.0), obs=Y)

    def guide() -> None:
        g = pyro.sample("g", two(parameter[0]))
        with pyro.plate("episodes", B, dim=-2):
            pyro.sample("k", dist.Bernoulli(logits=parameter[1:].reshape(2, B)[g].unsqueeze(-1)))

    outcomes, truth = [], torch.zeros(())
    for g, *k in bits(1 + B):
        chosen = torch.stack(k).double()
        log_k = dist.Bernoulli(logits=local[g]).log_prob(chosen).sum()
        log_q = two(parameter[0]).log_prob(g) + log_k
        log_p = PRIOR.log()[g] + dist.Bernoulli(prior[g]).log_prob(chosen).sum()
        loss = B * cvar_by_hand(nll(g - 1.5 * chosen.unsqueeze(1)).sum(1).tolist(), rho)
        outcomes.append(([g, chosen.unsqueeze(1)], log_q.exp()))
        truth = truth + log_q.exp() * (loss + KL_WEIGHT * (log_q - log_p))
    elbo = CVaR_ELBO(rho=rho, kl_weight=KL_WEIGHT, kl=kl)
    assert_gradient(estimates(elbo, model, guide, parameter, outcomes, script), truth, parameter)


@pytest.mark.parametrize("rho", [1.0, 0.5, 0.4])
def test_a_choice_of_every_query(rho: float, script: Script) -> None:
    parameter = torch.linspace(-0.5, 0.8, B * Q).reshape(B, Q).requires_grad_()

    def model() -> None:
        with pyro.plate("episodes", B, dim=-2), pyro.plate("queries", Q, dim=-1):
            k = pyro.sample("k", dist.Categorical(PRIOR))
            pyro.sample("y", dist.Normal(2.0 * k, 1.0), obs=Y)

    def guide() -> None:
        with pyro.plate("episodes", B, dim=-2), pyro.plate("queries", Q, dim=-1):
            pyro.sample("k", two(parameter))

    outcomes, truth = [], torch.zeros(())
    for chosen in bits(B * Q):
        k = chosen.reshape(B, Q)
        log_q = two(parameter).log_prob(k).sum()
        loss = B * cvar_by_hand(nll(2.0 * k).sum(1).tolist(), rho)
        outcomes.append(([k], log_q.exp()))
        truth = truth + log_q.exp() * (loss + KL_WEIGHT * (log_q - PRIOR.log()[k].sum()))
    elbo = CVaR_ELBO(rho=rho, kl_weight=KL_WEIGHT)
    assert_gradient(estimates(elbo, model, guide, parameter, outcomes, script), truth, parameter)


@pytest.mark.parametrize("rho", [1.0, 0.4])
def test_an_enumerated_choice_after_a_drawn_one(rho: float, script: Script) -> None:
    """q(a) q(b | a), b enumerated: the loss of a draw of a is an expectation over b."""
    parameter = torch.linspace(-0.5, 0.8, 3 * B).reshape(3, B).requires_grad_()
    prior_b = torch.tensor([0.3, 0.8])

    def model() -> None:
        with pyro.plate("episodes", B, dim=-2):
            a = pyro.sample("a", dist.Categorical(PRIOR))
            b = pyro.sample("b", dist.Bernoulli(prior_b[a]))
            with pyro.plate("queries", Q, dim=-1):
                pyro.sample("y", dist.Normal(a + 0.5 * b, 1.0), obs=Y)

    def guide() -> None:
        with pyro.plate("episodes", B, dim=-2):
            a = pyro.sample("a", two(parameter[0].unsqueeze(1)))
            logits = parameter[1:].gather(0, a.T).T
            pyro.sample("b", dist.Bernoulli(logits=logits), infer={"enumerate": "parallel"})

    outcomes, truth = [], torch.zeros(())
    for a in bits(B):
        log_q = two(parameter[0]).log_prob(a).sum()
        given = torch.sigmoid(parameter[1:].gather(0, a.unsqueeze(0)).squeeze(0))
        losses = [nll((a + 0.5 * b).unsqueeze(1)).sum(1) for b in (0, 1)]
        expected_losses = (1 - given) * losses[0] + given * losses[1]
        kl_b = sum((q * (q / p).log()) for q, p in ((given, prior_b[a]), (1 - given, 1 - prior_b[a])))
        loss = B * cvar(expected_losses, rho)
        outcomes.append(([a.unsqueeze(1)], log_q.exp()))
        truth = truth + log_q.exp() * (loss + KL_WEIGHT * (log_q - PRIOR.log()[a].sum() + torch.as_tensor(kl_b).sum()))
    elbo = CVaR_ELBO(rho=rho, kl_weight=KL_WEIGHT, max_plate_nesting=2)
    assert_gradient(estimates(elbo, model, guide, parameter, outcomes, script), truth, parameter)


def test_auxiliary_choices_and_guide_factors_are_part_of_the_cost(script: Script) -> None:
    """The density of an auxiliary site and a factor of the guide; Trace_ELBO leaves both out of its costs."""
    parameter = torch.linspace(-0.5, 0.8, B).requires_grad_()
    weight = torch.tensor([0.4, 1.1])

    def model() -> None:
        with pyro.plate("episodes", B, dim=-2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("queries", Q, dim=-1):
                pyro.sample("y", dist.Normal(z, 1.0), obs=Y)

    def guide() -> None:
        with pyro.plate("episodes", B, dim=-2):
            u = pyro.sample("u", two(parameter.unsqueeze(1)), infer={"is_auxiliary": True})
            pyro.factor("correction", weight[u], has_rsample=True)
            pyro.sample("z", dist.Delta(u.double()))

    outcomes, truth = [], torch.zeros(())
    for u in bits(B):
        log_q = two(parameter).log_prob(u).sum()
        log_p = dist.Normal(0.0, 1.0).log_prob(u.double()).sum()
        outcomes.append(([u.unsqueeze(1)], log_q.exp()))
        loss = nll(u.double().unsqueeze(1)).sum()
        truth = truth + log_q.exp() * (loss + log_q + weight[u].sum() - log_p)
    for kl in ("exact", "sampled"):
        elbo = CVaR_ELBO(rho=1.0, kl=kl)
        assert_gradient(estimates(elbo, model, guide, parameter, outcomes, script), truth, parameter)


class Crowding:
    """A penalty on the choice itself, of the shape of its plates."""

    weight = 0.7

    def __call__(self, model_trace: Trace, guide_trace: Trace) -> tuple[dict[str, Any], Tensor]:
        site = model_trace.nodes["k"]
        return site, 1.0 + 2.0 * site["value"]


@pytest.mark.parametrize("rho", [1.0, 0.2])
def test_choices_feel_penalties(rho: float, script: Script) -> None:
    toy = Choices(6, (0, 1, 2))
    elbo = CVaR_ELBO(rho=rho, kl_weight=KL_WEIGHT, penalties={"crowding": Crowding()})
    penalty = 0.7 * (1 + 2 * toy.logits.sigmoid()).sum()  # weight x B x mean
    truth = expected(toy, 1, lambda x: cvar_by_hand(x, rho)) + penalty
    assert_gradient(of_choices(elbo, toy, script), truth, toy.logits)


@pytest.mark.parametrize("entropy_weight", [None, 0.3, 1.0])
def test_exact_kl_without_a_known_entropy(entropy_weight: float | None, script: Script) -> None:
    """Poisson: its KL is known, its entropy is not, and the entropy has a weight of its own."""
    parameter = torch.tensor([[1.5], [0.7]]).requires_grad_()
    prior, counts, y = dist.Poisson(1.0), torch.arange(18.0), torch.tensor([[1.0], [2.0]])

    def model() -> None:
        with pyro.plate("episodes", 2, dim=-2):
            k = pyro.sample("k", dist.Poisson(torch.tensor(1.0)))
            pyro.sample("y", dist.Normal(k, 1.0), obs=y)

    def guide() -> None:
        with pyro.plate("episodes", 2, dim=-2):
            pyro.sample("k", dist.Poisson(parameter))

    log_q = dist.Poisson(parameter).log_prob(counts)
    share = 1.0 if entropy_weight is None else entropy_weight
    losses = -dist.Normal(counts, 1.0).log_prob(y) + share * log_q - prior.log_prob(counts)
    outcomes = [
        ([torch.stack(pair).unsqueeze(1)], (log_q[0, int(pair[0])] + log_q[1, int(pair[1])]).exp())
        for pair in itertools.product(counts, repeat=2)
    ]
    elbo = CVaR_ELBO(rho=1.0, entropy_weight=entropy_weight)
    found = estimates(elbo, model, guide, parameter, outcomes, script)
    assert_gradient(found, (log_q.exp() * losses).sum(), parameter)
