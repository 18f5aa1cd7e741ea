"""What structures of model and guide CVaR_ELBO takes, and what it says of those that it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.optim
import pytest
import torch
from pyro import poutine
from pyro.distributions.testing.fakes import NonreparameterizedNormal
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal, AutoNormalMessenger
from pyro.infer.elbo import ELBO
from torch import Tensor

from pyro_smat.inference import CVaR_ELBO

Y = torch.tensor([[0.3, -1.2], [2.0, 1.4], [0.1, 0.9]], dtype=torch.float64)
B, Q = Y.shape
NORMAL = dist.Normal(torch.zeros((), dtype=torch.float64), 1.0)
BOTH = pytest.mark.parametrize("vectorised", [False, True], ids=["sequential", "vectorised"])


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()
    torch.set_default_dtype(before)


def free(name: str, *shape: int) -> Tensor:
    """A parameter of the guide that differs in every entry."""
    return pyro.param(f"free_{name}", lambda: torch.linspace(-0.7, 0.9, math.prod(shape)).reshape(shape))


def episodes(dim: int = -2, size: int = B) -> Any:
    return pyro.plate("episodes", size, dim=dim)


def queries(dim: int = -1) -> Any:
    return pyro.plate("queries", Q, dim=dim)


def compare(model: Callable, guide: Callable, reference: ELBO, ours: CVaR_ELBO) -> None:
    results = []
    for elbo in (reference, ours):
        pyro.clear_param_store()
        pyro.set_rng_seed(4)
        loss = elbo.differentiable_loss(model, guide)
        loss.backward()
        store = pyro.get_param_store()
        results.append([loss.detach(), *(store[name].grad.clone() for name in sorted(store.keys()))])
    assert len(results[0]) == len(results[1]) > 1
    assert results[0][1].abs().max() > 1e-3
    for found, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    for evaluate in (ours.loss, ours.loss_and_grads):
        pyro.set_rng_seed(4)
        assert evaluate(model, guide) == pytest.approx(results[0][0].item(), rel=1e-12)
    SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss=ours).step()


# --- legal ------------------------------------------------------------------------------------------------------------


def global_and_local() -> tuple[Callable, Callable]:
    def model() -> None:
        shift = pyro.sample("shift", NORMAL)
        with episodes():
            z = pyro.sample("z", dist.Normal(shift, 1.0))
            with queries():
                pyro.sample("y", dist.Normal(z, 1.0), obs=Y)

    def guide() -> None:
        pyro.sample("shift", dist.Normal(free("a", 1).squeeze(), 0.5))
        with episodes():
            pyro.sample("z", dist.Normal(free("b", B, 1), 0.7))

    return model, guide


def only_global() -> tuple[Callable, Callable]:
    def model() -> None:
        shift = pyro.sample("shift", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with episodes(), queries():
            pyro.sample("y", dist.Normal(shift.sum(-1), 1.0), obs=Y)

    def guide() -> None:
        pyro.sample("shift", dist.Normal(free("a", 2), 0.5).to_event(1))

    return model, guide


def episodes_alone() -> tuple[Callable, Callable]:
    """No plate of queries: the episode's data are one event."""

    def model() -> None:
        with episodes(dim=-1):
            z = pyro.sample("z", NORMAL)
            pyro.sample("y", dist.Normal(z.unsqueeze(-1), 1.0).expand([*z.shape, Q]).to_event(1), obs=Y)

    def guide() -> None:
        with episodes(dim=-1):
            pyro.sample("z", dist.Normal(free("b", B), 0.7))

    return model, guide


def inner_plate_to_the_left() -> tuple[Callable, Callable]:
    def model() -> None:
        with episodes(dim=-1):
            z = pyro.sample("z", NORMAL)
            with queries(dim=-2):
                pyro.sample("y", dist.Normal(z, 1.0), obs=Y.T)

    def guide() -> None:
        with episodes(dim=-1):
            pyro.sample("z", dist.Normal(free("b", B), 0.7))

    return model, guide


def latents_in_both_plates() -> tuple[Callable, Callable]:
    def model() -> None:
        with episodes():
            z = pyro.sample("z", NORMAL)
            with queries():
                e = pyro.sample("e", dist.Normal(z, 1.0))
                pyro.sample("y", dist.Normal(e, 1.0), obs=Y)

    def guide() -> None:
        with episodes():
            pyro.sample("z", dist.Normal(free("b", B, 1), 0.7))
            with queries():
                pyro.sample("e", dist.Normal(free("c", B, Q), 0.7))

    return model, guide


