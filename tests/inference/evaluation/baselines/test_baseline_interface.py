"""What all baselines have in common: probabilities, blindness to the names of classes, and a place in evaluate()."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.inference.evaluation import evaluate
from pyro_smat.inference.evaluation.baselines import (
    BEST_BY_SUPPORT,
    AlignedSource,
    Baseline,
    BestSource,
    ComposedLibrary,
    Concatenation,
    HindsightMixture,
    HindsightSource,
    LinearProbe,
    LoRA,
    SingleSource,
    SourceAverage,
    SparseResidual,
    SubspaceResidual,
    SupportMixture,
    SupportOracle,
    TaskArithmetic,
    WeightedSourceAverage,
    greedy_soup,
    lowest_validation_loss,
    private_source_average,
    uniform_soup,
    validation_loss,
)
from pyro_smat.registry import build, choose, names
from pyro_smat.sources import FeatureSubspace, fit_subspace


def subspaces_of(composed: ComposedLibrary) -> dict[str, FeatureSubspace]:
    """Of two of the sources, on random features."""
    generator = torch.Generator().manual_seed(3)
    return {name: fit_subspace(torch.randn(20, 5, generator=generator), rank=2) for name in composed.library.names[1:3]}


MAKERS: dict[str, Callable[[ComposedLibrary, EpisodeBatch], Baseline]] = {
    "source 0": lambda c, v: SingleSource(c),
    "best source": lambda c, v: BestSource(c),
    "uniform soup": lambda c, v: uniform_soup(c),
    "greedy soup": lambda c, v: greedy_soup(c, [v]),
    "task arithmetic": lambda c, v: TaskArithmetic(c, 0.3),
    "mixture": lambda c, v: SupportMixture(c, steps=4),
    "source 0 + residual": lambda c, v: SparseResidual(SingleSource(c), 4, steps=4),
    "best source + residual": lambda c, v: SparseResidual(BestSource(c), 4, steps=4, ridge=0.1),
    "LoRA": lambda c, v: LoRA(BestSource(c), rank=2, steps=3),
    "linear probe": lambda c, v: LinearProbe(BestSource(c)),
    "support oracle": lambda c, v: SupportOracle(c, 4, rounds=1),
    "average": lambda c, v: SourceAverage(c),
    "weighted average": lambda c, v: WeightedSourceAverage(c, temperature=0.5),
    "ridge": lambda c, v: Concatenation(c),
    "ridge, selected": lambda c, v: Concatenation(c, select=True),
    "aligned source": lambda c, v: AlignedSource(c, "source1", steps=5),
    "subspace residual": lambda c, v: SubspaceResidual(c, subspaces_of(c)),
    "subspace residual, weighted": lambda c, v: SubspaceResidual(c, subspaces_of(c), temperature=0.5),
    "private average": lambda c, v: private_source_average(c, [v], epsilon=math.inf),
    "hindsight source": lambda c, v: HindsightSource(c),
    "hindsight mixture": lambda c, v: HindsightMixture(c, steps=4),
}


@pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)
def test_probabilities_follow_a_relabelling(
    maker: Callable[..., Baseline], composed: ComposedLibrary, make_batch: Callable
) -> None:
    batch = make_batch(composed)
    baseline = maker(composed, make_batch(composed, 50))
    probabilities = baseline(batch)
    assert probabilities.shape == (*batch.query.labels.shape, batch.max_way)
    assert not probabilities.requires_grad
    torch.testing.assert_close(probabilities.sum(-1), torch.ones_like(probabilities[..., 0]))
    assert not probabilities.mT[~batch.class_mask].any()  # classes that an episode does not have

    names = torch.arange(batch.max_way).repeat(len(batch), 1)  # class k of episode i is called names[i, k]
    generator = torch.Generator().manual_seed(0)
    for i, way in enumerate(batch.way.tolist()):
        names[i, :way] = torch.randperm(way, generator=generator)
    renamed = replace(
        batch,
        support=replace(batch.support, labels=names.gather(1, batch.support.labels)),
        query=replace(batch.query, labels=names.gather(1, batch.query.labels)),
    )
    expected = torch.zeros_like(probabilities).scatter(-1, names.unsqueeze(1).expand_as(probabilities), probabilities)
    asked = batch.query.mask
    torch.testing.assert_close(baseline(renamed)[asked], expected[asked], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("maker", [m for n, m in MAKERS.items() if "hindsight" not in n])
def test_query_labels_are_not_seen(
    maker: Callable[..., Baseline], composed: ComposedLibrary, make_batch: Callable
) -> None:
    batch = make_batch(composed)
    baseline = maker(composed, make_batch(composed, 50))
    blind = replace(batch, query=replace(batch.query, labels=torch.zeros_like(batch.query.labels)))
    assert torch.equal(baseline(blind), baseline(batch))


class OneBatch:
    """A sampler of the same episodes again and again."""

    def __init__(self, batch: EpisodeBatch) -> None:
        self.batch = replace(batch, support=replace(batch.support, features=None))

    def sample(self, count: int) -> EpisodeBatch:
        return self.batch[:count]


def test_in_the_evaluation_loop(make_router: Callable) -> None:
    """evaluate() agrees with its own uniform mixing, with networks that are composed anew, and with validation_loss."""
    router = make_router()
    scale = router.model.scale.item()
    ours = ComposedLibrary(router.network, router.library)
    routers = ComposedLibrary(router.network, router.library, scale=scale)
    composed_anew = SupportOracle(ours, 1, rounds=1, mixture_steps=1, residual_steps=1)
    baselines = [uniform_soup(routers), LinearProbe(BestSource(ours)), composed_anew]
    found = evaluate(
        router.model,
        router.guide,
        OneBatch(router.batch),  # type: ignore[arg-type]
        router.features,
        episodes=4,
        baselines=baselines,
    )
    assert abs(found.probabilities["uniform soup"] - found.probabilities["uniform_mixing"]).max() < 1e-6
    for name in (BEST_BY_SUPPORT, "source: source1"):
        alone = BestSource(ours) if name == BEST_BY_SUPPORT else SingleSource(ours, "source1")
        network = ours.logits(alone.parameters(router.batch), router.batch).softmax(-1)
        assert abs(found.probabilities[name] - network[router.batch.query.mask].numpy()).max() < 1e-6
    for baseline in baselines:
        expected = pytest.approx(found.loss(baseline.name).mean(), rel=1e-9)
        assert validation_loss(baseline, [router.batch]) == expected
    assert set(found.seconds) == {m for m, how in found.shown.items() if how.role != "rule"} - {"fallback"}
    assert all(0 < seconds < 60 for seconds in found.seconds.values())
    assert found.method("uniform soup").role == "baseline"
    assert found.method("source: source1").role == "detail"
    with pytest.raises(ValueError, match="two methods are called 'best source by support loss'"):
        evaluate(
            router.model,
            router.guide,
            OneBatch(router.batch),  # type: ignore[arg-type]
            router.features,
            episodes=4,
            baselines=[BestSource(ours)],
        )


def test_lowest_validation_loss(composed: ComposedLibrary, make_batch: Callable) -> None:
    batch = make_batch(composed)
    everything = [maker(composed, batch) for maker in MAKERS.values()]
    chosen = lowest_validation_loss(everything, [batch])
    assert validation_loss(chosen, [batch]) == min(validation_loss(b, [batch]) for b in everything)
    with pytest.raises(ValueError, match="got no candidates"):
        lowest_validation_loss([], [batch])
    with pytest.raises(ValueError, match="got no validation episodes"):
        validation_loss(SingleSource(composed), [])


def test_support_features_are_asked_for(composed: ComposedLibrary, make_batch: Callable) -> None:
    batch = make_batch(composed)
    with pytest.raises(ValueError, match=r"call SourceFeatures\(\.\.\.\)\.attach\(batch\) first"):
        BestSource(composed)(replace(batch, support=replace(batch.support, features=None)))


OPTIONS = {
    "private_source_average": {"epsilon": math.inf},  # a finite one needs an optional dependency
    "linear_probe": {"start": "best_source"},
    "lora": {"start": {"kind": "single_source", "source": "source1"}, "steps": 2},
    "sparse_residual": {"start": "best_source", "nonzeros": 3, "steps": 2},
    "support_oracle": {"nonzeros": 3, "rounds": 1},
}


@pytest.mark.parametrize("name", names("baseline"))
def test_every_baseline_can_be_named(name: str, composed: ComposedLibrary, make_batch: Callable) -> None:
    batch = make_batch(composed)
    supplied = {"composed": composed, "validation": [batch], "source_of_route": (1, -1)}
    supplied["subspaces"] = subspaces_of(composed)
    made = build(choose("baseline", {"kind": name, **OPTIONS.get(name, {})}), supplied)
    assert isinstance(made, Baseline)
    assert made(batch).shape == (*batch.query.labels.shape, batch.max_way)


def test_what_cannot_be_made_is_refused(composed: ComposedLibrary) -> None:
    with pytest.raises(ValueError, match="asks for 'validation', which cannot be had here; there is composed"):
        build(choose("baseline", "greedy_soup"), {"composed": composed})
    with pytest.raises(ValueError, match="no baseline 'source_avrage'; did you mean 'source_average'"):
        choose("baseline", "source_avrage")
    with pytest.raises(ValueError, match="LoRA of the best source starts from the network of another baseline"):
        build(choose("baseline", {"kind": "lora", "start": "source_average"}), {"composed": composed})
