"""Score-function gradients, without chance: the estimator is averaged over ALL outcomes of small discrete spaces."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.poutine import Trace
from torch import Tensor

from pyro_smat.inference import CVaR_ELBO
from pyro_smat.inference.objective.threshold import LearnedThreshold
from pyro_smat.metrics.risk import cvar

RHOS = (1.0, 0.5, 0.2, 0.05)
FIXED = -60.0  # logit of an episode that always takes option 0
KL_WEIGHT = 0.3
PRIOR = torch.tensor([0.4, 0.6], dtype=torch.float64)
CONSTANT = 0.5 * math.log(2 * math.pi)
pytestmark = pytest.mark.filterwarnings("ignore:rho x B")


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


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


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    return Script(monkeypatch)


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


@pytest.mark.parametrize("kl", ["exact", "sampled"])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("rho", RHOS)
def test_gradient_of_the_expected_loss(rho: float, ties: bool, kl: Any, script: Script) -> None:
    toy = Choices(16, (0, 5, 9, 14), ties)
    elbo = CVaR_ELBO(rho=rho, kl_weight=KL_WEIGHT, kl=kl)
    assert_unbiased(elbo, toy, script, lambda x: cvar_by_hand(x, rho))


@pytest.mark.parametrize("rho", RHOS)
def test_of_regret_and_of_the_mixture_with_the_mean(rho: float, script: Script) -> None:
    """A large common reference changes the value, not the gradient: the cost is what the tail loses, not w x loss."""
    toy = Choices(16, (0, 5, 9))
    reference = torch.linspace(90.0, 91.0, 16)
    elbo = CVaR_ELBO(rho=rho, kl_weight=KL_WEIGHT, tail_weight=0.7, reference=lambda: reference)

    def objective(x: list[float]) -> float:
        tail = cvar_by_hand([a - b for a, b in zip(x, reference.tolist(), strict=True)], rho)
        return 0.3 * sum(x) / len(x) + 0.7 * tail

    assert_unbiased(elbo, toy, script, objective)


def elbo_of_two(rho: float, baseline: Any, toy: Choices, script: Script, vectorised: bool = True) -> CVaR_ELBO:
    """Two particles; a decaying average remembers an earlier step."""
    elbo = CVaR_ELBO(
        rho=rho,
        kl_weight=KL_WEIGHT,
        kl="sampled",
        baseline=baseline,
        num_particles=2,
        vectorize_particles=vectorised,
        max_plate_nesting=2,
    )
    if baseline == "decaying_average":
        size = len(toy.y)
        script.values = [torch.zeros(2, size, 1).long()] if vectorised else [torch.ones(size, 1).long()] * 2
        elbo.terms(toy.model, toy.guide)
        assert elbo.state_dict()["baselines"]["k"].abs().min() > 0
    return elbo


@pytest.mark.parametrize("baseline", ["none", "leave_one_out", "decaying_average"])
@pytest.mark.parametrize("vectorised", [False, True], ids=["sequential", "vectorised"])
@pytest.mark.parametrize("rho", [1.0, 0.2])
def test_of_the_tail_of_averages_over_particles(rho: float, vectorised: bool, baseline: Any, script: Script) -> None:
    toy = Choices(8, (1, 2, 6))
    elbo = elbo_of_two(rho, baseline, toy, script, vectorised)
    assert_unbiased(elbo, toy, script, lambda x: cvar_by_hand(x, rho))


@pytest.mark.parametrize("rho", [1.0, 0.5])
def test_baselines_lower_the_variance(rho: float, script: Script) -> None:
    """Exact variances, of losses far from zero."""
    toy = Choices(6, (0, 1, 2), shift=20.0)
    variances = {
        baseline: of_choices(elbo_of_two(rho, baseline, toy, script), toy, script)[2].item()
        for baseline in ("none", "leave_one_out", "decaying_average")
    }
    assert variances["leave_one_out"] < 0.2 * variances["none"]
    assert variances["decaying_average"] < 0.2 * variances["none"]


def test_decaying_average_by_hand(script: Script) -> None:
    """0.9 of the average so far and 0.1 of the new mean, of the episode losses and of the KL terms; loss() keeps it."""
    toy = Choices(6, (0, 1, 2))
    elbo = CVaR_ELBO(rho=0.5, kl_weight=KL_WEIGHT, kl="sampled", baseline="decaying_average")
    means = []
    for draws in itertools.islice(toy.outcomes(1), 3):
        script.values = [draws.T]
        elbo.terms(toy.model, toy.guide)
        log_q, log_p = two(toy.logits.squeeze(1)).log_prob(draws[0]), PRIOR.log()[draws[0]]
        means.append(torch.stack([toy.table().gather(1, draws.T).mean(), KL_WEIGHT * (log_q - log_p).mean()]).detach())
    wanted = 0.9 * (0.9 * means[0] + 0.1 * means[1]) + 0.1 * means[2]
    torch.testing.assert_close(elbo.state_dict()["baselines"]["k"], wanted)
    script.values = [draws.T]
    elbo.loss(toy.model, toy.guide)
    torch.testing.assert_close(elbo.state_dict()["baselines"]["k"], wanted)


@pytest.mark.parametrize("rho", RHOS)
def test_with_a_threshold_that_stands(rho: float, script: Script) -> None:
    """t learned before: the gradient of E[t + (X - t)_+ / rho]."""
    toy = Choices(16, (0, 5, 9, 14))
    t = toy.table()[:, 0].sort().values[11].item() + 0.01
    threshold = LearnedThreshold(warmup=0)
    threshold.load_state_dict({"queue": {"recent": torch.zeros(1)}, "value": torch.tensor(t), "seen": 1})
    elbo = CVaR_ELBO(rho=rho, kl_weight=KL_WEIGHT, threshold=threshold)

    def objective(x: list[float]) -> float:
        return sum(x) / 16 if rho == 1.0 else t + sum(max(a - t, 0.0) for a in x) / (16 * rho)

    assert_unbiased(elbo, toy, script, objective)


# --- other places of a choice -----------------------------------------------------------------------------------------

Y = torch.tensor([[0.3, -1.2], [2.0, 1.4], [0.1, 0.9]], dtype=torch.float64)
B, Q = Y.shape


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
