"""What all baselines have in common: probabilities, blindness to the names of classes, and a place in evaluate()."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.inference.evaluation.baselines import (
    Baseline,
    BestSource,
    ComposedLibrary,
    Fallback,
    HindsightMixture,
    HindsightSource,
    LinearProbe,
    LoRA,
    Mixture,
    SparseResidual,
    SupportOracle,
    TaskArithmetic,
    greedy_soup,
    lowest_validation_loss,
    uniform_soup,
    validation_loss,
)
from pyro_smat.inference.evaluation.evaluation import BEST_BY_SUPPORT, UNIFORM, evaluate

MAKERS: dict[str, Callable[[ComposedLibrary, EpisodeBatch], Baseline]] = {
    "fallback": lambda c, v: Fallback(c),
    "best source": lambda c, v: BestSource(c),
    "uniform soup": lambda c, v: uniform_soup(c),
    "greedy soup": lambda c, v: greedy_soup(c, [v]),
    "task arithmetic": lambda c, v: TaskArithmetic(c, 0.3),
    "mixture": lambda c, v: Mixture(c, steps=4),
    "fallback + residual": lambda c, v: SparseResidual(Fallback(c), 4, steps=4),
    "best source + residual": lambda c, v: SparseResidual(BestSource(c), 4, steps=4, ridge=0.1),
    "LoRA": lambda c, v: LoRA(BestSource(c), rank=2, steps=3),
    "linear probe": lambda c, v: LinearProbe(BestSource(c)),
    "support oracle": lambda c, v: SupportOracle(c, 4, rounds=1),
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
    """evaluate() agrees with its own best source and uniform mixing, and with validation_loss."""
    router = make_router()
    scale = router.model.scale.item()
    ours = ComposedLibrary(router.network, router.library)
    routers = ComposedLibrary(router.network, router.library, scale=scale)
    baselines = {"best": BestSource(ours), "soup": uniform_soup(routers), "probe": LinearProbe(BestSource(ours))}
    found = evaluate(
        router.model,
        router.guide,
        OneBatch(router.batch),  # type: ignore[arg-type]
        router.features,
        episodes=4,
        baselines=baselines,
    )
    for name, own in (("best", BEST_BY_SUPPORT), ("soup", UNIFORM)):
        assert abs(found.probabilities[name] - found.probabilities[own]).max() < 1e-6
    for name, baseline in baselines.items():
        assert validation_loss(baseline, [router.batch]) == pytest.approx(found.loss(name).mean(), rel=1e-9)


def test_lowest_validation_loss(composed: ComposedLibrary, make_batch: Callable) -> None:
    batch = make_batch(composed)
    everything = [maker(composed, batch) for maker in MAKERS.values()]
    chosen = lowest_validation_loss(everything, [batch])
    assert validation_loss(chosen, [batch]) == min(validation_loss(b, [batch]) for b in everything)
    with pytest.raises(ValueError, match="got no candidates"):
        lowest_validation_loss([], [batch])
    with pytest.raises(ValueError, match="got no validation episodes"):
        validation_loss(Fallback(composed), [])


def test_support_features_are_asked_for(composed: ComposedLibrary, make_batch: Callable) -> None:
    batch = make_batch(composed)
    with pytest.raises(ValueError, match=r"call SourceFeatures\(\.\.\.\)\.attach\(batch\) first"):
        BestSource(composed)(replace(batch, support=replace(batch.support, features=None)))