def several_observed_sites() -> tuple[Callable, Callable]:
    def model() -> None:
        with episodes():
            z = pyro.sample("z", NORMAL)
            pyro.sample("whole", dist.Normal(z, 2.0), obs=Y.mean(1, keepdim=True))
            with queries(), poutine.mask(mask=torch.tensor([[True, False], [True, True], [False, True]])):
                pyro.sample("y", dist.Normal(z, 1.0), obs=Y)

    def guide() -> None:
        with episodes():
            pyro.sample("z", dist.Normal(free("b", B, 1), 0.7))

    return model, guide


def masked_latent() -> tuple[Callable, Callable]:
    mask = torch.tensor([[True], [False], [True]])

    def model() -> None:
        with episodes():
            with poutine.mask(mask=mask):
                z = pyro.sample("z", NORMAL)
            with queries():
                pyro.sample("y", dist.Normal(z, 1.0), obs=Y)

    def guide() -> None:
        with episodes(), poutine.mask(mask=mask):
            pyro.sample("z", dist.Normal(free("b", B, 1), 0.7))

    return model, guide


def sequential_inner_plate() -> tuple[Callable, Callable]:
    def model() -> None:
        with episodes():
            total = sum(pyro.sample(f"z{j}", NORMAL) for j in pyro.plate("parts", 2))
            with queries():
                pyro.sample("y", dist.Normal(total, 1.0), obs=Y)

    def guide() -> None:
        with episodes():
            for j in pyro.plate("parts", 2):
                pyro.sample(f"z{j}", dist.Normal(free(f"b{j}", B, 1), 0.7))

    return model, guide


def auxiliary_guide_site() -> tuple[Callable, Callable]:
    def model() -> None:
        with episodes():
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([1]).to_event(1))
            with queries():
                pyro.sample("y", dist.Normal(z[..., 0], 1.0), obs=Y)

    def guide() -> None:
        with episodes():
            u = pyro.sample("u", dist.Normal(free("b", B, 1), 0.7), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(u.unsqueeze(-1), event_dim=1))

    return model, guide


def no_closed_form() -> tuple[Callable, Callable]:
    """No KL between these is registered: the exact option falls back on the draw, as TraceMeanField_ELBO does."""

    def model() -> None:
        with episodes():
            z = pyro.sample("z", dist.StudentT(4.0, 0.0, 1.0))
            with queries():
                pyro.sample("y", dist.Normal(z, 1.0), obs=Y)

    def guide() -> None:
        with episodes():
            pyro.sample("z", dist.Normal(free("b", B, 1), 0.7))

    return model, guide


def derived_quantities() -> tuple[Callable, Callable]:
    """pyro.deterministic anywhere, pyro.factor inside the episode plate."""

    def model() -> None:
        shift = pyro.sample("shift", NORMAL)
        pyro.deterministic("double", 2.0 * shift)
        with episodes():
            z = pyro.sample("z", NORMAL)
            pyro.deterministic("weights", torch.stack([z, -z], -1).softmax(-1), event_dim=1)
            pyro.factor("soft", -0.3 * (z - shift).square())
            with queries():
                pyro.sample("y", dist.Normal(z, 1.0), obs=Y)

    def guide() -> None:
        pyro.sample("shift", dist.Normal(free("a", 1).squeeze(), 0.5))
        with episodes():
            pyro.sample("z", dist.Normal(free("b", B, 1), 0.7))

    return model, guide


CONTINUOUS = [
    derived_quantities,
    global_and_local,
    only_global,
    episodes_alone,
    inner_plate_to_the_left,
    latents_in_both_plates,
    several_observed_sites,
    masked_latent,
    sequential_inner_plate,
    auxiliary_guide_site,
    no_closed_form,
]


@BOTH
@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("structure", CONTINUOUS)
def test_legal_continuous(structure: Callable, particles: int, vectorised: bool) -> None:
    model, guide = structure()
    options: dict[str, Any] = {"num_particles": particles, "vectorize_particles": vectorised, "max_plate_nesting": 2}
    compare(model, guide, Trace_ELBO(**options), CVaR_ELBO(rho=1.0, kl="sampled", **options))
    compare(model, guide, TraceMeanField_ELBO(**options), CVaR_ELBO(rho=1.0, **options))


