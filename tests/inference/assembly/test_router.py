"""From a config to trained, saved and reopened routers: every family, prior, catalog search and option."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, get_args

import pyro
import pytest
import torch
from pyro import poutine
from tiny_run import build_trainer, tiny_config, tiny_pool, tiny_router, tiny_sources
from torch import Tensor

from pyro_smat.episodes import Episode, EpisodeBatch, Labelled
from pyro_smat.guides import PointGuide
from pyro_smat.inference.assembly.config import Family, PriorKind, RunConfig, load_config
from pyro_smat.inference.assembly.router import Router, build_router
from pyro_smat.inference.decision import Deployment, predict
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.objective.build import build_elbo
from pyro_smat.inference.objective.distillation import PredictionDistillation, RoutingDistillation
from pyro_smat.inference.objective.reference import query_losses
from pyro_smat.inference.objective.threshold import THRESHOLDS
from pyro_smat.inference.runs import assembly
from pyro_smat.inference.runs import run as run_module
from pyro_smat.inference.runs.families import CATALOG_FAMILIES, GUIDES
from pyro_smat.inference.runs.folder import CATALOG
from pyro_smat.inference.runs.train import train_router
from pyro_smat.inference.training.catalog_search import search_catalog
from pyro_smat.models.priors import ConcretePrior, LogisticNormalPrior, RoutingPrior, SimplexCostPrior
from pyro_smat.networks.parameters import ParameterSpace
from pyro_smat.routing import Catalog
from pyro_smat.sources import SourceLibrary

FAMILIES: tuple[str, ...] = get_args(Family)
KINDS: tuple[str, ...] = get_args(PriorKind)
OF_CATALOGS = {"uniform", "cost_aware", "hierarchical", "mixture"}
OF_SIMPLEX = {"uniform", "cost_aware", "logistic_normal", "dirichlet", "concrete", "simplex_cost", "mixture"}
BLOCKS = 'sources.blocks={weight=".*weight", bias=".*bias"}'
COMPONENTS = {
    True: 'prior.components=[{kind="uniform"}, {kind="cost_aware", beta=3.0}]',
    False: 'prior.components=[{kind="dirichlet", concentration=2.0}, {kind="simplex_cost", beta=3.0}]',
}
pytestmark = pytest.mark.filterwarnings("ignore:rho x B")


def prior_overrides(family: str, kind: str) -> list[str]:
    overrides = [f"guide.family={family}", f"prior.kind={kind}"]
    return [*overrides, COMPONENTS[family in CATALOG_FAMILIES]] if kind == "mixture" else overrides


def moved(overrides: Sequence[str], steps: int = 1) -> dict[str, bool]:
    """Train for some steps of 4 episodes; which parameters of model and guide are not what they were."""
    trainer = build_trainer(None, overrides=overrides, episodes=4, validate_every=0, steps=max(steps, 2), warmup=0)
    named = {**dict(trainer.model.named_parameters()), **dict(trainer.guide.named_parameters())}
    before = {name: p.detach().clone() for name, p in named.items()}
    for _ in range(steps):
        row = trainer.training_step()
        undefined = {name for name, value in row.items() if value != value}
        assert undefined == ({"mutual_information"} if isinstance(trainer.guide, PointGuide) else set()), row
    assert all(torch.isfinite(p).all() for p in named.values())
    return {name: not torch.equal(p, before[name]) for name, p in named.items()}


# --- families and priors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "kind"), list(product(FAMILIES, KINDS)))
def test_every_family_with_every_prior_trains_or_is_refused(family: str, kind: str) -> None:
    known = OF_CATALOGS if family in ("catalog", "hierarchical") else OF_SIMPLEX
    overrides = prior_overrides(family, kind)
    if kind in known:
        assert any(moved(overrides).values())
        return
    with pytest.raises(ValueError, match=rf"prior.kind '{kind}' does not go with guide.family '{family}'; expected"):
        tiny_router(tiny_config(overrides))


def test_every_family_of_the_config_has_a_class() -> None:
    assert set(GUIDES) == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_routes_blocks_apart(family: str) -> None:
    overrides = [f"guide.family={family}", BLOCKS]
    assert any(moved(overrides).values())
    router = tiny_router(tiny_config(overrides))
    assert router.library.space.block_names == ("weight", "bias")
    assert router.model.prior.blocks == 2
    for parameter in router.guide.parameters():
        parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    support = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    routed = RoutedClassifier(router).adapt(support, ["a", "b", "c"] * 2)
    assert routed.posterior.mean.shape == (1, 2, 5)
    assert not torch.allclose(routed.posterior.mean[:, 0], routed.posterior.mean[:, 1])
    assert routed.predict_proba(support).shape == (6, 3)


def prior_of(overrides: Sequence[str]) -> RoutingPrior:
    return tiny_router(tiny_config(overrides)).model.prior


def test_prior_as_an_inline_table(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(
        'prior = {kind = "cost_aware", beta = 2.0, costs = [1.0, 2.0, 4.0]}\nguide = {family = "catalog"}\n'
    )
    config = load_config(path, ["data.size=8", "experts.count=0", "guide.catalog.max_sources=2"])
    router = build_router(config, torch.device("cpu"), tiny_sources(config))
    prices = [1.0, 2.0, 4.0, 3.0, 5.0, 6.0]  # a, b, c, a+b, a+c, b+c
    torch.testing.assert_close(router.model.prior.logits, (-2 * torch.tensor(prices)).log_softmax(-1))


@pytest.mark.parametrize("family", ["logistic_normal", "point"])
def test_cost_aware_on_gaussian_logits_shifts_them(family: str) -> None:
    costs = "prior.costs=[1.0, 2.0, 4.0, 0.0, 1.0]"
    prior = prior_of([f"guide.family={family}", "prior.kind=cost_aware", "prior.beta=0.5", "prior.scale=3.0", costs])
    assert isinstance(prior, LogisticNormalPrior)
    torch.testing.assert_close(prior.loc, -0.5 * torch.tensor([1.0, 2.0, 4.0, 0.0, 1.0]))
    assert set(prior.scale.tolist()) == {3.0}


@pytest.mark.parametrize("family", ["catalog", "logistic_normal", "dirichlet"])
def test_the_fallback_is_free_and_every_other_costs_one(family: str) -> None:
    prior: Any = prior_of([f"guide.family={family}", "guide.catalog.max_sources=2", "prior.kind=cost_aware"])
    each = torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0])
    if family == "catalog":
        prices = torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0, 2.0]).repeat_interleave(2) + 1  # an expert in every routing
        torch.testing.assert_close(prior.logits, (-prices).log_softmax(-1))
    else:
        assert torch.equal(prior.costs if family == "dirichlet" else -prior.loc, each)


def test_the_temperature_of_a_concrete_prior_is_that_of_the_config() -> None:
    prior = prior_of(["guide.family=concrete", "prior={kind='concrete', temperature=0.4}"])
    assert isinstance(prior, ConcretePrior)
    assert prior.temperature.item() == pytest.approx(0.4)
    assert prior.logits.tolist() == [0.0] * 5


@pytest.mark.parametrize("family", ["catalog", "hierarchical", "dirichlet", "concrete"])
def test_target_cost_solves_for_beta(family: str) -> None:
    costs = torch.tensor([1.0, 2.0, 4.0])
    prior = prior_of(
        [
            f"guide.family={family}",
            "guide.catalog.max_sources=2",
            "experts.count=0",
            "prior={kind='cost_aware', costs=[1.0, 2.0, 4.0], target_cost=1.7}",
        ]
    )
    if family in CATALOG_FAMILIES:
        opened = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]]).float() @ costs
        assert prior.logits.exp() @ opened == pytest.approx(1.7, abs=1e-5)
        return
    assert isinstance(prior, SimplexCostPrior)
    torch.manual_seed(0)
    uniform = torch.distributions.Dirichlet(torch.ones(3)).sample((100_000,)) @ costs
    weights = (-prior.beta * uniform).softmax(0)  # importance sampling from the uniform prior
    assert (weights @ uniform).item() == pytest.approx(1.7, abs=0.02)


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["guide.family=catalog", "prior.kind=cost_aware"], "prior.cost_weight.log_beta"),
        (["guide.family=dirichlet", "prior.kind=simplex_cost"], "prior.cost_weight.log_beta"),
        (prior_overrides("catalog", "mixture"), "prior.raw_log_weights"),
        (prior_overrides("logistic_normal", "mixture"), "prior.raw_log_weights"),
    ],
)
def test_learned_hyperparameters_move_and_feel_their_hyperprior(overrides: list[str], name: str) -> None:
    costs = "prior.costs=[1.0, 2.0, 4.0, 0.0, 1.0]" if "beta" in name else "prior.weights=[0.7, 0.3]"
    assert name not in moved([*overrides, costs])
    learned = [*overrides, costs, "prior.learn=true"]
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
        (
            ["prior={kind='cost_aware', costs=[1.0, 2.0]}"],
            r"prior.costs has 2 values; expected 5: 3 sources and 2 experts",
        ),
        (
            ["prior={kind='cost_aware', learn=true}"],
            r"learn and prior.hyperprior do nothing for kind 'cost_aware' with",
        ),
        (
            ["prior={kind='cost_aware', target_cost=1.5}"],
            r"prior.target_cost does nothing for kind 'cost_aware' with this guide; use kind 'simplex_cost'",
        ),
        (["prior.learn=true"], r"kind 'uniform' does not use learn; it uses \['concentration', 'scale'\]"),
        (["guide.family=catalog", "prior.target_cost=1.5"], r"kind 'uniform' does not use target_cost; it uses"),
        (
            ["guide.family=hierarchical", "prior={kind='hierarchical', learn=true, hyperprior=[1.0, 1.0]}"],
            r"kind 'hierarchical' does not use hyperprior; it uses \['learn'\]",
        ),
        (
            ["guide.family=catalog", "prior={kind='cost_aware', learn=true, hyperprior=[1.0]}"],
            r"prior.hyperprior of beta is \[1.0\]; expected \[shape, rate\]",
        ),
        (["prior.kind=mixture"], r"kind is 'mixture' with 0 components"),
        (["prior.components=[{kind='uniform'}]"], r"kind is 'uniform' with 1 components; only a mixture has some"),
        (["prior.weights=[0.5, 0.5]"], r"kind 'uniform' does not use weights; it uses \['concentration', 'scale'\]"),
        (
            ["prior={kind='mixture', components=[{kind='hierarchical'}]}"],
            r"'hierarchical' does not go with .*'logistic",
        ),
        (["prior={kind='mixture', components=[{kindd='uniform'}]}"], r"prior.components.0.kindd'; did you mean 'kind'"),
    ],
)
def test_priors_that_say_nothing_or_the_wrong_thing_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_router(tiny_config(overrides))


# --- options of the guide, the experts and the objective --------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        *(["guide.encoder=" + name] for name in ("deep_sets", "prototype_moments", "prototype_attention")),
        ["guide.covariance=low_rank", "guide.rank=1"],
        ["guide.covariance=full"],
        ["guide.family=concrete", "guide.straight_through=true", "guide.per_episode=false"],
        ["guide.family=dirichlet", "guide.concentration=0.5"],
        *(
            [f"guide.family={family}", f"guide.estimator={estimator}", "guide.relaxation=0.7"]
            for family in CATALOG_FAMILIES
            for estimator in ("gumbel_softmax", "straight_through", "score_function")
        ),
        ["guide.family=catalog", "guide.estimator=score_function", "objective.baseline=leave_one_out"],
        ["experts.count=0"],
        ["experts.count=1", "experts.granularity=channel"],
        ["experts.gates=top_k", "experts.granularity=tensor"],
        ["experts.masks=separate", "experts.budget=primal_dual"],
        ["objective.num_particles=1", "objective.episode_loss=brier", "objective.reference=fallback"],
        ["head.metric=euclidean", "head.scale=2.0", "objective.entropy_weight=0.1"],
    ],
    ids=lambda o: ",".join(o),
)
def test_options_train(overrides: list[str]) -> None:
    assert any(moved(overrides).values())


def test_options_reach_the_objects() -> None:
    config = tiny_config(
        [
            "guide={family='concrete', straight_through=true, temperature=0.8, final_temperature=0.4, hidden=6}",
            "experts={count=2, sparsity=0.5, granularity='channel', masks='separate', ramp=0.1}",
            "experts.budget=primal_dual",
            "experts.dual_learning_rate=0.2",
            "objective={rho=0.25, kl_weight=0.3, entropy_weight=0.2, tail_weight=0.7, threshold='queue'}",
            "objective.baseline=decaying_average",
            "head={metric='euclidean', scale=3.0}",
            "decision.gate_samples=3",
        ]
    )
    router = tiny_router(config)
    guide: Any = router.guide
    assert (guide.range, guide.straight_through, guide.router.encoder.hidden) == ((0.8, 0.4), True, 6)
    model, bank = router.model, router.model.experts
    assert bank is not None
    assert (model.straight_through, model.masks, model.metric) == (True, "separate", "euclidean")
    assert model.scale.item() == pytest.approx(3.0)
    assert bank.log_alpha.shape == (2, 10)  # five rows and five biases
    assert (bank.sparsity, bank.enforcement, bank.dual_learning_rate, bank.ramp) == (0.5, "primal_dual", 0.2, 0.1)
    elbo = build_elbo(config, router.features(tiny_pool()), router)
    assert (elbo.rho, elbo.kl_weight, elbo.entropy_weight, elbo.tail_weight) == (0.25, 0.3, 0.2, 0.7)
    assert elbo.score_function.baseline == "decaying_average"
    for name, kind in THRESHOLDS.items():
        named = config.model_copy(update={"objective": config.objective.model_copy(update={"threshold": name})})
        assert type(build_elbo(named, router.features(), router).threshold) is kind


@pytest.mark.parametrize(("masks", "same"), [("shared", True), ("separate", False)])
def test_particles_share_a_sample_of_the_gates_or_have_their_own(masks: str, same: bool) -> None:
    """Point routing has the same coefficients in all particles: only the gates can tell them apart."""
    trainer = build_trainer(None, overrides=["guide.family=point", f"experts.masks={masks}"])
    assert trainer.model.experts is not None
    trainer.model.experts.delta.data.normal_(generator=torch.Generator().manual_seed(0))
    with pyro.plate("particles", 2, dim=-3):
        drawn = poutine.trace(trainer.guide).get_trace(trainer.validation[0])
        logits = poutine.replay(trainer.model, trace=drawn)(trainer.validation[0])
    assert torch.allclose(logits[0], logits[-1]) == same


def test_orthogonality_is_added_to_the_loss() -> None:
    trainer = build_trainer(None, "catalog", ["experts.orthogonality=0.5"], validate_every=0)
    bank = trainer.model.experts
    assert bank is not None
    bank.delta.data.normal_(generator=torch.Generator().manual_seed(0))
    penalty = bank.orthogonality().item()
    row = trainer.training_step()
    assert penalty > 0.1
    assert row["loss"] == pytest.approx(row["cvar"] + row["kl"] + 0.5 * penalty, rel=1e-5)


def test_a_loss_that_the_estimator_does_not_allow_is_refused() -> None:
    overrides = ["guide.family=catalog", "guide.estimator=score_function", "objective.episode_loss=predictive_nll"]
    with pytest.raises(ValueError, match=r"guide site 'routing' .* needs the score function, which episode_loss"):
        moved(overrides)


@pytest.mark.parametrize("family", ["catalog", "hierarchical", "logistic_normal", "point"])
@pytest.mark.parametrize("blocks", [[], [BLOCKS]])
def test_distillation_terms_are_built_trained_and_recorded(family: str, blocks: list[str]) -> None:
    wanted = ["objective.distillation={routing=0.5, prediction=0.25, temperature=2.0, on='queries'}"]
    overrides = [f"guide.family={family}", *blocks, *wanted]
    trainer = build_trainer(None, overrides=overrides, episodes=4, validate_every=0)
    routing, prediction = (trainer.elbo.penalties[f"{name}_distillation"] for name in ("routing", "prediction"))
    assert isinstance(routing, RoutingDistillation)
    assert isinstance(prediction, PredictionDistillation)
    assert (routing.weight, prediction.weight) == (0.5, 0.25)
    assert (routing.teacher.temperature, routing.teacher.on) == (2.0, "queries")
    row = trainer.training_step()
    extra = 0.5 * row["routing_distillation"] + 0.25 * row["prediction_distillation"]
    assert extra > 0
    assert row["loss"] == pytest.approx(row["cvar"] + row["kl"] + extra, rel=1e-4)


# --- catalogs, calibration, deployment --------------------------------------------------------------------------------


def quick(overrides: Sequence[str]) -> RunConfig:
    settings = ["training.steps=2", "training.episodes=4", "training.validate_every=0", "objective.rho=1.0"]
    return tiny_config([*settings, *overrides])


def trained(
    config: RunConfig, router: Router | None = None, folder: Path | None = None, **how: bool
) -> RoutedClassifier:
    """Of the router that is given, or of one over the sources that the config opens."""
    features = sources_of(config).features
    pools = {"train": features(tiny_pool()), "validation": features(tiny_pool(seed=1))}
    return train_router(config, torch.device("cpu"), folder, router=router, features=pools, progress=False, **how)[0]


def sources_of(config: RunConfig) -> Router:
    """A router that has the sources of a config, whose catalog may yet have to be searched."""
    plain = RunConfig(seed=config.seed, data=config.data, sources=config.sources)
    return build_router(plain, torch.device("cpu"), assembly.open_library(config))


def predictions(classifier: RoutedClassifier, rule: Any = None) -> Tensor:
    images = torch.rand(10, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return classifier.adapt(images[:6], ["a", "b", "c"] * 2).predict_proba(images[6:], rule)


def reopened(classifier: RoutedClassifier, folder: Path, **options: Any) -> RoutedClassifier:
    return RoutedClassifier.load(classifier.save(folder), network=classifier.router.network, **options)


@pytest.fixture
def opens_tiny_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly, "open_library", tiny_sources)


@pytest.mark.usefixtures("opens_tiny_sources")
@pytest.mark.parametrize("family", CATALOG_FAMILIES)
@pytest.mark.parametrize("method", ["k_hot", "greedy", "beam", "random"])
def test_catalogs_are_built_trained_and_saved_with_the_router(family: str, method: str, tmp_path: Path) -> None:
    search = f"guide.catalog={{method='{method}', max_sources=2, size=5, episodes=6, beam_width=2}}"
    kind = "prior.kind=" + ("hierarchical" if family == "hierarchical" else "cost_aware")
    classifier = trained(quick([f"guide.family={family}", search, kind]))
    catalog = classifier.router.catalog
    assert catalog is not None
    mixtures = list(dict.fromkeys(name.split("/")[0] for name in catalog.names))
    assert catalog.names == tuple(f"{name}/expert{m}" for name in mixtures for m in range(2))
    assert all(set(name.split("+")) <= {"a", "b", "c"} for name in mixtures)
    for name, row in zip(catalog.names, catalog.coefficients, strict=True):
        opened, expert = name.removesuffix(name[-8:]).split("+"), int(name[-1])
        expected = [(source in opened) / len(opened) for source in "abc"] + [float(m == expert) for m in range(2)]
        assert row.tolist() == pytest.approx(expected)
    assert len(mixtures) == 6 if method == "k_hot" else 1 <= len(mixtures) <= 2  # 5 routings are 2 mixtures x 2 experts
    again = reopened(classifier, tmp_path)
    assert again.router.catalog is not None
    assert again.router.catalog.names == catalog.names
    assert torch.equal(again.router.catalog.coefficients, catalog.coefficients)
    assert torch.equal(predictions(again, "top-k"), predictions(classifier, "top-k"))
    assert torch.equal(predictions(again), predictions(classifier))


@pytest.mark.usefixtures("opens_tiny_sources")
def test_what_is_searched_are_mixtures_of_sources_that_serve_the_training_episodes() -> None:
    """Of all catalogs of one mixture, the searched one has the smallest loss on the episodes that it is searched on."""
    search = "guide.catalog={method='random', max_sources=3, size=1, episodes=8}"  # all 7 mixtures are candidates
    classifier = trained(quick(["guide.family=catalog", "experts.count=0", search]))
    found = classifier.router.catalog
    assert found is not None
    config = tiny_config(["guide.family=point", "experts.count=0"])
    router = tiny_router(config)
    features = router.features(tiny_pool())
    assert features.pool is not None
    sampler = assembly.config.episodes.sampler(features.pool, seed=run_module.SEARCH_SEED)
    everything = Catalog.k_hot(("a", "b", "c"), max_sources=3)
    router.model.eval()
    losses = torch.zeros(len(everything))
    with torch.no_grad():
        for _ in range(2):
            batch = features.attach(sampler.sample(4))
            for j, row in enumerate(everything.coefficients):
                losses[j] += query_losses(router.model.logits(row.expand(4, -1), batch), batch).sum()
    assert found.names == (everything.names[int(losses.argmin())],)


@pytest.mark.usefixtures("opens_tiny_sources")
@pytest.mark.parametrize("blocks", [[], [BLOCKS]])
def test_a_searched_catalog_does_not_need_a_small_k_hot_one(blocks: list[str]) -> None:
    """7 sets of sources x 90 experts are too many to enumerate, and are not asked for."""
    search = "guide.catalog={method='greedy', max_sources=3, size=4, episodes=4}"
    classifier = trained(quick(["guide.family=catalog", "experts.count=90", search, *blocks]))
    catalog = classifier.router.catalog
    assert catalog is not None
    assert len(catalog) == 90  # one mixture, with every expert
    assert catalog.coefficients.shape[1:] == ((2, 93) if blocks else (93,))
    assert predictions(classifier).shape == (4, 3)


def test_a_search_over_blocks_does_not_need_every_pair_of_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """17 sources in each of 2 blocks would be 289 routings."""

    def many(config: RunConfig) -> tuple[torch.nn.Module, SourceLibrary]:
        network, _ = tiny_sources(config)
        space = ParameterSpace.from_module(network, config.sources.blocks or None)
        basis = 0.25 * torch.randn(17, space.dim, generator=torch.Generator().manual_seed(0))
        return network, SourceLibrary(tuple(f"s{r}" for r in range(17)), basis, space)

    monkeypatch.setattr(assembly, "open_library", many)
    search = "guide.catalog={method='greedy', max_sources=1, size=3, episodes=4}"
    catalog = trained(quick(["guide.family=catalog", "experts.count=0", BLOCKS, search])).router.catalog
    assert catalog is not None
    assert 1 <= len(catalog) <= 3


def refuse_to_search(*_: Any, **__: Any) -> Catalog:
    raise AssertionError("searched")


@pytest.mark.usefixtures("opens_tiny_sources")
def test_a_resumed_run_reads_its_catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = quick(["guide.family=catalog", "guide.catalog={method='greedy', max_sources=2, size=6, episodes=6}"])
    first = trained(config, folder=tmp_path)
    assert (tmp_path / CATALOG).is_file()
    monkeypatch.setattr(run_module, "search_catalog", refuse_to_search)
    again = trained(config, folder=tmp_path, resume=True)
    assert first.router.catalog is not None
    assert again.router.catalog is not None
    assert again.router.catalog.names == first.router.catalog.names
    assert torch.equal(again.router.catalog.coefficients, first.router.catalog.coefficients)
    assert torch.equal(predictions(again), predictions(first))
    with pytest.raises(AssertionError, match="searched"):
        trained(config, folder=tmp_path)  # a run that starts anew does not take another run's catalog


def test_a_router_that_is_passed_keeps_its_catalog(monkeypatch: pytest.MonkeyPatch) -> None:
    config = quick(["guide.family=catalog", "guide.catalog={method='greedy', size=4, episodes=4}"])
    with pytest.raises(ValueError, match=r"guide.catalog.method is 'greedy': .* searched first; train_router does it"):
        tiny_router(config)
    stand_in = tiny_router(tiny_config(["guide.family=point"]))
    sampler = assembly.build_sampler(config, tiny_pool(), 5)
    batches = [stand_in.features(tiny_pool()).attach(sampler.sample(4))]
    own = search_catalog(stand_in.model, batches, size=3)
    monkeypatch.setattr(run_module, "search_catalog", refuse_to_search)
    monkeypatch.setattr(assembly, "open_library", tiny_sources)
    router = tiny_router(config, catalog=own)
    assert trained(config, router).router.catalog is own


def test_large_catalogs_are_refused_by_enumeration_and_taken_by_the_score_function() -> None:
    overrides = ["guide.family=catalog", "experts.count=90"]
    with pytest.raises(ValueError, match=r"make 270 routings; expected at most 256"):
        tiny_router(tiny_config(overrides))
    assert any(moved([*overrides, "guide.estimator=score_function"]).values())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_saved_and_reopened(family: str, tmp_path: Path) -> None:
    mixture = prior_overrides(family, "mixture")
    classifier = RoutedClassifier(tiny_router(tiny_config(mixture)), Deployment(threshold=0.1, coverage=0.5))
    again = reopened(classifier, tmp_path)
    for rule in ("mean", "map", "ensemble", "top-k", "fallback"):
        assert torch.equal(predictions(again, rule), predictions(classifier, rule))
    assert again.deployment == classifier.deployment
    assert again.router.config == classifier.router.config


@pytest.mark.usefixtures("opens_tiny_sources")
def test_calibration_scales_the_posterior_and_is_saved(tmp_path: Path) -> None:
    configs = (quick(["guide.family=catalog", f"guide.calibrate={on}"]) for on in ("false", "true"))
    plain, scaled = (trained(config) for config in configs)
    guide: Any = scaled.router.guide
    temperature = guide.temperature_scale.item()
    assert plain.router.guide.temperature_scale.item() == 1.0  # type: ignore[union-attr,operator]
    assert temperature != 1.0
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    logits: list[Tensor] = [c.adapt(images, ["a", "b"] * 3).posterior.logits for c in (plain, scaled)]  # type: ignore[attr-defined]
    torch.testing.assert_close(logits[1] * temperature, logits[0])
    again: Any = reopened(scaled, tmp_path).router.guide
    assert again.temperature_scale.item() == temperature


def test_gate_samples_average_over_samples_of_the_gates() -> None:
    def of(samples: int) -> Router:
        router = tiny_router(tiny_config([f"decision.gate_samples={samples}", "guide.family=point"]))
        assert router.model.experts is not None
        router.model.experts.delta.data.normal_(generator=torch.Generator().manual_seed(0))
        return router

    router = of(6)
    found, deployed = predictions(RoutedClassifier(router), "mean"), predictions(RoutedClassifier(of(0)), "mean")
    assert not torch.allclose(found, deployed)
    images = torch.rand(10, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2] * 2)
    batch = EpisodeBatch.collate([Episode(Labelled(images[:6], labels), Labelled(images[6:]))])
    batch = router.features().attach(batch)
    bases = router.model.basis(6, torch.Generator().manual_seed(router.config.seed))
    assert len({tuple(basis[3].tolist()) for basis in bases}) == 6
    each = [predict(router.model, router.guide.posterior(batch), batch, "mean", basis=basis)[0] for basis in bases]
    torch.testing.assert_close(found, torch.stack(each).mean(0), rtol=1e-4, atol=1e-6)
