"""What CVaR_ELBO says of the structures that it refuses."""

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
    discrete_without_enumeration,
    enumerated,
    enumerated_chain,
    episodes,
    free,
    one_enumerated_site,
    queries,
    simple_guide,
    simple_model,
)
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormalMessenger

from pyro_smat.inference import CVaR_ELBO

pytestmark = pytest.mark.usefixtures("double_precision")


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


def test_scored_sites_have_no_loss_of_an_ensemble() -> None:
    model, guide = discrete_without_enumeration()
    elbo = CVaR_ELBO(rho=1.0, episode_loss="predictive_nll", num_particles=2, vectorize_particles=True)
    message = (
        r"guide site 'k' \(Categorical\) needs the score function, which episode_loss PredictiveNLL does not allow"
    )
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
