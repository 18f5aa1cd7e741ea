"""The terms of CVaR_ELBO apart from the tail: the weights of the KL, hyperpriors, the plain ELBO, penalties."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.transforms import SigmoidTransform
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.poutine import Trace
from torch import Tensor

from pyro_smat.inference import CVaR_ELBO
from pyro_smat.registry import names

Y = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
B, Q = Y.shape
TABLE = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)
PRIOR = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
pytestmark = pytest.mark.filterwarnings("ignore:rho x B")


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


class Gaussian:
    """A latent logit an episode, observed by coins."""

    def __init__(self, make_guide: Callable[..., Any] = dist.Normal, prior: Any = None) -> None:
        self.prior = dist.Normal(0.0, 1.0) if prior is None else prior
        self.make_guide = make_guide
        self.loc = torch.linspace(-0.7, 0.9, B).unsqueeze(1).requires_grad_()
        self.scale = torch.linspace(0.4, 1.3, B).unsqueeze(1).requires_grad_()
        self.parameters = [self.loc, self.scale]

    def model(self) -> None:
        with pyro.plate("episodes", B, dim=-2):
            z = pyro.sample("z", self.prior)
            with pyro.plate("queries", Q, dim=-1):
                pyro.sample("y", dist.Bernoulli(logits=z), obs=Y)

    def guide(self) -> None:
        with pyro.plate("episodes", B, dim=-2):
            pyro.sample("z", self.make_guide(self.loc, self.scale))


class Categorical:
    """A choice of logits, enumerated."""

    def __init__(self) -> None:
        self.logits = torch.linspace(-0.7, 0.9, 3 * B).reshape(B, 1, 3).requires_grad_()
        self.parameters = [self.logits]

    def model(self) -> None:
        with pyro.plate("episodes", B, dim=-2):
            k = pyro.sample("k", dist.Categorical(PRIOR))
            with pyro.plate("queries", Q, dim=-1):
                pyro.sample("y", dist.Bernoulli(logits=TABLE[k]), obs=Y)

    def guide(self) -> None:
        with pyro.plate("episodes", B, dim=-2):
            pyro.sample("k", dist.Categorical(logits=self.logits), infer={"enumerate": "parallel"})

    def losses(self) -> Tensor:
        """Episode losses by hand ``(B,)``."""
        nll = -dist.Bernoulli(logits=TABLE.view(3, 1, 1)).log_prob(Y).sum(-1)
        return (self.logits.squeeze(1).softmax(-1) * nll.T).sum(-1)


def differentiated(loss: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, parameters)]


def at_seed(elbo: Any, toy: Any) -> list[Tensor]:
    pyro.set_rng_seed(3)
    return differentiated(elbo.differentiable_loss(toy.model, toy.guide), toy.parameters)


def assert_close(found: list[Tensor], expected: list[Tensor]) -> None:
    assert max(float(e.abs().max()) for e in expected[1:]) > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


# --- two weights of the KL --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Gaussian, Categorical])
@pytest.mark.parametrize("kl", ["exact", "sampled"])
def test_equal_weights_are_one_weight(make: Callable[[], Any], kl: Any) -> None:
    toy = make()
    one = CVaR_ELBO(rho=0.5, kl_weight=0.4, kl=kl)
    two = CVaR_ELBO(rho=0.5, kl_weight=0.4, entropy_weight=0.4, kl=kl)
    assert_close(at_seed(two, toy), at_seed(one, toy))


@pytest.mark.parametrize(("entropy", "cost"), [(0.3, 0.8), (0.0, 1.5), (1.2, 0.0)])
def test_split_of_an_enumerated_kl(entropy: float, cost: float) -> None:
    """L = sum X - entropy_weight H(q) - kl_weight E_q[log p]; the reported KL is the KL."""
    toy = Categorical()
    q = toy.logits.squeeze(1).softmax(-1)
    expected = toy.losses().sum() + entropy * (q * q.log()).sum() - cost * (q * PRIOR.log()).sum()
    elbo = CVaR_ELBO(rho=1.0, kl_weight=cost, entropy_weight=entropy)
    assert_close(at_seed(elbo, toy), differentiated(expected, toy.parameters))
    kl = (q * (q / PRIOR).log()).sum(-1).detach()
    torch.testing.assert_close(elbo.terms(toy.model, toy.guide).episode_kl, kl)


@pytest.mark.parametrize(("entropy", "cost"), [(0.3, 0.8), (0.0, 1.5), (1.2, 0.0)])
def test_split_of_a_gaussian_kl(entropy: float, cost: float) -> None:
    """-H = -log s - log(2 pi e) / 2 and -E[log p] = (m^2 + s^2 + log(2 pi)) / 2, the draw as it fell."""
    toy = Gaussian()
    pyro.set_rng_seed(3)
    z = dist.Normal(toy.loc, toy.scale).rsample()
    losses = -dist.Bernoulli(logits=z).log_prob(Y).sum()
    negative_entropy = (-toy.scale.log() - 0.5 * math.log(2 * math.pi * math.e)).sum()
    cross_entropy = 0.5 * (toy.loc.square() + toy.scale.square() + math.log(2 * math.pi)).sum()
    expected = losses + entropy * negative_entropy + cost * cross_entropy
    elbo = CVaR_ELBO(rho=1.0, kl_weight=cost, entropy_weight=entropy)
    assert_close(at_seed(elbo, toy), differentiated(expected, toy.parameters))


def squashed(loc: Tensor | float, scale: Tensor | float) -> dist.TransformedDistribution:
    return dist.TransformedDistribution(dist.Normal(loc, scale), [SigmoidTransform()])


@pytest.mark.parametrize("known_kl", [True, False])
def test_split_without_a_known_entropy(known_kl: bool) -> None:
    """log q of the draw stands for its expectation where the entropy is not known; and log p where the KL is not."""
    prior = squashed(0.0, 1.0) if known_kl else dist.Beta(2.0, 1.5)
    toy = Gaussian(squashed, prior)
    pyro.set_rng_seed(3)
    q = squashed(toy.loc, toy.scale)
    z = q.rsample()
    losses = -dist.Bernoulli(logits=z).log_prob(Y).sum()
    log_q = q.log_prob(z).sum()
    if known_kl:
        gaussians = dist.Normal(toy.loc, toy.scale), dist.Normal(0.0, 1.0)
        expected = losses + 0.8 * torch.distributions.kl_divergence(*gaussians).sum() + (0.3 - 0.8) * log_q
    else:
        expected = losses + 0.3 * log_q - 0.8 * prior.log_prob(z).sum()
    elbo = CVaR_ELBO(rho=1.0, kl_weight=0.8, entropy_weight=0.3)
    assert_close(at_seed(elbo, toy), differentiated(expected, toy.parameters))


# --- hyperpriors and factors ------------------------------------------------------------------------------------------


class Hyper(Gaussian):
    """The scale of the prior is learned, with a log density of its own outside all plates."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = torch.tensor(0.7).requires_grad_()
        self.parameters = [*self.parameters, self.rate]

    def density(self) -> Tensor:
        return -0.5 * self.rate.square() - 1.3

    def model(self) -> None:
        pyro.factor("hyperprior", self.density())
        with pyro.plate("episodes", B, dim=-2):
            z = pyro.sample("z", dist.Normal(0.0, self.rate.exp()))
            with pyro.plate("queries", Q, dim=-1):
                pyro.sample("y", dist.Bernoulli(logits=z), obs=Y)