def enumerated(name: str, logits: Tensor) -> Tensor:
    return pyro.sample(name, dist.Categorical(logits=logits), infer={"enumerate": "parallel"})


def one_enumerated_site() -> tuple[Callable, Callable]:
    def model() -> None:
        with episodes():
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
            with queries():
                pyro.sample("y", dist.Normal(k.to(Y), 1.0), obs=Y)

    def guide() -> None:
        with episodes():
            enumerated("k", free("l", B, 1, 3))

    return model, guide


def enumerated_chain() -> tuple[Callable, Callable]:
    """The second choice depends on the first, in model and guide; one observation sees the second alone."""
    table = torch.tensor([[0.1, 0.9], [0.6, 0.4], [0.5, 0.5]])

    def model() -> None:
        with episodes():
            a = pyro.sample("a", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
            b = pyro.sample("b", dist.Categorical(table[a]))
            with queries():
                pyro.sample("y", dist.Normal(b.to(Y), 1.0), obs=Y)

    def guide() -> None:
        with episodes():
            a = enumerated("a", free("l", B, 1, 3))
            enumerated("b", free("m", 3, 2)[a])

    return model, guide


def enumerated_pair() -> tuple[Callable, Callable]:
    def model() -> None:
        with episodes():
            a = pyro.sample("a", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
            b = pyro.sample("b", dist.Bernoulli(0.3))
            with queries():
                pyro.sample("y", dist.Normal(a * b, 1.0), obs=Y)

    def guide() -> None:
        with episodes():
            enumerated("a", free("l", B, 1, 3))
            pyro.sample("b", dist.Bernoulli(logits=free("m", B, 1)), infer={"enumerate": "parallel"})

    return model, guide


def enumerated_in_the_inner_plate() -> tuple[Callable, Callable]:
    """Every query has a choice of its own: sums over choices come before sums over queries."""

    def model() -> None:
        with episodes():
            z = pyro.sample("z", NORMAL)
            with queries():
                k = pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
                pyro.sample("y", dist.Normal(z + k, 1.0), obs=Y)

    def guide() -> None:
        with episodes():
            pyro.sample("z", dist.Normal(free("b", B, 1), 0.7))
            with queries():
                enumerated("k", free("l", B, Q, 3))

    return model, guide


def enumerated_and_scaled() -> tuple[Callable, Callable]:
    model, guide = one_enumerated_site()
    return poutine.scale(model, scale=3.0), poutine.scale(guide, scale=3.0)


def enumerated_with_one_outcome() -> tuple[Callable, Callable]:
    def model() -> None:
        with episodes():
            k = pyro.sample("k", dist.Categorical(torch.ones(1)))
            z = pyro.sample("z", NORMAL)
            with queries():
                pyro.sample("y", dist.Normal(z + k, 1.0), obs=Y)

    def guide() -> None:
        with episodes():
            enumerated("k", torch.zeros(B, 1, 1))
            pyro.sample("z", dist.Normal(free("b", B, 1), 0.7))

    return model, guide


ENUMERATED = [
    one_enumerated_site,
    enumerated_chain,
    enumerated_pair,
    enumerated_in_the_inner_plate,
    enumerated_and_scaled,
    enumerated_with_one_outcome,
]


@BOTH
@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("structure", ENUMERATED)
def test_legal_enumerated(structure: Callable, particles: int, vectorised: bool) -> None:
    model, guide = structure()
    options: dict[str, Any] = {"num_particles": particles, "vectorize_particles": vectorised, "max_plate_nesting": 2}
    compare(model, guide, TraceEnum_ELBO(**options), CVaR_ELBO(rho=1.0, kl="sampled", **options))


def unreparameterised() -> tuple[Callable, Callable]:
    def guide() -> None:
        with episodes():
            pyro.sample("z", NonreparameterizedNormal(free("b", B, 1), 0.7))

    return simple_model, guide


def discrete_without_enumeration() -> tuple[Callable, Callable]:
    model, _ = one_enumerated_site()

    def guide() -> None:
        with episodes():
            pyro.sample("k", dist.Categorical(logits=free("l", B, 1, 3)))

    return model, guide


def global_scored_local_reparameterised() -> tuple[Callable, Callable]:
    model, _ = global_and_local()

    def guide() -> None:
        shift = pyro.sample("shift", NonreparameterizedNormal(free("a", 1).squeeze(), 0.5))
        with episodes():
            pyro.sample("z", dist.Normal(free("b", B, 1) + 0.3 * shift, 0.7))

    return model, guide


def scored_everywhere() -> tuple[Callable, Callable]:
    """Global, of the episode and of the query, each depending on the one outside it."""
    table = torch.tensor([[0.1, 0.9], [0.6, 0.4], [0.5, 0.5]])

    def model() -> None:
        shift = pyro.sample("shift", NORMAL)
        with episodes():
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
            pyro.sample("whole", dist.Normal(k + shift, 2.0), obs=Y.mean(1, keepdim=True))
            with queries():
                e = pyro.sample("e", dist.Categorical(table[k]))
                pyro.sample("y", dist.Normal(e + shift, 1.0), obs=Y)

    def guide() -> None:
        shift = pyro.sample("shift", NonreparameterizedNormal(free("a", 1).squeeze(), 0.5))
        with episodes():
            k = pyro.sample("k", dist.Categorical(logits=free("l", B, 1, 3) + shift.unsqueeze(-1)))
            with queries():
                pyro.sample("e", dist.Categorical(logits=free("m", 3, Q, 2)[k, torch.arange(Q)]))

    return model, guide


def reparameterised_after_scored() -> tuple[Callable, Callable]:
    def model() -> None:
        with episodes():
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.8])))
            w = pyro.sample("w", dist.Normal(k.to(Y), 1.0))
            with queries():
                pyro.sample("y", dist.Normal(w, 1.0), obs=Y)

    def guide() -> None:
        with episodes():
            k = pyro.sample("k", dist.Categorical(logits=free("l", B, 1, 2)))
            pyro.sample("w", dist.Normal(free("b", 2)[k], 0.5))

    return model, guide


