"""Every guide with every prior: it trains, or is refused with the priors that go with it; what options mean."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import ENCODING_GUIDES, build_trainer, moved, tiny_config, tiny_router, tiny_sources

from pyro_smat.inference.assembly.config import load_config
from pyro_smat.inference.assembly.pair import goes_with
from pyro_smat.inference.assembly.router import build_router
from pyro_smat.models.priors import ConcretePrior, LogisticNormalPrior, RoutingPrior, SimplexCostPrior
from pyro_smat.registry import find, names

GUIDES, PRIORS = ENCODING_GUIDES, names("prior")
CATALOG_GUIDES = ("catalog", "hierarchical")
OF_CATALOGS = {"uniform", "cost_aware", "catalog", "hierarchical", "mixture"}
OF_SIMPLEX = {"uniform", "cost_aware", "logistic_normal", "dirichlet", "concrete", "simplex_cost", "mixture"}
COMPONENTS = {
    True: '[{kind="uniform"}, {kind="cost_aware", beta=3.0}]',
    False: '[{kind="dirichlet", concentration=2.0}, {kind="simplex_cost", beta=3.0}]',
}
pytestmark = pytest.mark.filterwarnings("ignore:rho x B")


def mixture_of(guide: str) -> str:
    return f"{{kind='mixture', components={COMPONENTS[guide in CATALOG_GUIDES]}}}"


def overrides_of(guide: str, prior: str) -> list[str]:
    return [f"guide.kind={guide}", f"prior={mixture_of(guide) if prior == 'mixture' else repr(prior)}"]


@pytest.mark.parametrize(("guide", "prior"), list(product(GUIDES, PRIORS)))
def test_every_guide_with_every_prior_trains_or_is_refused(guide: str, prior: str) -> None:
    known = OF_CATALOGS if guide in CATALOG_GUIDES else OF_SIMPLEX
    overrides = overrides_of(guide, prior)
    if prior in known:
        assert any(moved(overrides).values())
        return
    with pytest.raises(
        ValueError, match=rf"prior '{prior}' does not go with guide '{guide}'; expected one of "
    ) as told:
        tiny_router(tiny_config(overrides))
    assert set(str(told.value).rpartition("expected one of ")[2].split(", ")) == known


def test_priors_of_ones_own_are_asked_like_all_others(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from pyro_smat.models.priors import CatalogPrior\n\n\nclass Mine(CatalogPrior):\n    pass\n"
    )
    mine = f"prior.kind={tmp_path / 'own.py'}:Mine"
    assert type(tiny_router(tiny_config(["guide.kind=catalog", mine])).model.prior).__name__ == "Mine"
    with pytest.raises(
        ValueError, match=r"own.py:Mine' does not go with guide 'point'; expected one of concrete, cost"
    ):
        tiny_router(tiny_config(["guide.kind=point", mine]))
    assert not goes_with(find("prior", "hierarchical"), over_catalog=False)


def prior_of(overrides: Sequence[str]) -> RoutingPrior:
    return tiny_router(tiny_config(overrides)).model.prior


def test_prior_as_an_inline_table(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('prior = {kind = "cost_aware", beta = 2.0, costs = [1.0, 2.0, 4.0]}\nguide = {kind = "catalog"}\n')
    config = load_config(path, ["data.size=8", "experts.count=0", "guide.catalog={kind='k_hot', max_sources=2}"])
    prior: Any = build_router(config, opened=tiny_sources(config)).model.prior
    prices = [1.0, 2.0, 4.0, 3.0, 5.0, 6.0]  # a, b, c, a+b, a+c, b+c
    torch.testing.assert_close(prior.logits, (-2 * torch.tensor(prices)).log_softmax(-1))


@pytest.mark.parametrize("guide", ["logistic_normal", "point"])
def test_cost_aware_on_gaussian_logits_shifts_them(guide: str) -> None:
    costs = "costs=[1.0, 2.0, 4.0, 0.0, 1.0]"
    prior = prior_of([f"guide.kind={guide}", f"prior={{kind='cost_aware', beta=0.5, scale=3.0, {costs}}}"])
    assert isinstance(prior, LogisticNormalPrior)
    torch.testing.assert_close(prior.loc, -0.5 * torch.tensor([1.0, 2.0, 4.0, 0.0, 1.0]))
    assert set(prior.scale.tolist()) == {3.0}


@pytest.mark.parametrize("guide", ["catalog", "logistic_normal", "dirichlet"])
def test_the_fallback_is_free_and_every_other_costs_one(guide: str) -> None:
    pairs = ["guide.catalog={kind='k_hot', max_sources=2}"] if guide == "catalog" else []
    prior: Any = prior_of([f"guide.kind={guide}", *pairs, "prior.kind=cost_aware"])
    each = torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0])
    if guide == "catalog":
        prices = torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0, 2.0]).repeat_interleave(2) + 1  # an expert in every routing
        torch.testing.assert_close(prior.logits, (-prices).log_softmax(-1))
    else:
        assert torch.equal(prior.costs if guide == "dirichlet" else -prior.loc, each)


def test_the_temperature_of_a_concrete_prior_is_that_of_the_config() -> None:
    prior = prior_of(["guide.kind=concrete", "prior={kind='concrete', temperature=0.4}"])
    assert isinstance(prior, ConcretePrior)
    assert prior.temperature.item() == pytest.approx(0.4)
    assert prior.logits.tolist() == [0.0] * 5


@pytest.mark.parametrize("guide", ["catalog", "hierarchical", "dirichlet", "concrete"])
def test_target_cost_solves_for_beta(guide: str) -> None:
    costs = torch.tensor([1.0, 2.0, 4.0])
    pairs = ["guide.catalog={kind='k_hot', max_sources=2}"] if guide in CATALOG_GUIDES else []
    wanted = "prior={kind='cost_aware', costs=[1.0, 2.0, 4.0], target_cost=1.7}"
    prior: Any = prior_of([f"guide.kind={guide}", *pairs, "experts.count=0", wanted])
    if guide in CATALOG_GUIDES:
        opened = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]]).float() @ costs
        assert prior.logits.exp() @ opened == pytest.approx(1.7, abs=1e-5)
        return
    assert isinstance(prior, SimplexCostPrior)
    torch.manual_seed(0)
    uniform = torch.distributions.Dirichlet(torch.ones(3)).sample((100_000,)) @ costs
    weights = (-prior.beta * uniform).softmax(0)  # importance sampling from the uniform prior
    assert (weights @ uniform).item() == pytest.approx(1.7, abs=0.02)


COSTS = "prior.costs=[1.0, 2.0, 4.0, 0.0, 1.0]"
WEIGHTS = "prior.weights=[0.7, 0.3]"


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([*overrides_of("catalog", "cost_aware"), COSTS], "prior.cost_weight.log_beta"),
        ([*overrides_of("dirichlet", "simplex_cost"), COSTS], "prior.cost_weight.log_beta"),
        ([*overrides_of("catalog", "mixture"), WEIGHTS], "prior.raw_log_weights"),
        ([*overrides_of("logistic_normal", "mixture"), WEIGHTS], "prior.raw_log_weights"),
    ],
)
def test_learned_hyperparameters_move_and_feel_their_hyperprior(overrides: list[str], name: str) -> None:
    assert name not in moved(overrides)
    learned = [*overrides, "prior.learn=true"]
    assert moved(learned)[name]
    gradients = []
    for hyperprior in ([], ["prior.hyperprior=[9.0, 2.0]"]):
        trainer = build_trainer(None, overrides=[*learned, *hyperprior], episodes=4, validate_every=0)
        trainer.model.eval()  # deployed gates: nothing else is random but what the seed fixes
        batch = trainer.validation[0]
        torch.manual_seed(0)
        trainer.elbo.terms(trainer.model, trainer.guide, batch).loss.backward()
        parameter = dict(trainer.model.named_parameters())[name]
        assert parameter.grad is not None
        gradients.append((parameter.grad, parameter.detach()))
    (free, value), (pulled, _) = gradients
    expected = {
        1: lambda: 2 * value.exp() - 8,  # of -log Gamma(beta; 9, 2) by log beta
        2: lambda: 9 * value.softmax(-1) - torch.tensor([8.0, 1.0]),  # of -log Dirichlet(pi; 9, 2) by the logits of pi
    }[value.numel()]()
    torch.testing.assert_close(pulled - free, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["prior={kind='cost_aware', costs=[1.0, 2.0]}"], r"costs: shape \(2,\); expected \(5,\)"),
        (
            ["prior={kind='cost_aware', learn=true, hyperprior=[1.0, 2.0]}"],
            r"prior.learn, prior.hyperprior does nothing for kind 'cost_aware' with LogisticNormalGuide; it uses beta",
        ),
        (
            ["prior={kind='cost_aware', target_cost=1.5}"],
            r"prior.target_cost does nothing .*; it uses beta, costs, scale",
        ),
        (["guide.kind=catalog", "prior={kind='uniform', scale=1.0}"], r"prior.scale does nothing .* with CatalogGuide"),
        (
            ["guide.kind=dirichlet", "prior={kind='uniform', scale=1.0}"],
            r"scale does nothing .*; it uses concentration",
        ),
        (
            ["guide.kind=catalog", "prior={kind='cost_aware', learn=true, hyperprior=[1.0]}"],
            r"hyperprior .*\[?1.0.*; expected .*shape, rate",
        ),
        (["prior={kind='mixture', components=[]}"], r"components"),
        (
            ["prior={kind='mixture', components=[{kind='hierarchical'}]}"],
            r"prior 'hierarchical' does not go with guide 'logistic_normal'; expected one of .*dirichlet",
        ),
    ],
)
def test_priors_that_say_nothing_or_the_wrong_thing_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_router(tiny_config(overrides))