@pytest.mark.parametrize(("particles", "vectorised"), [(1, False), (3, False), (3, True)])
@pytest.mark.parametrize(("reference", "kl"), [(Trace_ELBO, "sampled"), (TraceMeanField_ELBO, "exact")])
def test_hyperpriors_are_counted_once(reference: type, kl: Any, particles: int, vectorised: bool) -> None:
    options: dict[str, Any] = {"num_particles": particles, "vectorize_particles": vectorised, "max_plate_nesting": 2}
    toy = Hyper()
    assert_close(at_seed(CVaR_ELBO(rho=1.0, kl=kl, **options), toy), at_seed(reference(**options), toy))


@pytest.mark.parametrize("rho", [1.0, 0.25])
def test_hyperpriors_are_weighted_with_the_kl(rho: float) -> None:
    """What a factor outside all plates adds is -kl_weight log p, whatever the tail; it is reported as global."""
    toy, plain = Hyper(), Hyper()
    plain.density = lambda: torch.zeros(()) * plain.rate  # type: ignore[method-assign]
    plain.parameters = toy.parameters
    plain.loc, plain.scale, plain.rate = toy.parameters
    elbo = CVaR_ELBO(rho=rho, kl_weight=0.3)
    with_it, without = at_seed(elbo, toy), at_seed(elbo, plain)
    torch.testing.assert_close(with_it[0] - without[0], -0.3 * toy.density().detach())
    torch.testing.assert_close(with_it[3] - without[3], 0.3 * toy.rate.detach())
    torch.testing.assert_close(with_it[1], without[1])
    torch.testing.assert_close(elbo.terms(toy.model, toy.guide).global_kl, -toy.density().detach())


