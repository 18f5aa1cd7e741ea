"""Guide sites without a gradient of their own: against Pyro's Rao-Blackwellised estimator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.optim
import pytest
import torch
from elbo_programs import (
    BOTH,
    NORMAL,
    B,
    Q,
    Y,
    compare,
    discrete_without_enumeration,
    episodes,
    free,
    global_and_local,
    queries,
    sequential_inner_plate,
    simple_model,
)
from pyro import poutine
from pyro.distributions.testing.fakes import NonreparameterizedNormal
from pyro.infer import Trace_ELBO

from pyro_smat.inference import CVaR_ELBO

pytestmark = pytest.mark.usefixtures("double_precision")


def unreparameterised() -> tuple[Callable, Callable]:
    def guide() -> None:
        with episodes():
            pyro.sample("z", NonreparameterizedNormal(free("b", B, 1), 0.7))

    return simple_model, guide


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