def scored_after_reparameterised() -> tuple[Callable, Callable]:
    """The score of the choice has a gradient through the draw that it depends on."""

    def model() -> None:
        with episodes():
            w = pyro.sample("w", NORMAL)
            k = pyro.sample("k", dist.Bernoulli(0.3))
            with queries():
                pyro.sample("y", dist.Normal(w * k, 1.0), obs=Y)

    def guide() -> None:
        with episodes():
            w = pyro.sample("w", dist.Normal(free("b", B, 1), 0.5))
            pyro.sample("k", dist.Bernoulli(logits=free("c", B, 1) * w))

    return model, guide


def scored_and_scaled() -> tuple[Callable, Callable]:
    model, guide = scored_everywhere()
    return poutine.scale(model, scale=3.0), poutine.scale(guide, scale=3.0)


def scored_and_masked() -> tuple[Callable, Callable]:
    mask = torch.tensor([[True], [False], [True]])

    def model() -> None:
        with episodes():
            with poutine.mask(mask=mask):
                k = pyro.sample("k", dist.Bernoulli(0.3))
            with queries(), poutine.mask(mask=torch.tensor([[True, False], [True, True], [False, True]])):
                pyro.sample("y", dist.Normal(k, 1.0), obs=Y)

    def guide() -> None:
        with episodes(), poutine.mask(mask=mask):
            pyro.sample("k", dist.Bernoulli(logits=free("b", B, 1)))

    return model, guide


def scored_beside_the_episodes() -> tuple[Callable, Callable]:
    """Episodes at dim -1, the plate of the choices at dim -2."""

    def model() -> None:
        with episodes(dim=-1):
            z = pyro.sample("z", NORMAL)
            with queries(dim=-2):
                k = pyro.sample("k", dist.Bernoulli(0.3))
                pyro.sample("y", dist.Normal(z + k, 1.0), obs=Y.T)

    def guide() -> None:
        with episodes(dim=-1):
            pyro.sample("z", NonreparameterizedNormal(free("b", B), 0.7))
            with queries(dim=-2):
                pyro.sample("k", dist.Bernoulli(logits=free("c", Q, B)))

    return model, guide


def scored_in_sequence() -> tuple[Callable, Callable]:
    model, _ = sequential_inner_plate()

    def guide() -> None:
        with episodes():
            for j in pyro.plate("parts", 2):
                pyro.sample(f"z{j}", NonreparameterizedNormal(free(f"b{j}", B, 1), 0.7))

    return model, guide


