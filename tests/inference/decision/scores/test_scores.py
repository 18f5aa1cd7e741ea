"""Uncertainty scores by other routes, and that nothing is computed which is not asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tiny_run import tiny_config, tiny_pool, tiny_router

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.guides import RoutingPosterior
from pyro_smat.inference.decision.routed_batch import RoutedBatch
from pyro_smat.inference.decision.rules import DecisionRule, PosteriorPredictive
from pyro_smat.inference.decision.scores import (
    ArgmaxEntropy,
    ComposedSupportLoss,
    Disagreement,
    Entropy,
    KLToPrior,
    LeastConfidence,
    PredictiveEntropy,
    SupportLoss,
    UncertaintyScore,
    Variance,
)
from pyro_smat.inference.decision.scores.standard import candidates, score_names
from pyro_smat.inference.objective.candidates import support_candidate_losses
from pyro_smat.models import RoutedModel


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tiny_batch(*overrides: str, count: int = 4) -> tuple[RoutedModel, RoutingPosterior, EpisodeBatch]:
    config = tiny_config(overrides)
    router = tiny_router(config)
    router.model.eval()
    router.guide.eval()
    pool = tiny_pool()
    batch = router.features(pool).attach(config.episodes.sampler(pool, seed=3).sample(count))
    return router.model, router.guide.posterior(batch), batch


@pytest.mark.parametrize("overrides", [(), ("guide.kind=catalog",), ("experts.count=0",)])
def test_scores_of_the_support_by_other_routes(overrides: tuple[str, ...]) -> None:
    model, posterior, batch = tiny_batch(*overrides)
    basis = model.basis().detach()
    routed = RoutedBatch(model, posterior, batch, basis, generator=seeded(5))
    found = {score.name: routed.score(score) for score in candidates(queries=False)}
    assert all(values.shape == (4,) and torch.isfinite(values).all() for values in found.values())
    q = posterior.routing_probabilities().double()
    torch.testing.assert_close(found["least_confidence"], 1 - q.max(-1).values, atol=1e-6, rtol=0)
    torch.testing.assert_close(found["entropy"], -(q * q.log()).sum(-1), atol=1e-5, rtol=1e-5)
    one_by_one = [
        support_candidate_losses(model, batch[i : i + 1], posterior.mean[i : i + 1], basis=basis)[0, 0]
        for i in range(4)
    ]
    torch.testing.assert_close(found["composed_support_loss"], torch.stack(one_by_one), rtol=1e-4, atol=1e-5)
    alone = support_candidate_losses(model, batch, torch.eye(basis.shape[0])[:3], basis=basis)
    assert model.scale.item() == pytest.approx(10)  # as that of the sources
    torch.testing.assert_close(found["support_loss"], alone.amin(0), rtol=1e-3, atol=1e-4)
    drawn = posterior.sample(64, seeded(1)).detach()
    kinds = RoutedBatch(model, posterior, batch, basis, generator=seeded(1)).score(ArgmaxEntropy())
    spread = RoutedBatch(model, posterior, batch, basis, generator=seeded(1)).score(Variance())
    for i in range(4):
        cells = [(int(c[:3].argmax()), int(c[3:].argmax()) if len(c) > 3 else 0) for c in drawn[:, i]]
        shares = np.array(list(Counter(cells).values())) / 64
        assert kinds[i].item() == pytest.approx(-(shares * np.log(shares)).sum(), abs=1e-5)
        assert spread[i].item() == pytest.approx(drawn[:, i].numpy().var(0, ddof=1).sum(), rel=1e-4)
    # Monte Carlo inside does not disturb the global generator.
    torch.manual_seed(0)
    before = torch.rand(1)
    torch.manual_seed(0)
    RoutedBatch(model, posterior, batch, basis, generator=seeded(5)).score(KLToPrior())
    assert torch.equal(torch.rand(1), before)


def test_the_composed_support_loss_averages_over_samples_of_the_gates() -> None:
    model, posterior, batch = tiny_batch(count=2)
    bases = model.basis(3, seeded(0)).detach()

    def loss(basis: torch.Tensor) -> torch.Tensor:
        return RoutedBatch(model, posterior, batch, basis, generator=seeded(0)).score(ComposedSupportLoss())

    torch.testing.assert_close(loss(bases), torch.stack([loss(rows) for rows in bases]).mean(0))


def test_scores_of_queries_query_by_query() -> None:
    model, posterior, batch = tiny_batch(count=2)
    generator = seeded(0)
    members = torch.rand(3, 2, 4, 5, generator=generator, dtype=torch.float64).softmax(-1)
    weights = torch.rand(3, 2, generator=generator, dtype=torch.float64).softmax(0)
    mask = torch.tensor([[True, True, True, False], [True, False, True, True]])
    object.__setattr__(batch.query, "mask", mask)
    asked: list[DecisionRule] = []

    def run(rule: DecisionRule) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append(rule)
        return weights, members

    routed = RoutedBatch(
        model,
        posterior,
        batch,
        model.basis(),
        generator=generator,
        predictive=PosteriorPredictive(16),
        members=run,
    )
    entropy, disagreement = routed.score(PredictiveEntropy()), routed.score(Disagreement())
    assert asked == [PosteriorPredictive(16)]  # the deployed one, run once for both
    for b in range(2):
        entropies, gaps = [], []
        for q in range(4):
            if not mask[b, q]:
                continue
            mixture = sum(float(weights[k, b]) * members[k, b, q].numpy() for k in range(3))
            entropies.append(-(mixture * np.log(mixture)).sum())
            gaps.append(
                sum(
                    float(weights[k, b]) * (p * np.log(p / mixture)).sum()
                    for k in range(3)
                    for p in [members[k, b, q].numpy()]
                )
            )
        assert entropy[b].item() == pytest.approx(np.mean(entropies))
        assert disagreement[b].item() == pytest.approx(np.mean(gaps))
    routed.score(PredictiveEntropy(num_samples=5))
    assert asked[-1] == PosteriorPredictive(5)


LAZY: list[UncertaintyScore] = [LeastConfidence(), Entropy(), KLToPrior(), Variance(), ArgmaxEntropy(), SupportLoss()]


@pytest.mark.parametrize("score", LAZY, ids=lambda score: score.name)
def test_scores_that_run_no_network(score: UncertaintyScore, monkeypatch: pytest.MonkeyPatch) -> None:
    model, posterior, batch = tiny_batch()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a network was run")

    monkeypatch.setattr(type(model.network), "__call__", refuse)
    monkeypatch.setattr(model.network, "shared", refuse)
    routed = RoutedBatch(model, posterior, batch, model.basis(), generator=seeded(0))
    assert routed.score(score).shape == (4,)
    assert ("support_loss" in vars(routed)) == isinstance(score, SupportLoss)
    with pytest.raises(AssertionError, match="a network was run"):
        routed.score(ComposedSupportLoss())


def test_networks_that_rules_share_are_run_once(make_router: Callable) -> None:
    """In a catalog the draws of two rules are routings of the same few: each task runs its own, once."""
    router = make_router("catalog")
    router.model.eval()
    posterior, seen = router.guide.posterior(router.batch), []
    rules = [PosteriorPredictive(1000), PosteriorPredictive(5)]
    logits = router.model.logits

    def counted(coefficients: torch.Tensor, *arguments: object) -> torch.Tensor:
        seen.append(len(coefficients))
        return logits(coefficients, *arguments)

    object.__setattr__(router.model, "logits", counted)
    routed = RoutedBatch(router.model, posterior, router.batch, router.model.basis(), generator=seeded(0))
    routed.run(rules)
    mixtures = [rule(posterior, router.batch, generator=seeded(0)).coefficients for rule in rules]
    drawn = torch.cat([mixtures[0], mixtures[1]]).unbind(1)
    different = [len(rows.unique(dim=0)) for rows in drawn]
    assert seen == [sum(different)]
    assert min(different) < max(different) <= len(posterior.coefficients)
    apart = RoutedBatch(router.model, posterior, router.batch, router.model.basis(), generator=seeded(0))
    for rule in rules:
        torch.testing.assert_close(apart.probabilities(rule), routed.probabilities(rule))


def test_names_and_options() -> None:
    assert len(score_names()) >= 9
    assert not any(name in score_names() for name in ("auto", "learned"))
    assert {s.name for s in candidates(queries=True)} - {s.name for s in candidates(queries=False)} == {
        "predictive_entropy",
        "disagreement",
    }
    assert KLToPrior().title == "KL to the prior"
    assert ArgmaxEntropy().title == "argmax entropy"
    for bad in (lambda: Variance(1), lambda: ArgmaxEntropy(0), lambda: Disagreement(0), lambda: PredictiveEntropy(0)):
        with pytest.raises(ValueError, match="num_samples is"):
            bad()
