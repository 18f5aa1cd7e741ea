"""Evaluation: a router and its baselines on episodes it has not seen, episode by episode.

sampler -> posterior -> decision rules and baselines -> one row an episode -> the numbers that a report prints.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.episodes.sampler import EpisodeSampler
from pyro_smat.guides.router import RoutingGuide
from pyro_smat.inference.decision.rules import RULES, Rule, class_probabilities, routings
from pyro_smat.inference.decision.scores import query_scores, support_scores
from pyro_smat.inference.objective.reference import source_logits, support_losses
from pyro_smat.metrics import brier_score, expected_calibration_error, negative_log_likelihood
from pyro_smat.metrics.intervals import Interval, episode_interval, episode_quantile
from pyro_smat.metrics.risk import cvar
from pyro_smat.models.routed import RoutedModel
from pyro_smat.networks.features import SourceFeatures

if TYPE_CHECKING:
    from pyro_smat.inference.decision.abstention import AbstentionRule

FloatArray = npt.NDArray[np.float64]
BEST_BY_SUPPORT = "best source by support loss"
ORACLE = "oracle source"
UNIFORM = "uniform mixing"
EpisodeMeasure = Literal["error", "brier", "nll"]
NLL_CLIP = math.log(1e3)  # nats

Baseline = Callable[[EpisodeBatch], Tensor]


@dataclass(frozen=True)
class Evaluation:
    """What happened on N episodes.

    Attributes:
        probabilities: method -> ``(n, W)`` class probabilities of all n queries of all episodes.
        labels: ``(n,)``.
        episode: ``(n,)``, the episode of every query, 0..N-1.
        scores: uncertainty score -> ``(N,)``.
        weights: ``(N, R)`` posterior mean of the source weights.
        support_loss: ``(N, R)`` leave-one-out support loss of the sources, in nats.
        source_loss: ``(N, R)`` query loss of the sources, in nats per query.
        route: ``(N,)`` true route, -1 unknown; source_of_route: the source that knows a route, -1 for none.
        corrupted_labels, confounded_with, way, shots: ``(N,)``.
    """

    probabilities: Mapping[str, FloatArray]
    labels: npt.NDArray[np.int64]
    episode: npt.NDArray[np.int64]
    scores: Mapping[str, FloatArray]
    weights: FloatArray
    support_loss: FloatArray
    source_loss: FloatArray
    route: npt.NDArray[np.int64]
    source_of_route: Sequence[int]
    corrupted_labels: npt.NDArray[np.int64]
    confounded_with: npt.NDArray[np.int64]
    way: npt.NDArray[np.int64]
    shots: npt.NDArray[np.int64]
    source_names: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.route)

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(self.probabilities)

    def accuracy(self, method: str) -> FloatArray:
        """``(N,)`` share of queries that are right."""
        return self._per_episode((self.probabilities[method].argmax(1) == self.labels).astype(np.float64))

    def loss(self, method: str) -> FloatArray:
        """``(N,)`` mean negative log-likelihood of the queries, in nats (probabilities clipped at 1e-12)."""
        chosen = self.probabilities[method][np.arange(len(self.labels)), self.labels]
        return self._per_episode(-np.log(np.clip(chosen, 1e-12, None)))

    def regret(self, method: str) -> FloatArray:
        """``(N,)`` loss minus that of the best single source in hindsight, in nats per query."""
        return self.loss(method) - self.source_loss.min(1)

    @cached_property
    def known_source(self) -> npt.NDArray[np.int64]:
        """``(N,)`` the source that knows the true route, -1 where there is none."""
        if not self.source_of_route:
            return np.full(len(self), -1)
        table = np.array([*self.source_of_route, -1])  # route -1 picks the last
        return table[self.route]

    def misrouting_rate(self) -> float:
        """Share of episodes whose largest mean weight is not on the source that knows the route; NaN where unknown."""
        known = self.known_source >= 0
        return float((self.weights.argmax(1) != self.known_source)[known].mean()) if known.any() else float("nan")

    def bounded_loss(self, method: str, measure: EpisodeMeasure = "error", clip: float = NLL_CLIP) -> FloatArray:
        """``(N,)`` a loss in [0, 1], as certificates need it.

        Args:
            method: one of :attr:`methods`.
            measure: "error", the share of queries that are wrong; "brier", half of the multiclass Brier score; "nll",
                the mean of min(negative log-likelihood, clip) / clip.
            clip: in nats; to be fixed before the losses are seen.

        Raises:
            ValueError: for another measure, or a clip that is not > 0.
        """
        p, rows = self.probabilities[method], np.arange(len(self.labels))
        if measure == "error":
            values = (p.argmax(1) != self.labels).astype(np.float64)
        elif measure == "brier":
            values = 0.5 * np.square(p - np.eye(p.shape[1])[self.labels]).sum(1)
        elif measure == "nll":
            if not 0 < clip < math.inf:
                raise ValueError(f"clip is {clip!r}; expected a number of nats > 0")
            values = np.minimum(-np.log(np.clip(p[rows, self.labels], 1e-300, None)), clip) / clip
        else:
            raise ValueError(f"loss is {measure!r}; expected 'error', 'brier' or 'nll'")
        return np.clip(self._per_episode(values), 0.0, 1.0)  # a sum of probabilities may round above 1

    def with_abstention(self, method: str, rule: AbstentionRule, fallback: str = "fallback") -> AbstentionOutcome:
        """What happens when episodes of which the rule is not sure use the fallback."""
        abstained = rule.uncertainty(self.scores) > rule.threshold
        ours, theirs = self.loss(method), self.loss(fallback)
        right = np.where(abstained, self.accuracy(fallback), self.accuracy(method))

        def mean(values: FloatArray) -> float:
            return float(values.mean()) if len(values) else float("nan")

        nothing = Interval(math.nan, math.nan, math.nan)
        gain = episode_interval((ours - theirs)[abstained]) if abstained.any() else nothing
        return AbstentionOutcome(
            coverage=float(1 - abstained.mean()),
            accepted_loss=mean(ours[~abstained]),
            accepted_accuracy=mean(self.accuracy(method)[~abstained]),
            abstained_loss=mean(ours[abstained]),
            fallback_loss=mean(theirs[abstained]),
            fallback_loss_of_all=mean(theirs),
            gain=gain.value,
            gain_low=gain.low,
            gain_high=gain.high,
            system_loss=float(np.where(abstained, theirs, ours).mean()),
            system_accuracy=float(right.mean()),
        )

    def summary(self, method: str) -> dict[str, float]:
        """Accuracy with its 95% interval, tail and quantiles of the episode loss, NLL, Brier, ECE, regret."""
        accuracy, loss, regret = self.accuracy(method), self.loss(method), self.regret(method)
        interval = episode_interval(accuracy)
        tails = {f"cvar_{rho}": cvar(torch.from_numpy(loss), rho).item() for rho in (0.05, 0.1, 0.2)}
        return {
            "accuracy": interval.value,
            "accuracy_low": interval.low,
            "accuracy_high": interval.high,
            "nll": negative_log_likelihood(self.probabilities[method], self.labels),
            "brier": brier_score(self.probabilities[method], self.labels),
            "ece": expected_calibration_error(self.probabilities[method], self.labels),
            **tails,
            "loss_q90": episode_quantile(loss, 0.90),
            "loss_q95": episode_quantile(loss, 0.95),
            "regret": float(regret.mean()),
            "regret_cvar_0.1": cvar(torch.from_numpy(regret), 0.1).item(),
        }

    def table(self) -> pd.DataFrame:
        """One row an episode: losses and accuracies of every method, scores, routes, weights."""
        columns: dict[str, npt.ArrayLike] = {
            "episode": np.arange(len(self)),
            "way": self.way,
            "shots": self.shots,
            "route": self.route,
            "known_source": self.known_source,
            "corrupted_labels": self.corrupted_labels,
            "confounded_with": self.confounded_with,
        }
        for method in self.methods:
            columns[f"accuracy/{method}"] = self.accuracy(method)
            columns[f"loss/{method}"] = self.loss(method)
        columns |= {f"score/{name}": values for name, values in self.scores.items()}
        for index, name in enumerate(self.source_names):
            columns[f"weight/{name}"] = self.weights[:, index]
        return pd.DataFrame(columns)

    def _per_episode(self, values: FloatArray) -> FloatArray:
        total = np.bincount(self.episode, weights=values, minlength=len(self))
        return total / np.bincount(self.episode, minlength=len(self))


@dataclass(frozen=True)
class AbstentionOutcome:
    r"""The accounting of abstention: accepted and abstained episodes apart, and the paired difference.

    .. math:: E[L] = P(U \le \eta)\, E[L_{post} \mid U \le \eta] + P(U > \eta)\, E[L_{fallback} \mid U > \eta]

    An identity, no guarantee; its last term is the *conditional* loss of the fallback. What is hard for the router is
    often hard for the fallback too, and its loss over all episodes in this place would promise too much.

    Attributes:
        coverage: share of episodes that are not abstained on.
        accepted_loss, accepted_accuracy: of the routed prediction on accepted episodes.
        abstained_loss: what the routed prediction would have lost on abstained episodes.
        fallback_loss: of the fallback on abstained episodes.
        fallback_loss_of_all: of the fallback on all episodes; no part of the identity.
        gain: mean of (routed loss - fallback loss) on abstained episodes; abstaining helps when it is positive.
        gain_low, gain_high: its 95% interval (Student, paired).
        system_loss, system_accuracy: of the whole, routed or fallen back.
    """

    coverage: float
    accepted_loss: float
    accepted_accuracy: float
    abstained_loss: float
    fallback_loss: float
    fallback_loss_of_all: float
    gain: float
    gain_low: float
    gain_high: float
    system_loss: float
    system_accuracy: float


@torch.no_grad()
def evaluate(
    model: RoutedModel,
    guide: RoutingGuide,
    sampler: EpisodeSampler,
    features: SourceFeatures,
    *,
    episodes: int = 600,
    batch_size: int = 16,
    rules: Sequence[Rule] = RULES,
    draws: int = 8,
    k: int = 2,
    masks: int = 0,
    seed: int = 0,
    source_of_route: Sequence[int] = (),
    baselines: Mapping[str, Baseline] | None = None,
    fallback: Tensor | None = None,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> Evaluation:
    """Run a router and its baselines on episodes.

    Args:
        model, guide: the router; put into evaluation mode.
        sampler: of the episodes, with its own seed.
        features: of the sampler's pool.
        episodes: N.
        batch_size: episodes at a time.
        rules: decision rules to apply; "ensemble" is always among them (its draws give the scores).
        draws, k: see :func:`~pyro_smat.inference.decision.rules.predict`.
        masks: predictions are averaged over so many samples of the experts' gates; 0 takes the deployed masks.
        seed: of the random rules.
        source_of_route: for every route, the source that knows it (-1 none); turns on oracle and misrouting.
        baselines: further methods: functions from a batch with features to probabilities ``(B, Q, W)``.
        fallback: coefficients ``([L,] C)`` of rule "fallback"; default source 0.
    """
    model.eval()
    guide.eval()
    generator = torch.Generator(device=device).manual_seed(seed)
    basis = model.basis(masks, generator) if masks else model.basis()
    rules = tuple(dict.fromkeys((*rules, "ensemble")))
    parts: list[_Part] = []
    bar = tqdm(total=episodes, desc="evaluating", unit="episode", disable=not progress, leave=False)
    with bar:
        for start in range(0, episodes, batch_size):
            batch = features.attach(sampler.sample(min(batch_size, episodes - start)).to(device))
            parts.append(
                _evaluate_batch(
                    model,
                    guide,
                    batch,
                    features,
                    basis,
                    rules,
                    draws,
                    k,
                    generator,
                    source_of_route,
                    baselines,
                    fallback,
                )
            )
            bar.update(len(batch))
    return _join(parts, source_of_route, model.source_names)


@dataclass(frozen=True)
class _Part:
    probabilities: dict[str, Tensor]  # method -> (B, Q, W)
    batch: EpisodeBatch
    scores: dict[str, Tensor]
    weights: Tensor
    support_loss: Tensor
    source_loss: Tensor


def _evaluate_batch(
    model: RoutedModel,
    guide: RoutingGuide,
    batch: EpisodeBatch,
    features: SourceFeatures,
    basis: Tensor,
    rules: Sequence[Rule],
    draws: int,
    k: int,
    generator: torch.Generator,
    source_of_route: Sequence[int],
    baselines: Mapping[str, Baseline] | None,
    fallback: Tensor | None,
) -> _Part:
    posterior = guide.posterior(batch)
    sources = posterior.num_sources
    chosen: dict[str, tuple[Tensor, Tensor]] = {
        rule: routings(posterior, rule, draws, k, generator, fallback) for rule in rules
    }
    uniform = torch.zeros_like(posterior.mean).unsqueeze(0)
    uniform[..., :sources] = 1.0 / sources
    chosen[UNIFORM] = uniform, uniform.new_ones(uniform.shape[:2])

    # Every rule in one forward: the routings of all rules are particles of one composed batch.
    coefficients = torch.cat([c for c, _ in chosen.values()])
    drawn = class_probabilities(model, coefficients, batch, basis)
    by_rule = dict(zip(chosen, drawn.split([len(c) for c, _ in chosen.values()]), strict=True))
    probabilities: dict[str, Tensor] = {
        rule: (chosen[rule][1][..., None, None] * by_rule[rule]).sum(0) for rule in chosen
    }

    alone = source_logits(features, batch, metric=model.metric).softmax(-1)  # (B, R, Q, W)
    support_loss = support_losses(batch, model.metric)
    rows = torch.arange(len(batch), device=alone.device)
    probabilities[BEST_BY_SUPPORT] = alone[rows, support_loss.argmin(1)]
    if source_of_route:
        known = torch.tensor([*source_of_route, -1], device=alone.device)[batch.route]
        probabilities[ORACLE] = alone[rows, known.clamp(min=0)]
    for index, name in enumerate(model.source_names):
        probabilities[f"source: {name}"] = alone[:, index]
    for name, baseline in (baselines or {}).items():
        probabilities[name] = baseline(batch)

    mask = batch.query.mask.float()
    scores = support_scores(model, posterior, batch, basis, generator)
    scores |= query_scores(by_rule["ensemble"], chosen["ensemble"][1], batch.query.mask)
    own = batch.query.labels[:, None, :, None].expand(*alone.shape[:-1], 1)
    losses = -alone.clamp(min=1e-12).log().gather(-1, own).squeeze(-1)
    source_loss = (losses * mask.unsqueeze(1)).sum(-1) / mask.sum(-1, keepdim=True)
    return _Part(probabilities, batch, scores, posterior.source_weights, support_loss, source_loss)


def _join(parts: Sequence[_Part], source_of_route: Sequence[int], source_names: tuple[str, ...]) -> Evaluation:
    widest = max(part.batch.max_way for part in parts)

    def numbers(values: Sequence[Tensor]) -> FloatArray:
        return torch.cat(list(values)).double().cpu().numpy()

    def integers(values: Sequence[Tensor]) -> npt.NDArray[np.int64]:
        return torch.cat(list(values)).cpu().numpy()

    probabilities = {
        method: numbers(
            [
                torch.nn.functional.pad(part.probabilities[method], (0, widest - part.batch.max_way))[
                    part.batch.query.mask
                ]
                for part in parts
            ]
        )
        for method in parts[0].probabilities
    }
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
    )
