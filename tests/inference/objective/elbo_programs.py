"""Small models and guides for the tests of the objective: what structures it takes, and how they are compared."""

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
from pyro.infer import SVI
from pyro.infer.elbo import ELBO
from torch import Tensor

from pyro_smat.inference import CVaR_ELBO

Y = torch.tensor([[0.3, -1.2], [2.0, 1.4], [0.1, 0.9]], dtype=torch.float64)
B, Q = Y.shape
NORMAL = dist.Normal(torch.zeros((), dtype=torch.float64), 1.0)
BOTH = pytest.mark.parametrize("vectorised", [False, True], ids=["sequential", "vectorised"])


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


def simple_guide() -> None:
    with episodes():
        pyro.sample("z", dist.Normal(free("b", B, 1), 0.7))


def simple_model() -> None:
    with episodes():
        z = pyro.sample("z", NORMAL)
        with queries():
            pyro.sample("y", dist.Normal(z, 1.0), obs=Y)


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


def discrete_without_enumeration() -> tuple[Callable, Callable]:
    model, _ = one_enumerated_site()

    def guide() -> None:
        with episodes():
            pyro.sample("k", dist.Categorical(logits=free("l", B, 1, 3)))

    return model, guide
