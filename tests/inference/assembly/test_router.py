"""From a config to a router: every option of guide, model, experts and objective reaches the objects, and trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from tiny_run import ENCODING_GUIDES, build_trainer, moved, tiny_config, tiny_pool, tiny_router, tiny_sources

from pyro_smat.inference.assembly import RunConfig, choose_device, open_library
from pyro_smat.inference.assembly.router import default_catalog
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.objective.build import build_elbo
from pyro_smat.inference.objective.distillation import PredictionDistillation, RoutingDistillation
from pyro_smat.inference.objective.threshold import THRESHOLDS
from pyro_smat.registry import names

GUIDES = ENCODING_GUIDES
CATALOG_GUIDES = ("catalog", "hierarchical")
BLOCKS = 'sources.blocks={weight=".*weight", bias=".*bias"}'
pytestmark = pytest.mark.filterwarnings("ignore:rho x B")


@pytest.mark.parametrize("guide", GUIDES)
def test_every_guide_routes_blocks_apart(guide: str) -> None:
    overrides = [f"guide.kind={guide}", BLOCKS]
    assert any(moved(overrides).values())
    router = tiny_router(tiny_config(overrides))
    assert router.library.space.block_names == ("weight", "bias")
    assert router.model.prior.num_blocks == 2
    for parameter in router.guide.parameters():
        parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    support = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    routed = RoutedClassifier(router).adapt(support, ["a", "b", "c"] * 2)
    assert routed.posterior.mean.shape == (1, 2, 5)
    assert not torch.allclose(routed.posterior.mean[:, 0], routed.posterior.mean[:, 1])
    assert routed.predict_proba(support).shape == (6, 3)


@pytest.mark.parametrize(
    "overrides",
    [
        *([f"guide.encoder={{kind='{name}', hidden=8}}"] for name in names("encoder")),
        ["sources.descriptors=false"],
        ["guide.covariance=low_rank", "guide.rank=1"],
        ["guide.covariance=full"],
        ["guide.kind=concrete", "guide.straight_through=true", "guide.per_episode=false"],
        ["guide.kind=dirichlet", "guide.concentration=0.5"],
        *(
            [f"guide.kind={guide}", f"guide.estimator={estimator}", "guide.temperature=0.7"]
            for guide in CATALOG_GUIDES
            for estimator in ("gumbel_softmax", "straight_through", "score_function")
        ),
        ["guide.kind=catalog", "guide.estimator=score_function", "objective.baseline=leave_one_out"],
        ["experts.count=0"],
        ["experts.count=1", "experts.granularity=channel"],
        ["experts.gates=top_k", "experts.granularity=tensor"],
        ["model.gates=separate", "experts.budget=primal_dual"],
        *([f"objective.episode_loss={name}"] for name in names("episode_loss")),
        ["objective.num_particles=1", "objective.episode_loss=brier", "objective.reference=fallback"],
        ["model={metric='euclidean', scale=2.0}", "objective.entropy_weight=0.1"],
    ],
    ids=lambda o: ",".join(o),
)
def test_options_train(overrides: list[str]) -> None:
    assert any(moved(overrides).values())


def test_options_reach_the_objects() -> None:
    config = tiny_config(
        [
            "guide={kind='concrete', straight_through=true, temperature=0.8, final_temperature=0.4}",
            "guide.encoder={kind='deep_sets', hidden=6}",
            "experts={count=2, sparsity=0.5, granularity='channel', ramp=0.1}",
            "experts.budget=primal_dual",
            "experts.dual_learning_rate=0.2",
            "objective={rho=0.25, kl_weight=0.3, entropy_weight=0.2, tail_weight=0.7, threshold='queue'}",
            "objective.baseline=decaying_average",
            "objective.episode_loss={kind='clipped_nll', clip=3.0}",
            "model={kind='routed', metric='euclidean', scale=3.0, gates='separate'}",
        ]
    )
    router = tiny_router(config)
    guide: Any = router.guide
    assert (guide.range, guide.straight_through, guide.router.encoder.hidden) == ((0.8, 0.4), True, 6)
    assert type(guide.router.encoder.support).__name__ == "DeepSetsEncoder"
    model, bank = router.model, router.model.experts
    assert bank is not None
    assert (model.straight_through, model.gates, model.metric) == (True, "separate", "euclidean")
    assert model.scale.item() == pytest.approx(3.0)
    assert bank.log_alpha.shape == (2, 10)  # five rows and five biases
    assert (bank.sparsity, bank.enforcement, bank.dual_learning_rate, bank.ramp) == (0.5, "primal_dual", 0.2, 0.1)
    features = router.features(tiny_pool())
    elbo = build_elbo(config.objective, features, model=router.model)
    assert (elbo.rho, elbo.kl_weight, elbo.entropy_weight, elbo.tail_weight) == (0.25, 0.3, 0.2, 0.7)
    assert elbo.score_function.baseline == "decaying_average"
    for name, kind in THRESHOLDS.items():
        named = config.replaced(objective={"threshold": name})
        assert type(build_elbo(named.objective, features, model=router.model).threshold) is kind


@pytest.mark.parametrize(("gates", "same"), [("shared", True), ("separate", False)])
def test_particles_share_a_sample_of_the_gates_or_have_their_own(gates: str, same: bool) -> None:
    """Point routing has the same coefficients in all particles: only the gates can tell them apart."""
    trainer = build_trainer(None, overrides=["guide.kind=point", f"model.gates={gates}"])
    assert trainer.model.experts is not None
    trainer.model.experts.delta.data.normal_(generator=torch.Generator().manual_seed(0))
    with pyro.plate("particles", 2, dim=-3):
        drawn = poutine.trace(trainer.guide).get_trace(trainer.validation[0])
        logits = poutine.replay(trainer.model, trace=drawn)(trainer.validation[0])
    assert torch.allclose(logits[0], logits[-1]) == same


def test_orthogonality_is_added_to_the_loss() -> None:
    trainer = build_trainer(None, "catalog", ["training.orthogonality=0.5"], validate_every=0)
    bank = trainer.model.experts
    assert bank is not None
    bank.delta.data.normal_(generator=torch.Generator().manual_seed(0))
    penalty = bank.orthogonality().item()
    row = trainer.training_step()
    assert penalty > 0.1
    assert row["loss"] == pytest.approx(row["cvar"] + row["kl"] + 0.5 * penalty, rel=1e-5)


def test_a_loss_that_the_estimator_does_not_allow_is_refused() -> None:
    overrides = ["guide.kind=catalog", "guide.estimator=score_function", "objective.episode_loss=predictive_nll"]
    with pytest.raises(ValueError, match=r"guide site 'routing' .* needs the score function, which episode_loss"):
        moved(overrides)


@pytest.mark.parametrize("guide", ["catalog", "hierarchical", "logistic_normal", "point"])
@pytest.mark.parametrize("blocks", [[], [BLOCKS]])
def test_distillation_terms_are_built_trained_and_recorded(guide: str, blocks: list[str]) -> None:
    wanted = ["objective.distillation={routing=0.5, prediction=0.25, temperature=2.0, on='queries'}"]
    overrides = [f"guide.kind={guide}", *blocks, *wanted]
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


def test_large_catalogs_are_refused_by_enumeration_and_taken_by_the_score_function() -> None:
    overrides = ["guide.kind=catalog", "experts.count=90"]
    with pytest.raises(ValueError, match=r"make 270 routings; expected at most 256"):
        tiny_router(tiny_config(overrides))
    assert any(moved([*overrides, "guide.estimator=score_function"]).values())


@pytest.mark.parametrize("kind", ["greedy", "beam", "random"])
def test_a_searched_catalog_has_to_be_searched_first(kind: str) -> None:
    config = tiny_config(["guide.kind=catalog", f"guide.catalog={{kind='{kind}', size=4}}"])
    with pytest.raises(ValueError, match=rf"guide.catalog is '{kind}': .* searched first; train_router does it"):
        tiny_router(config)


def test_only_guides_that_take_a_catalog_have_one() -> None:
    for guide in GUIDES:
        config = tiny_config([f"guide.kind={guide}"])
        catalog = default_catalog(config, tiny_sources(config)[1])
        assert (catalog is not None) == (guide in CATALOG_GUIDES)
        router = tiny_router(config)
        assert (router.catalog is not None) == (guide in CATALOG_GUIDES)
        assert f"{guide} guide over 3 sources (a, b, c) and 2 experts, uniform prior, on cpu" in repr(router)


def test_the_same_seed_makes_the_same_router_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again, other = (tiny_router(tiny_config([f"seed={seed}"])) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    of = [torch.cat([p.flatten() for p in r.guide.parameters()]) for r in (first, again, other)]
    assert torch.equal(of[0], of[1])
    assert not torch.equal(of[0], of[2])


def test_sources_are_the_configs_or_the_shipped_ones() -> None:
    assert open_library(RunConfig())[1].names == ("generalist", "letter", "face", "rotation", "style")
    small = RunConfig.model_validate({"sources": {"network": {"kind": "conv4", "channels": 4}}})
    foreign = RunConfig.model_validate({"data": {"kind": "folder", "path": Path("images")}})
    for config in (small, foreign):
        with pytest.raises(ValueError, match=r"\[sources\] names no files; .* the fallback first"):
            open_library(config)


def test_devices() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(ValueError, match="device is 'gpu'; expected 'auto', 'cpu', 'cuda' or 'mps'"):
        choose_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device is 'cuda:1' but PyTorch finds none"):
            choose_device("cuda:1")