def with_factor(weight: Tensor) -> Callable[[], None]:
    def model() -> None:
        with pyro.plate("episodes", B, dim=-2):
            k = pyro.sample("k", dist.Categorical(PRIOR))
            pyro.factor("soft", -weight * TABLE[k].square())
            with pyro.plate("queries", Q, dim=-1):
                pyro.sample("y", dist.Bernoulli(logits=TABLE[k]), obs=Y)

    return model


@pytest.mark.parametrize("name", ["nll", "mean_nll", "clipped_nll", "expected_error"])
def test_a_factor_inside_the_episodes_is_an_observation(name: str) -> None:
    """Its log density goes through the episode loss like one observed point."""
    toy, weight = Categorical(), torch.tensor(0.2)
    q = toy.logits.detach().squeeze(1).softmax(-1)
    nll = weight * TABLE.square()
    own = {"clipped_nll": nll.clamp(max=5.0) / 5.0, "expected_error": 1 - (-nll).exp()}.get(name, nll)
    elbo = CVaR_ELBO(rho=1.0, episode_loss=name)
    found = elbo.terms(with_factor(weight), toy.guide).episode_losses
    torch.testing.assert_close(found, elbo.terms(toy.model, toy.guide).episode_losses + q @ own)


def test_a_factor_has_no_brier_score() -> None:
    with pytest.raises(ValueError, match=r"episode_loss Brier at site 'soft': the Brier score of a Unit is not known"):
        CVaR_ELBO(rho=1.0, episode_loss="brier").loss(with_factor(torch.tensor(0.2)), Categorical().guide)


# --- the plain ELBO beside it -----------------------------------------------------------------------------------------

