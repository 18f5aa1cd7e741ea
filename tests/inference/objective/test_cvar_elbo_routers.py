"""CVaR_ELBO of routers: Pyro's own ELBOs at rho = 1, and brute force over the routings of a catalog below."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.optim
import pytest
import torch
from elbo_toys import (
    TIGHT,
    assert_one_loss,
    assert_same,
    small_tail,
    value_and_gradient,
)
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.infer.elbo import ELBO
from torch import Tensor
from torch.distributions import kl_divergence
from torch.nn import functional as F

from pyro_smat.inference import CVaR_ELBO
from pyro_smat.metrics.risk import cvar

pytestmark = pytest.mark.usefixtures("double_precision")

PAIRS = [
    ("logistic_normal", Trace_ELBO, "sampled"),
    ("logistic_normal", TraceMeanField_ELBO, "exact"),
    ("point", Trace_ELBO, "sampled"),
    ("point", TraceMeanField_ELBO, "exact"),
    ("catalog", TraceEnum_ELBO, "exact"),
]


@pytest.mark.parametrize("nesting", [2, math.inf], ids=["nesting given", "nesting guessed"])
@pytest.mark.parametrize(("particles", "vectorised"), [(1, False), (1, True), (3, False), (3, True)])
@pytest.mark.parametrize(("family", "reference", "kl"), PAIRS)
def test_mean_tail_is_the_elbo(
    family: str, reference: type[ELBO], kl: Any, particles: int, vectorised: bool, nesting: float, make_router: Callable
) -> None:
    router = make_router(family)
    options: dict[str, Any] = {
        "num_particles": particles,
        "vectorize_particles": vectorised,
        "max_plate_nesting": nesting,
    }
    args = (router.model, router.guide, (router.batch,), router.parameters())
    ours, theirs = CVaR_ELBO(rho=1.0, kl=kl, **options), reference(**options)
    if nesting == math.inf:
        theirs.loss(*args[:2], router.batch)  # at its first call Pyro's object draws once more, to guess the nesting
    assert_same(value_and_gradient(ours, *args), value_and_gradient(theirs, *args))
    assert_one_loss(CVaR_ELBO(rho=1.0, kl=kl, **options), *args)


@small_tail
@pytest.mark.parametrize("family", ["logistic_normal", "point", "catalog"])
def test_losses_agree_below_one(family: str, make_router: Callable) -> None:
    router = make_router(family)
    for vectorised in (False, True):
        elbo = CVaR_ELBO(rho=0.3, num_particles=2, vectorize_particles=vectorised, tail_weight=0.7, kl_weight=0.4)
        assert_one_loss(elbo, router.model, router.guide, (router.batch,), router.parameters())


@small_tail
@pytest.mark.parametrize("local", [False, True], ids=["default settings", "module_local_params"])
@pytest.mark.parametrize("family", ["logistic_normal", "point", "catalog"])
def test_svi_steps_learn(family: str, local: bool, make_router: Callable) -> None:
    with pyro.settings.context(module_local_params=local):
        pyro.clear_param_store()
        router, other = make_router(family), make_router(family, seed=9)
        svi = SVI(router.model, router.guide, pyro.optim.Adam({"lr": 0.02}), loss=CVaR_ELBO(rho=0.5))
        untouched = [p.detach().clone() for p in other.parameters()]
        pyro.set_rng_seed(0)
        losses = [svi.step(router.batch) for _ in range(30)]
        assert sum(losses[-8:]) < sum(losses[:8])
        assert svi.evaluate_loss(router.batch) < losses[0]
        assert all(torch.equal(a, b) for a, b in zip(untouched, other.parameters(), strict=True))
        assert not list(pyro.get_param_store().keys())


@small_tail
@pytest.mark.parametrize("rho", [1.0, 0.6, 0.25])
@pytest.mark.parametrize("nesting", [2, math.inf])
@pytest.mark.parametrize(("particles", "vectorised"), [(1, False), (2, True)])
def test_catalog_is_the_sum_over_all_routings(
    rho: float, nesting: float, particles: int, vectorised: bool, make_router: Callable
) -> None:
    router = make_router("catalog", episodes=7)
    router.model.eval()
    elbo = CVaR_ELBO(
        rho=rho,
        kl_weight=0.7,
        max_plate_nesting=nesting,
        num_particles=particles,
        vectorize_particles=vectorised,
    )
    found = value_and_gradient(elbo, router.model, router.guide, (router.batch,), router.parameters())

    batch, posterior = router.batch, router.guide.posterior(router.batch)
    q = posterior.logits.softmax(-1)
    expected_losses = []
    for i in range(len(batch)):
        total = torch.zeros(())
        for j, row in enumerate(posterior.coefficients):
            logits = router.model.logits(row.expand(len(batch), -1), batch)[i]
            nll = F.cross_entropy(logits, batch.query.labels[i], reduction="none")[batch.query.mask[i]].sum()
            total = total + q[i, j] * nll
        expected_losses.append(total)
    losses = torch.stack(expected_losses)
    prior = torch.distributions.Categorical(logits=router.model.prior.logits)
    kl = kl_divergence(torch.distributions.Categorical(logits=posterior.logits), prior)
    loss = len(batch) * (cvar(losses, rho) + 0.7 * kl.mean())
    grads = torch.autograd.grad(loss, router.parameters(), allow_unused=True)
    parameters = zip(router.parameters(), grads, strict=True)
    assert_same(found, [loss.detach(), *(torch.zeros_like(p) if g is None else g for p, g in parameters)])


@small_tail
def test_zero_probability_routings_count_nothing() -> None:
    """0 log 0 = 0: a guide that rules a route out (and a prior that forbids it) has a finite loss."""
    logits = torch.tensor([[0.3, -math.inf, 0.1]], requires_grad=True)
    prior = torch.tensor([0.2, -math.inf, 0.5])

    def model(y: Tensor) -> None:
        with pyro.plate("episodes", len(y), dim=-1):
            k = pyro.sample("k", dist.Categorical(logits=prior))
            pyro.sample("y", dist.Normal(k.to(y), 1.0), obs=y)

    def guide(y: Tensor) -> None:
        with pyro.plate("episodes", len(y), dim=-1):
            pyro.sample("k", dist.Categorical(logits=logits.expand(len(y), -1)), infer={"enumerate": "parallel"})

    loss = CVaR_ELBO(rho=1.0).differentiable_loss(model, guide, torch.tensor([0.0, 2.0]))
    q = torch.tensor([0.3, 0.1]).softmax(0)
    p = torch.tensor([0.2, 0.5]).softmax(0)
    nll = -dist.Normal(torch.tensor([0.0, 2.0]), 1.0).log_prob(torch.tensor([[0.0], [2.0]]))
    expected = (nll @ q).sum() + 2 * (q * (q / p).log()).sum()
    torch.testing.assert_close(loss.detach(), expected, **TIGHT)
    loss.backward()
    assert torch.isfinite(logits.grad).all()  # type: ignore[arg-type]
