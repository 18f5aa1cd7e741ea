"""What structures of model and guide CVaR_ELBO takes: continuous and enumerated sites, against Pyro's ELBOs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.optim
import pytest
import torch
from elbo_programs import (
    BOTH,
    CONTINUOUS,
    ENUMERATED,
    B,
    Q,
    Y,
    compare,
    enumerated,
    episodes,
    free,
    global_and_local,
    queries,
    simple_model,
)
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.infer.elbo import ELBO

from pyro_smat.inference import CVaR_ELBO

pytestmark = pytest.mark.usefixtures("double_precision")


@BOTH
@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("structure", CONTINUOUS)
def test_legal_continuous(structure: Callable, particles: int, vectorised: bool) -> None:
    model, guide = structure()
    options: dict[str, Any] = {"num_particles": particles, "vectorize_particles": vectorised, "max_plate_nesting": 2}
    compare(model, guide, Trace_ELBO(**options), CVaR_ELBO(rho=1.0, kl="sampled", **options))
    compare(model, guide, TraceMeanField_ELBO(**options), CVaR_ELBO(rho=1.0, **options))


@BOTH
@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("structure", ENUMERATED)
def test_legal_enumerated(structure: Callable, particles: int, vectorised: bool) -> None:
    model, guide = structure()
    options: dict[str, Any] = {"num_particles": particles, "vectorize_particles": vectorised, "max_plate_nesting": 2}
    compare(model, guide, TraceEnum_ELBO(**options), CVaR_ELBO(rho=1.0, kl="sampled", **options))


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


@pytest.mark.parametrize(("reference", "kl"), [(TraceMeanField_ELBO, "exact"), (Trace_ELBO, "sampled")])
def test_autoguides_have_the_loss_of_pyro_and_learn(reference: type[ELBO], kl: Any) -> None:
    """AutoNormal, step by step from the same seeds: the same losses and the same parameters in the end."""
    model, _ = global_and_local()
    runs = []
    for loss in (reference(), CVaR_ELBO(rho=1.0, kl=kl)):
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        guide = AutoNormal(model)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), loss=loss)
        losses = [svi.step() for _ in range(60)]
        runs.append((losses, guide.median()))
    assert runs[1][0] == pytest.approx(runs[0][0], rel=1e-9)
    for name, value in runs[0][1].items():
        torch.testing.assert_close(runs[1][1][name], value)
    # Exact posterior means: every y_ij ~ N(shift, 2) given the shift, two of an episode with covariance 1.
    assert sum(runs[1][0][-10:]) < sum(runs[1][0][:10])
    precision = B * Q / (1 + Q)
    exact = precision * Y.mean() / (1 + precision)
    assert runs[1][1]["shift"].item() == pytest.approx(exact.item(), abs=0.25)


def test_joint_guides_are_global() -> None:
    """A joint guide draws one auxiliary site for all episodes: its density belongs to no episode."""
    guide = AutoMultivariateNormal(simple_model)
    guide()
    loss = CVaR_ELBO(rho=1.0, kl="sampled", max_plate_nesting=2)
    pyro.set_rng_seed(0)
    found = loss.loss(simple_model, guide)
    pyro.set_rng_seed(0)
    assert found == pytest.approx(Trace_ELBO(max_plate_nesting=2).loss(simple_model, guide), rel=1e-9)