def scored_and_factors() -> tuple[Callable, Callable]:
    """pyro.factor outside all plates (a hyperprior) and inside the episodes (an observation of each)."""

    def model() -> None:
        shift = pyro.sample("shift", NORMAL)
        pyro.factor("hyperprior", -0.5 * shift.square() - pyro.param("free_p", torch.tensor(0.4)).square())
        with episodes():
            z = pyro.sample("z", NORMAL)
            pyro.factor("soft", -0.3 * (z - shift).square())
            with queries():
                pyro.sample("y", dist.Normal(z, 1.0), obs=Y)

    def guide() -> None:
        shift = pyro.sample("shift", NonreparameterizedNormal(free("a", 1).squeeze(), 0.5))
        with episodes():
            pyro.sample("z", NonreparameterizedNormal(free("b", B, 1) + 0.1 * shift, 0.7))

    return model, guide


def scored_subsample() -> tuple[Callable, Callable]:
    """Four episodes, of which two are drawn; both programs draw the same."""
    data = torch.cat([Y, Y[:1] - 1.0])

    def model() -> None:
        with pyro.plate("episodes", 4, subsample_size=2, dim=-2) as rows:
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
            with queries():
                pyro.sample("y", dist.Normal(k.to(Y), 1.0), obs=data[rows])

    def guide() -> None:
        with pyro.plate("episodes", 4, subsample_size=2, dim=-2) as rows:
            pyro.sample("k", dist.Categorical(logits=free("l", 4, 1, 3)[rows]))

    return model, guide


SCORED = [
    unreparameterised,
    discrete_without_enumeration,
    global_scored_local_reparameterised,
    scored_everywhere,
    reparameterised_after_scored,
    scored_after_reparameterised,
    scored_and_scaled,
    scored_and_masked,
    scored_beside_the_episodes,
    scored_in_sequence,
    scored_and_factors,
    scored_subsample,
]


@BOTH
@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("structure", SCORED)
def test_legal_score_function(structure: Callable, particles: int, vectorised: bool) -> None:
    """Pyro's Rao-Blackwellised estimator, with the same draws: also where episodes are drawn and scaled up."""
    model, guide = structure()
    options: dict[str, Any] = {"num_particles": particles, "vectorize_particles": vectorised, "max_plate_nesting": 2}
    compare(model, guide, Trace_ELBO(**options), CVaR_ELBO(rho=1.0, kl="sampled", **options))


@pytest.mark.filterwarnings("ignore:rho x B")
def test_enumerated_global_site_against_the_sum() -> None:
    """One choice for all episodes: its KL is global, and every X_i is an expectation over it."""
    logits = torch.tensor([0.2, -0.4], requires_grad=True)

    def model() -> None:
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])))
        with episodes(), queries():
            pyro.sample("y", dist.Normal(2.0 * k, 1.0), obs=Y)

    def guide() -> None:
        enumerated("k", logits)

    terms = CVaR_ELBO(rho=0.4, kl_weight=0.5).terms(model, guide)
    q = logits.detach().softmax(0)
    nll = -dist.Normal(torch.tensor([0.0, 2.0]).view(2, 1, 1), 1.0).log_prob(Y).sum(-1)  # (2, B)
    kl = (q * (q / torch.tensor([0.3, 0.7])).log()).sum()
    torch.testing.assert_close(terms.episode_losses, q @ nll)
    torch.testing.assert_close(terms.global_kl, kl)
    assert terms.episode_kl.abs().max() == 0
    x = (q @ nll).sort(descending=True).values
    expected = B * (x[0] + 0.2 * x[1]) / 1.2 + 0.5 * kl
    torch.testing.assert_close(terms.loss.detach(), expected)
    assert torch.autograd.grad(terms.loss, logits)[0].abs().max() > 1e-3


