"""evaluate(): a router and its baselines on episodes they have not seen.

sampler -> posterior -> decision rules, uncertainty scores and baselines, batch by batch -> one :class:`Evaluation`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.episodes.stream import EpisodeStream
from pyro_smat.guides.router import RoutingGuide
from pyro_smat.inference.assembly.evaluation_settings import EvaluationSettings
from pyro_smat.inference.decision.deployment import Deployment
from pyro_smat.inference.decision.named_routings import SOURCE_0
from pyro_smat.inference.decision.prediction import as_rule
from pyro_smat.inference.decision.routed_batch import RoutedBatch
from pyro_smat.inference.decision.rules.rule import DecisionRule
from pyro_smat.inference.decision.scores.score import UncertaintyScore
from pyro_smat.inference.evaluation.abstention import FALLBACK
from pyro_smat.inference.evaluation.baselines.baseline import Baseline, ComposedLibrary
from pyro_smat.inference.evaluation.baselines.sources_alone import SingleSource
from pyro_smat.inference.evaluation.evaluation import Evaluation, Method, Role
from pyro_smat.metrics.arrays import FloatArray, IntArray
from pyro_smat.models.routed import RoutedModel
from pyro_smat.networks.features import SourceFeatures
from pyro_smat.registry import Supply, build, takes
from pyro_smat.sources import FeatureSubspace

PROBABILITY_FLOOR = 1e-12


@torch.no_grad()
def evaluate(
    model: RoutedModel,
    guide: RoutingGuide,
    sampler: EpisodeStream,
    features: SourceFeatures,
    *,
    deployment: Deployment | None = None,
    settings: EvaluationSettings | None = None,
    baselines: Sequence[Baseline] = (),
    validation: Callable[[], Sequence[EpisodeBatch]] | None = None,
    subspaces: Callable[[], Mapping[str, FeatureSubspace]] | None = None,
    episodes: int = 600,
    batch_size: int = 16,
    seed: int = 0,
    source_of_route: Sequence[int] = (),
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> Evaluation:
    """Run a router and its baselines on episodes.

    Args:
        model, guide: the router; put into evaluation mode.
        sampler: of the episodes, with its own seed.
        features: of the sampler's pool.
        deployment: the router's rule, score, fallback and samples of the experts' gates; default ``Deployment()``.
        settings: further rules, scores and baselines; default those of every report.
        baselines: further ones, already made.
        validation: makes the episodes that baselines tune on, for those that do.
        subspaces: gives those of the sources' training features, for the baseline that reads them.
        episodes: N.
        batch_size: episodes at a time.
        seed: of the rules and scores that draw.
        source_of_route: for every route, the source that knows it (-1 none); turns on oracle and misrouting.
        device: where to run.
        progress: show a bar.

    Raises:
        ValueError: for methods of the same name, or a baseline that asks for what is not there.

    Example:
        >>> from pyro_smat import EpisodeSampler, glyph_pool
        >>> from pyro_smat.inference.assembly.config import RunConfig
        >>> from pyro_smat.inference.assembly.router import build_router
        >>> router = build_router(RunConfig(experts={"count": 0}))  # over the glyph sources of the package, not trained
        >>> sampler = EpisodeSampler(glyph_pool("validation"), 3, 2, 1)
        >>> evaluation = evaluate(router.model, router.guide, sampler, router.features(), episodes=4)
        >>> evaluation.accuracy("best source by support loss").shape
        (4,)
    """
    model.eval()
    guide.eval()
    deployment, settings = deployment or Deployment(), settings or EvaluationSettings()
    generator = torch.Generator(device=device).manual_seed(seed)
    samples = deployment.gate_samples
    basis = model.basis(samples, generator) if samples else model.basis()
    composed = ComposedLibrary.of(model)
    rules = _rules(deployment, settings, model, guide)
    scores = _scores(deployment, settings)
    supplied: dict[str, Callable[[], Any]] = {"composed": lambda: composed, "source_of_route": lambda: source_of_route}
    supplied |= {k: v for k, v in (("validation", validation), ("subspaces", subspaces)) if v is not None}
    others = [*_baselines(settings, composed, source_of_route, Supply(**supplied)), *baselines]
    shown = _shown(deployment, rules, others, model.source_names)
    clock = _Clock()
    parts: list[_Part] = []
    with tqdm(total=episodes, desc="evaluating", unit="episode", disable=not progress, leave=False) as bar:
        for start in range(0, episodes, batch_size):
            batch = sampler.sample(min(batch_size, episodes - start)).to(device)
            features.embed_rows(torch.cat([batch.support.rows, batch.query.rows], dim=1))
            batch = features.attach(batch)
            asked = features.of(batch.query.images, batch.query.rows)
            batch = replace(batch, query=replace(batch.query, features=asked))
            routed = RoutedBatch(
                model, guide.posterior(batch), batch, basis, generator=generator, predictive=deployment.predictive
            )
            routed.run(rules.values())
            parts.append(
                _Part(
                    batch=batch,
                    probabilities={name: routed.probabilities(rule) for name, rule in rules.items()}
                    | {baseline.name: clock.timed(baseline, batch) for baseline in others},
                    scores={score.name: routed.score(score) for score in scores},
                    weights=routed.posterior.source_weights,
                    support_loss=routed.support_loss,
                    source_loss=_query_losses(composed.source_probabilities(batch), batch),
                )
            )
            bar.update(len(batch))
    titles = {score.name: score.title for score in scores}
    joined = _join(parts, source_of_route, model.source_names, shown, titles)
    return replace(joined, seconds={name: total / episodes for name, total in clock.seconds.items()})


class _Clock:
    """Seconds of every baseline so far."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def timed(self, baseline: Baseline, batch: EpisodeBatch) -> Tensor:
        composed = getattr(baseline, "composed", None)
        if isinstance(composed, ComposedLibrary):
            composed.forget()  # or the first one to ask would pay for all
        started = self._now(batch)
        probabilities = baseline(batch)
        self.seconds[baseline.name] = self.seconds.get(baseline.name, 0.0) + self._now(batch) - started
        return probabilities

    @staticmethod
    def _now(batch: EpisodeBatch) -> float:
        if batch.query.labels.is_cuda:
            torch.cuda.synchronize(batch.query.labels.device)
        return time.perf_counter()