OPTIONS: list[dict[str, Any]] = [
    {"rho": 0.25},
    {"rho": 1.0, "kl_weight": 0.1},
    {"rho": 0.5, "kl_weight": 0.1, "entropy_weight": 2.0, "tail_weight": 0.3},
    {"rho": 0.5, "reference": lambda: torch.linspace(0.0, 3.0, B)},
    {"rho": 0.5, "threshold": "queue"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: ", ".join(o))
@pytest.mark.parametrize("name", [*names("episode_loss"), "zero"])
@pytest.mark.parametrize(("make", "reference"), [(Hyper, TraceMeanField_ELBO), (Categorical, TraceEnum_ELBO)])
def test_negative_elbo_is_the_elbo(make: Callable[[], Any], reference: type, name: str, options: dict) -> None:
    toy = make()
    pyro.set_rng_seed(3)
    expected = reference(max_plate_nesting=2).loss(toy.model, toy.guide)
    pyro.set_rng_seed(3)
    loss: Any = (lambda fn, labels, mask: 0.0 * fn.log_prob(labels)) if name == "zero" else name
    elbo = CVaR_ELBO(episode_loss=loss, max_plate_nesting=2, **options)
    terms = elbo.terms(toy.model, toy.guide)
    assert terms.negative_elbo.item() == pytest.approx(expected, rel=1e-10)
    assert not terms.negative_elbo.requires_grad


# --- penalties --------------------------------------------------------------------------------------------------------


class Penalty:
    """values[k] at the choice, or with ``points`` at every query."""

    def __init__(self, weight: float, points: bool = False) -> None:
        self.weight, self.points = weight, points
        self.values = torch.tensor([1.0, -2.0, 5.0]).requires_grad_()
        self.calls: list[tuple[Any, ...]] = []

    def __call__(
        self, model_trace: Trace, guide_trace: Trace, *args: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], Tensor]:
        self.calls.append((*args, kwargs))
        term = self.values[guide_trace.nodes["k"]["value"]]
        site = model_trace.nodes["y" if self.points else "k"]
        return site, term * torch.tensor([1.0, 0.5]) if self.points else term


@pytest.mark.parametrize("points", [False, True], ids=["of the episode", "of the queries"])
@pytest.mark.parametrize(("particles", "vectorised"), [(1, False), (2, False), (2, True)])
@pytest.mark.parametrize("rho", [1.0, 0.25])
def test_penalties_are_added_beside_the_tail(rho: float, particles: int, vectorised: bool, points: bool) -> None:
    """weight x the sum over episodes of their expectation; the terms report the mean, without the weight."""
    toy, penalty = Categorical(), Penalty(0.3, points)
    options: dict[str, Any] = {"num_particles": particles, "vectorize_particles": vectorised, "max_plate_nesting": 2}
    plain = CVaR_ELBO(rho=rho, **options).terms(toy.model, toy.guide)
    terms = CVaR_ELBO(rho=rho, penalties={"toy": penalty}, **options).terms(toy.model, toy.guide)
    q = toy.logits.squeeze(1).softmax(-1)
    each = (q @ penalty.values) * (1.5 if points else 1.0)
    torch.testing.assert_close(terms.penalties["toy"], each.mean().detach())
    torch.testing.assert_close(terms.loss, plain.loss + 0.3 * each.sum())
    torch.testing.assert_close(terms.tail_loss, plain.tail_loss)
    torch.testing.assert_close(terms.negative_elbo, plain.negative_elbo)
    parameters = [toy.logits, penalty.values]
    expected = torch.autograd.grad(plain.loss + 0.3 * each.sum(), parameters)
    torch.testing.assert_close(torch.autograd.grad(terms.loss, parameters), expected)
    assert plain.penalties == {}


def test_penalties_get_the_arguments_of_the_model() -> None:
    toy, penalty = Categorical(), Penalty(1.0)
    elbo = CVaR_ELBO(rho=1.0, penalties={"toy": penalty})

    def model(*args: Any, **kwargs: Any) -> None:
        toy.model()

    def guide(*args: Any, **kwargs: Any) -> None:
        toy.guide()

    elbo.loss(model, guide, 3, flag=True)
    assert penalty.calls == [(3, {"flag": True})]


def test_terms_add_up_to_the_loss() -> None:
    """B ((1 - kappa) mean + kappa tail + penalties + KL) + global KL, from the reported terms alone."""
    for rho, kappa in itertools.product((1.0, 0.5), (1.0, 0.6)):
        toy = Hyper()
        terms = CVaR_ELBO(rho=rho, tail_weight=kappa, kl_weight=0.3).terms(toy.model, toy.guide)
        risk = (1 - kappa) * terms.mean_loss + kappa * terms.tail_loss
        torch.testing.assert_close(terms.loss.detach(), B * (risk + 0.3 * terms.kl) + 0.3 * terms.global_kl)