@BOTH
def test_a_continuous_site_may_follow_an_enumerated_one(vectorised: bool) -> None:
    """q(k) q(w | k), both inside the episode plate, against the sum over k with the same draws."""
    options: dict[str, Any] = {"num_particles": 2, "vectorize_particles": vectorised, "max_plate_nesting": 2}

    def model() -> None:
        with episodes():
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.8])))
            w = pyro.sample("w", dist.Normal(k.to(Y), 1.0))
            with queries():
                pyro.sample("y", dist.Normal(w, 1.0), obs=Y)

    def guide() -> None:
        with episodes():
            k = enumerated("k", free("l", B, 1, 2))
            loc = free("b", 2)[k]
            # Explicit expansion: the draws of one episode must not be shared with another.
            pyro.sample("w", dist.Normal(loc.expand(torch.broadcast_shapes(loc.shape, (B, 1))), 1e-6))

    with pyro.validation_enabled(False):  # Pyro's check is too strict here, its issue 2919
        terms = CVaR_ELBO(rho=1.0, **options).terms(model, guide)
    store = pyro.get_param_store()
    q = store["free_l"].detach().squeeze(1).softmax(-1)
    b = store["free_b"].detach()
    nll = -dist.Normal(b.view(2, 1, 1), 1.0).log_prob(Y).sum(-1)
    torch.testing.assert_close(terms.episode_losses, (q * nll.T).sum(-1), rtol=1e-4, atol=1e-4)
    inner = -math.log(1e-6) + 0.5 * (1e-12 + (b - torch.tensor([0.0, 1.0])).square() - 1)
    kl = (q * (q / torch.tensor([0.2, 0.8])).log()).sum(-1) + q @ inner
    torch.testing.assert_close(terms.episode_kl, kl, rtol=1e-4, atol=1e-4)


def test_autoguides_work() -> None:
    model, _ = global_and_local()
    guide = AutoNormal(model)
    guide()
    loss = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss=CVaR_ELBO(rho=1.0)).step()
    assert math.isfinite(loss)


# --- illegal ----------------------------------------------------------------------------------------------------------


def simple_guide() -> None:
    with episodes():
        pyro.sample("z", dist.Normal(free("b", B, 1), 0.7))


def simple_model() -> None:
    with episodes():
        z = pyro.sample("z", NORMAL)
        with queries():
            pyro.sample("y", dist.Normal(z, 1.0), obs=Y)


def observed_outside() -> tuple[Callable, Callable]:
    def model() -> None:
        with episodes():
            z = pyro.sample("z", NORMAL)
        with pyro.plate("tasks", B, dim=-2), queries():
            pyro.sample("y", dist.Normal(z, 1.0), obs=Y)

    return model, simple_guide


def observed_global() -> tuple[Callable, Callable]:
    def model() -> None:
        simple_model()
        pyro.sample("total", dist.Normal(torch.tensor(0.0), 1.0), obs=Y.sum())

    return model, simple_guide


def local_in_another_plate() -> tuple[Callable, Callable]:
    def model() -> None:
        plate = queries()
        with plate:
            e = pyro.sample("e", NORMAL)
        with episodes(), plate:
            pyro.sample("y", dist.Normal(e, 1.0), obs=Y)

    def guide() -> None:
        with queries():
            pyro.sample("e", dist.Normal(free("c", Q), 1.0))

    return model, guide


def sequential_episodes() -> tuple[Callable, Callable]:
    def model() -> None:
        for i in pyro.plate("episodes", B):
            z = pyro.sample(f"z{i}", NORMAL)
            pyro.sample(f"y{i}", dist.Normal(z, 1.0), obs=Y[i, 0])

    def guide() -> None:
        for i in pyro.plate("episodes", B):
            pyro.sample(f"z{i}", dist.Normal(free(f"b{i}", 1).squeeze(), 0.7))

    return model, guide


def enumerated_in_sequence() -> tuple[Callable, Callable]:
    model, _ = one_enumerated_site()

    def guide() -> None:
        with episodes():
            pyro.sample("k", dist.Categorical(logits=free("l", B, 1, 3)), infer={"enumerate": "sequential"})

    return model, guide


def sampled_enumeration() -> tuple[Callable, Callable]:
    model, _ = one_enumerated_site()

    def guide() -> None:
        with episodes():
            infer = {"enumerate": "parallel", "num_samples": 5, "expand": True}
            pyro.sample("k", dist.Categorical(logits=free("l", B, 1, 3)), infer=infer)

    return model, guide


def enumerated_plate_escapes() -> tuple[Callable, Callable]:
    """Choices of every query, but an observation of the whole episode: 3^Q combinations, not 3."""

    def model() -> None:
        with episodes():
            with queries():
                k = pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
            pyro.sample("y", dist.Normal(k.to(Y).sum(-1, keepdim=True), 1.0), obs=Y.sum(-1, keepdim=True))

    def guide() -> None:
        with episodes(), queries():
            enumerated("k", free("l", B, Q, 3))

    return model, guide


def factor_in_another_plate() -> tuple[Callable, Callable]:
    def model() -> None:
        simple_model()
        with pyro.plate("parts", 2, dim=-1):
            pyro.factor("penalty", torch.tensor([0.1, 0.2]))

    return model, simple_guide