@dataclass(frozen=True)
class _Part:
    batch: EpisodeBatch
    probabilities: dict[str, Tensor]  # method -> (B, Q, W)
    scores: dict[str, Tensor]  # (B,)
    weights: Tensor  # (B, R), as both losses
    support_loss: Tensor
    source_loss: Tensor


def _rules(
    deployment: Deployment, settings: EvaluationSettings, model: RoutedModel, guide: RoutingGuide
) -> dict[str, DecisionRule]:
    """Name -> rule; the deployed one, with its options, in the place of another of its kind."""
    catalog = getattr(guide, "catalog", None)
    own = deployment.decider(model, catalog)
    made = [as_rule(choice, model, catalog) for choice in settings.rules]
    rules = {own.name: own} if own.name not in {rule.name for rule in made} else {}
    rules |= {rule.name: own if rule.name == own.name else rule for rule in made}
    return rules | {FALLBACK: deployment.fallback_rule(model, catalog)}


def _scores(deployment: Deployment, settings: EvaluationSettings) -> list[UncertaintyScore]:
    """The settings' scores, and those that the deployment reads, with its options."""
    made: dict[str, UncertaintyScore] = {score.name: score for score in map(build, settings.scores)}
    made |= {score.name: score for score in deployment.reads if score.name != "learned"}
    made |= {deployment.scorer.name: deployment.scorer}
    return list(made.values())


def _baselines(
    settings: EvaluationSettings,
    composed: ComposedLibrary,
    source_of_route: Sequence[int],
    supplied: Supply,
) -> list[Baseline]:
    known = [c for c in settings.baselines if source_of_route or not takes(c, "source_of_route")]
    made: list[Baseline] = [build(choice, supplied) for choice in known]
    if settings.each_source:
        made += [SingleSource(composed, name) for name in composed.library.names]
    return made


def _shown(
    deployment: Deployment, rules: Mapping[str, DecisionRule], baselines: Sequence[Baseline], sources: Sequence[str]
) -> dict[str, Method]:
    at_source_0 = deployment.fallback == SOURCE_0
    fallback = f"{sources[0]} (source 0)" if at_source_0 else f"fallback ({deployment.fallback})"
    shown = {name: Method(rule.title, "rule") for name, rule in rules.items()} | {FALLBACK: Method(fallback)}
    for baseline in baselines:
        if baseline.name in shown:
            raise ValueError(f"two methods are called {baseline.name!r}; give the baseline another name")
        role: Role = "reference" if baseline.is_reference else "baseline" if baseline.in_report else "detail"
        shown[baseline.name] = Method(baseline.name, role)
    return shown


def _query_losses(probabilities: Tensor, batch: EpisodeBatch) -> Tensor:
    """Mean negative log-likelihood ``(B, R)`` of the queries, from probabilities ``(B, R, Q, W)``."""
    labels = batch.query.labels[:, None, :, None].expand(*probabilities.shape[:-1], 1)
    losses = -probabilities.clamp(min=PROBABILITY_FLOOR).log().gather(-1, labels).squeeze(-1)
    mask = batch.query.mask.float()
    return (losses * mask.unsqueeze(1)).sum(-1) / mask.sum(-1, keepdim=True)


def _join(
    parts: Sequence[_Part],
    source_of_route: Sequence[int],
    source_names: tuple[str, ...],
    shown: Mapping[str, Method],
    titles: Mapping[str, str],
) -> Evaluation:
    widest = max(part.batch.max_way for part in parts)

    def numbers(values: Sequence[Tensor]) -> FloatArray:
        return torch.cat(list(values)).cpu().double().numpy()

    def integers(values: Sequence[Tensor]) -> IntArray:
        return torch.cat(list(values)).cpu().numpy()

    def real(part: _Part, method: str) -> Tensor:
        return F.pad(part.probabilities[method], (0, widest - part.batch.max_way))[part.batch.query.mask]

    probabilities = {method: numbers([real(part, method) for part in parts]) for method in parts[0].probabilities}
    counts = np.concatenate([part.batch.query.mask.sum(-1).cpu().numpy() for part in parts])
    return Evaluation(
        probabilities=probabilities,
        labels=integers([part.batch.query.labels[part.batch.query.mask] for part in parts]),
        episode=np.repeat(np.arange(len(counts)), counts),
        scores={name: numbers([part.scores[name] for part in parts]) for name in parts[0].scores},
        weights=numbers([part.weights for part in parts]),
        support_loss=numbers([part.support_loss for part in parts]),
        source_loss=numbers([part.source_loss for part in parts]),
        route=integers([part.batch.route for part in parts]),
        source_of_route=tuple(source_of_route),
        corrupted_labels=integers([part.batch.corrupted_labels for part in parts]),
        confounded_with=integers([part.batch.confounded_with for part in parts]),
        way=integers([part.batch.way for part in parts]),
        shots=integers([part.batch.support.mask.sum(-1) for part in parts]),
        source_names=source_names,
        shown=shown,
        score_titles=titles,
    )