def scored_after_enumerated() -> tuple[Callable, Callable]:
    model, _ = enumerated_chain()

    def guide() -> None:
        with episodes():
            a = enumerated("a", free("l", B, 1, 3))
            pyro.sample("b", dist.Categorical(logits=free("m", 3, 2)[a]))

    return model, guide


def nothing_observed() -> tuple[Callable, Callable]:
    def model() -> None:
        with episodes():
            pyro.sample("z", NORMAL)

    return model, simple_guide


ILLEGAL = [
    (observed_outside, r"observed site 'y' is not inside the plate 'episodes' \(its plates: \['tasks', 'queries'\]\)"),
    (observed_global, r"observed site 'total' is not inside the plate 'episodes' \(its plates: \[\]\)"),
    (local_in_another_plate, r"site 'e' is inside plates \['queries'\] but not inside 'episodes'; enclose it"),
    (sequential_episodes, r"plate 'episodes' around site 'y0' is sequential"),
    (enumerated_in_sequence, r"guide site 'k' asks for 'sequential' enumeration; only \"parallel\""),
    (sampled_enumeration, r"guide site 'k' asks for num_samples inside its enumeration"),
    (factor_in_another_plate, r"observed site 'penalty' is not inside the plate 'episodes' \(its plates: \['parts'\]"),
    (scored_after_enumerated, r"site 'b' \(Categorical\) needs the score function and depends on .* site 'a'; give it"),
    (enumerated_plate_escapes, r"'y' depends on the enumerated guide site 'k', which is inside plates \['queries'\]"),
    (nothing_observed, r"the model observed nothing"),
]


@BOTH
@pytest.mark.filterwarnings("ignore:rho x B")
@pytest.mark.parametrize(("structure", "message"), ILLEGAL, ids=[s.__name__ for s, _ in ILLEGAL])
def test_illegal(structure: Callable, message: str, vectorised: bool) -> None:
    model, guide = structure()
    for rho in (1.0, 0.5):
        elbo = CVaR_ELBO(rho=rho, num_particles=2, vectorize_particles=vectorised, max_plate_nesting=2)
        for call in (elbo.loss, elbo.differentiable_loss, elbo.loss_and_grads):
            with pytest.raises(ValueError, match=message):
                call(model, guide)


@BOTH
def test_scored_sites_have_no_loss_of_an_ensemble(vectorised: bool) -> None:
    model, guide = discrete_without_enumeration()
    elbo = CVaR_ELBO(rho=1.0, episode_loss="ensemble_nll", num_particles=2, vectorize_particles=True)
    message = r"guide site 'k' \(Categorical\) needs the score function, which episode_loss EnsembleNLL does not allow"
    with pytest.raises(ValueError, match=message):
        elbo.loss(model, guide)


@pytest.mark.filterwarnings("ignore:Found vars in model but not guide")
@pytest.mark.parametrize("enumerate_it", [False, True], ids=["left out", "enumerated in the model"])
def test_latent_that_the_guide_lacks(enumerate_it: bool) -> None:
    infer = {"enumerate": "parallel"} if enumerate_it else {}

    def model() -> None:
        with episodes():
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])), infer=infer)
            z = pyro.sample("z", NORMAL)
            with queries():
                pyro.sample("y", dist.Normal(z + k, 1.0), obs=Y)

    with pytest.raises(
        ValueError, match=r"latent site 'k' of the model is not in the guide \(enumeration in the model"
    ):
        CVaR_ELBO(rho=1.0, max_plate_nesting=2).loss(model, simple_guide)


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize(("reference", "kl"), [(Trace_ELBO, "sampled"), (TraceMeanField_ELBO, "exact")])
def test_guide_messenger_runs_the_model_once(reference: type[ELBO], kl: Any, particles: int) -> None:
    runs = []

    def model() -> None:
        runs.append(1)
        simple_model()

    guide = AutoNormalMessenger(model)
    guide()
    values = []
    for elbo in (CVaR_ELBO(rho=1.0, kl=kl, num_particles=particles), reference(num_particles=particles)):
        pyro.set_rng_seed(0)
        runs.clear()
        values.append(elbo.loss(model, guide))
        assert len(runs) == particles
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    with pytest.raises(NotImplementedError, match="cannot vectorise particles"):
        CVaR_ELBO(rho=1.0, num_particles=2, vectorize_particles=True, max_plate_nesting=2).loss(model, guide)


def test_undeclared_dimension_is_refused() -> None:
    """A dim without a plate: Pyro's validation would catch it; without validation ours does."""

    def model() -> None:
        with episodes():
            z = pyro.sample("z", NORMAL)
            pyro.sample("y", dist.Normal(z, 1.0).expand([B, Q]), obs=Y)

    with (
        pyro.validation_enabled(False),
        pytest.raises(ValueError, match=r"term of site 'y' has shape \(3, 2\) .* expected 3 episodes at dim -2"),
    ):
        CVaR_ELBO(rho=1.0).loss(model, simple_guide)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": 0.0}, r"rho is 0.0; expected a tail fraction in \(0, 1\]"),
        ({"rho": 1.01}, r"rho is 1.01; expected a tail fraction in \(0, 1\]"),
        ({"rho": -0.1}, r"rho is -0.1"),
        ({"rho": math.nan}, r"rho is nan"),
        ({"kl_weight": -1.0}, r"kl_weight is -1.0 and entropy_weight None; expected >= 0"),
        ({"kl_weight": math.nan}, r"kl_weight is nan and entropy_weight None; expected >= 0"),
        ({"entropy_weight": -0.1}, r"kl_weight is 1.0 and entropy_weight -0.1; expected >= 0"),
        ({"entropy_weight": math.nan}, r"entropy_weight nan; expected >= 0"),
        ({"tail_weight": 1.5}, r"tail_weight \(kappa\) is 1.5; expected 0"),
        ({"tail_weight": -0.5}, r"tail_weight \(kappa\) is -0.5"),
        ({"kl": "analytic"}, r"kl is 'analytic'; expected 'exact' or 'sampled'"),
        ({"episode_loss": "mse"}, r"episode_loss is 'mse'; expected one of \[.*'mean_nll', 'nll'\] or an object"),
        ({"threshold": "mean"}, r"threshold is 'mean'; expected one of \['batch', 'learned', 'queue'\] or an object"),
        ({"baseline": "mean"}, r"baseline is 'mean'; expected one of \('none', 'leave_one_out', 'decaying_average'\)"),
        ({"baseline": "leave_one_out"}, r"needs num_particles >= 2; use 'decaying_average' with one"),
    ],
)
def test_options_out_of_range(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CVaR_ELBO(**options)


@pytest.mark.parametrize("shape", [(), (1,), (B, 1), (B + 1,)])
def test_reference_of_another_shape(shape: tuple[int, ...]) -> None:
    elbo = CVaR_ELBO(rho=1.0, reference=lambda: torch.zeros(shape))
    with pytest.raises(ValueError, match=rf"reference returned shape .*; expected \({B},\)"):
        elbo.loss(simple_model, simple_guide)


@pytest.mark.filterwarnings("ignore:rho x B")
def test_guides_with_another_order_are_not_trusted_with_exact_kls() -> None:
    """q(b) q(a | b) against p(a) p(b | a): the site-wise closed forms are not the KL of the joint."""

    def model() -> None:
        with episodes():
            a = pyro.sample("a", NORMAL)
            b = pyro.sample("b", dist.Normal(a, 1.0))
            with queries():
                pyro.sample("y", dist.Normal(b, 1.0), obs=Y)

    def guide() -> None:
        with episodes():
            b = pyro.sample("b", dist.Normal(free("b", B, 1), 0.7))
            pyro.sample("a", dist.Normal(0.9 * b, 0.3))

    with pytest.warns(UserWarning, match=r"sites \['a', 'b'\] .* order"):
        CVaR_ELBO(rho=1.0).loss(model, guide)
    CVaR_ELBO(rho=1.0, kl="sampled").loss(model, guide)  # warnings are errors here


def test_joint_guides_are_global() -> None:
    """A joint guide draws one auxiliary site for all episodes: its density belongs to no episode."""
    guide = AutoMultivariateNormal(simple_model)
    guide()
    loss = CVaR_ELBO(rho=1.0, kl="sampled", max_plate_nesting=2)
    pyro.set_rng_seed(0)
    found = loss.loss(simple_model, guide)
    pyro.set_rng_seed(0)
    assert found == pytest.approx(Trace_ELBO(max_plate_nesting=2).loss(simple_model, guide), rel=1e-9)
