"""AdaptedTask: one support set, routed and perhaps refined; it predicts, doubts and explains itself.

Made by :meth:`RoutedClassifier.adapt`: posterior and refinement -> decision rule -> task networks -> probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyro_smat.certificates.certificate import accepted_tasks
from pyro_smat.episodes import EpisodeBatch, Labelled
from pyro_smat.float64 import in_float64
from pyro_smat.guides import CatalogPosterior
from pyro_smat.guides.posterior import RoutingPosterior
from pyro_smat.inference.assembly.defaults import own_defaults
from pyro_smat.inference.decision.deployment import Deployment
from pyro_smat.inference.decision.misrouting import top_route_doubt
from pyro_smat.inference.decision.prediction import as_rule
from pyro_smat.inference.decision.routed_batch import RoutedBatch
from pyro_smat.inference.decision.rules import DecisionRule
from pyro_smat.inference.decision.scores.score import UncertaintyScore
from pyro_smat.inference.deployment.explanation import Component, Explanation
from pyro_smat.inference.deployment.inputs import read_images
from pyro_smat.inference.deployment.monitoring import routing_scores
from pyro_smat.inference.deployment.refinement import Refinement
from pyro_smat.inference.deployment.suggestion import RoutingView, Suggestion, reasons_of, suggestion_of
from pyro_smat.inference.deployment.task_networks import REFINED, TaskNetworks
from pyro_smat.networks.heads import leave_one_out_logits
from pyro_smat.networks.initial_weights import DrawsFrom
from pyro_smat.networks.network_features import NetworkFeatures

if TYPE_CHECKING:
    from pyro_smat.inference.deployment.classifier import RoutedClassifier

TaskRule = DecisionRule | Mapping[str, Any] | str  # a rule or what names one; "refined" is the refined point


class AdaptedTask:
    """One routed task; any number of threads may ask it at once, with the answers of one thread.

    Attributes:
        posterior: q(c | S), batch size 1: the router's, or that of a refinement that has one.
        classes: as they were given to ``adapt``, in the order of the columns of :meth:`predict_proba`.
        refinement: what the refinement found, or None.
    """

    def __init__(
        self,
        owner: RoutedClassifier,
        batch: EpisodeBatch,
        posterior: RoutingPosterior,
        classes: tuple[Hashable, ...],
        seed: int,
        refinement: Refinement | None = None,
        shared: NetworkFeatures | None = None,
    ) -> None:
        self._owner, self._batch, self._seed = owner, batch, seed
        self._routed, self.classes, self.refinement = posterior, classes, refinement
        refined = None if refinement is None else refinement.posterior
        self.posterior = posterior if refined is None else refined
        self._networks = TaskNetworks(owner, batch, posterior, seed=seed, refinement=refinement, shared=shared)
        self._support_values: dict[UncertaintyScore, float] = {}

    @property
    def uncertainty(self) -> float:
        """U(S), by the score of falling back; NaN when that looks at queries: :meth:`uncertainty_on`."""
        return math.nan if self._deployment.looks_at_queries else self.uncertainty_on(None)

    @property
    def falls_back(self) -> bool:
        """Whether predictions come from the fallback, which is so only where validation said that it pays.

        False when the score looks at queries: every batch of them is then decided on by itself, :meth:`falls_back_on`.
        """
        return not self._deployment.looks_at_queries and self.falls_back_on(None)

    @property
    def risk(self) -> float:
        """What the deployed risk says of this task: the learned one, the share of its answers that will be wrong.

        NaN for a deployment without a risk, or when that looks at queries: :meth:`risk_on`.
        """
        reliability = self._deployment.reliability
        return math.nan if reliability is None or reliability.predictor.looks_at_queries else self.risk_on(None)

    @property
    def reliable(self) -> bool:
        """Whether no more risk than the tolerance is predicted; without a risk: whether it does not fall back.

        True when the risk looks at queries: every batch of them is then decided on by itself, :meth:`reliable_on`.
        """
        reliability = self._deployment.reliability
        if reliability is None:
            return not self.falls_back
        return reliability.predictor.looks_at_queries or self.reliable_on(None)

    @property
    def abstains(self) -> bool:
        """Whether the task is not :attr:`reliable`: predictions are there, but should not be relied on."""
        return not self.reliable

    def uncertainty_on(self, images: Any) -> float:
        """U of this task with these queries ``(n, C, H, W)``, by the score that falling back is decided on.

        Of the router's own posterior, for which the threshold was chosen, also where the task is refined.

        Raises:
            ValueError: for images that are not usable, or None where the score looks at queries.
        """
        return self._value(self._deployment.scorer, images)

    def falls_back_on(self, images: Any) -> bool:
        """Whether predictions of these queries come from the fallback; arguments as in :meth:`uncertainty_on`."""
        deployment = self._deployment
        return not (deployment.never_falls_back or _accepted(self.uncertainty_on(images), deployment.threshold))

    def risk_on(self, images: Any) -> float:
        """The risk of this task with these queries ``(n, C, H, W)``; NaN for a deployment without one.

        Raises:
            ValueError: as :meth:`uncertainty_on`.
        """
        reliability = self._deployment.reliability
        return math.nan if reliability is None else self._value(reliability.predictor, images)

    def reliable_on(self, images: Any) -> bool:
        """Whether answers to these queries can be relied on; arguments as in :meth:`uncertainty_on`."""
        reliability = self._deployment.reliability
        if reliability is None:
            return not self.falls_back_on(images)
        return reliability.tolerance == math.inf or _accepted(self.risk_on(images), reliability.tolerance)

    def abstains_on(self, images: Any) -> bool:
        """Whether answers to these queries should not be relied on."""
        return not self.reliable_on(images)

    @own_defaults()
    def _value(self, score: UncertaintyScore, images: Any) -> float:
        """A score of this task; one of the support alone is computed once."""
        if not score.looks_at_queries:
            if score not in self._support_values:  # threads that ask at once find the same number
                self._support_values[score] = float(self._scored(None).score(score)[0])
            return self._support_values[score]
        if images is None:
            raise ValueError(f"score {score.name!r} looks at queries; expected the images that are to be classified")
        return float(self._scored(self._queries(images)).score(score)[0])

    @property
    def misrouting(self) -> float:
        """Probability that the route which the router trusts most is the wrong one; NaN where that is unknown.

        The posterior's own, calibrated on validation episodes where true routes were known; not calibrated, it is
        stated for a posterior over a list of routings alone.
        """
        calibration, doubt = self._deployment.misrouting, top_route_doubt(self._routed).clamp(0, 1).cpu().numpy()
        if calibration is not None:
            return float(calibration.probability(doubt)[0])
        return float(doubt[0]) if isinstance(self._routed, CatalogPosterior) else math.nan

    @property
    def rule(self) -> str:
        """What predictions use: the fallback when the task falls back, "refined" at a refined point, or the rule."""
        used = self._owner.fallback if self.falls_back else self._accepted_rule
        return used if isinstance(used, str) else used.name

    @property
    def fallback(self) -> str:
        """The routing that a task uses that falls back."""
        return self._deployment.fallback

    @property
    def _deployment(self) -> Deployment:
        return self._owner.deployment

    @property
    def _accepted_rule(self) -> DecisionRule | str:
        point = self.refinement is not None and self.refinement.posterior is None
        return REFINED if point else self._owner.rule

    def _rule_for(self, images: Labelled | None) -> DecisionRule | str:
        return self._owner.fallback if self.falls_back_on(images) else self._accepted_rule

    @own_defaults()
    @torch.no_grad()
    def predict_proba(self, images: Any, rule: TaskRule | None = None) -> Tensor:
        """Class probabilities ``(n, W)``.

        Args:
            images: n of them in any form that ``adapt`` takes; those of another size than the support are scaled to it.
                Or :class:`~pyro_smat.episodes.Labelled` images with their rows of the pool whose features
                ``adapt_many`` was given.
            rule: a decision rule, its name or ``{"kind": name, option: ...}``, or "refined": the network at the refined
                coefficients; default: the fallback where the task falls back (on these images, if its score looks at
                queries), else :attr:`rule`.

        Raises:
            ValueError: for images that are not usable, an unknown rule, or rule "refined" of a task that was not
                refined.
        """
        asked = self._queries(images)
        return self._proba(self._rule_for(asked) if rule is None else self._named(rule), asked)

    @torch.no_grad()
    def _proba(self, rule: DecisionRule | str, asked: Labelled) -> Tensor:
        weights, probabilities = self._networks.members(rule, asked, self.posterior)
        return (weights[..., None, None] * probabilities).sum(0)[0].cpu()

    @own_defaults()
    def predict_sets(self, images: Any, threshold: float) -> list[tuple[Hashable, ...]]:
        """Label sets of images ``(n, C, H, W)``: the classes that the query may have; none or many say "unsure".

        Args:
            images: as in :meth:`predict_proba`.
            threshold: of :func:`pyro_smat.inference.evaluation.label_sets.calibrate_label_sets`, whose coverage is
                marginal over the queries of reliable tasks; a task that abstains says nothing and gets all classes.
        """
        if isinstance(threshold, bool) or not isinstance(threshold, int | float) or math.isnan(threshold):
            raise ValueError(f"threshold is {threshold!r:.60}; expected a number, as calibrate_label_sets gives it")
        asked = self._queries(images)
        if self.abstains_on(asked):
            return [self.classes] * len(asked)
        kept = 1.0 - in_float64(self._proba(self._accepted_rule, asked)) <= threshold
        return [tuple(c for c, inside in zip(self.classes, row, strict=True) if inside) for row in kept.tolist()]

    def _queries(self, images: Any) -> Labelled:
        """Images ``(n, C, H, W)`` of the support's size, with the rows that they came with."""
        height, width = self._batch.support.images.shape[-2:]
        given, rows = (images.images, images.rows) if isinstance(images, Labelled) else (images, None)
        return Labelled(read_images(given, self._owner.image_form, like=(height, width)), rows=rows)

    def _scored(self, asked: Labelled | None) -> RoutedBatch:
        """What the score sees: the router's own posterior and, where there are any, queries through its networks."""
        batch, device = self._batch, self._batch.way.device
        if asked is not None:
            batch = replace(batch, query=asked.map(lambda part: part.unsqueeze(0).to(device)))
        return RoutedBatch(
            self._owner.router.model,
            self._routed,
            batch,
            self._owner.bases[0] if len(self._owner.bases) == 1 else self._owner.bases,
            generator=self._generator(),
            predictive=self._deployment.predictive,
            members=lambda rule: self._networks.members(rule, batch.query.map(lambda part: part[0]), self._routed),
        )

    def _generator(self) -> torch.Generator:
        return torch.Generator(device=self._batch.way.device).manual_seed(self._seed)

    def _named(self, rule: TaskRule) -> DecisionRule | str:
        """A rule from what names one; the deployed ones by their names, with their options."""
        owner = self._owner
        if isinstance(rule, str) and rule == REFINED:
            return REFINED
        try:
            made = as_rule(rule, owner.router.model, owner.router.catalog)
        except (AttributeError, LookupError, TypeError) as error:
            raise ValueError(f"rule is {rule!r:.60}; expected a decision rule, its name or a table") from error
        if isinstance(rule, str):
            return next((known for known in (owner.fallback, owner.rule) if known.name == made.name), made)
        return made

    @property
    @own_defaults()
    def routing_scores(self) -> dict[str, float]:
        """KL of the router's posterior to the prior and its entropy, in nats: what a RoutingMonitor follows."""
        with DrawsFrom(self._generator()):  # a Monte Carlo KL draws from the global generator
            scores = routing_scores(self._routed, self._owner.router.model.prior)
        return {name: float(value) for name, value in scores.items()}

    def predict(self, images: Any, rule: TaskRule | None = None) -> list[Any]:
        """The label of every image, as it was given to ``adapt``; arguments as in :meth:`predict_proba`."""
        return [self.classes[k] for k in self.predict_proba(images, rule).argmax(-1).tolist()]

    @own_defaults()
    @torch.no_grad()
    def explain(self) -> Explanation:
        """Which sources and experts, how sure, and what it costs."""
        router = self._owner.router
        draws = self.posterior.sample(512, self._generator())[:, 0]
        mean = self.posterior.mean[0] if self.refinement is None else self.refinement.coefficients
        if self.posterior.num_blocks > 1:  # a block counts by its share of the coordinates
            share = torch.tensor(router.library.space.block_sizes, device=mean.device).to(mean)
            share = (share / share.sum()).unsqueeze(-1)
            draws, mean = (draws * share).sum(-2), (mean * share).sum(-2)
        low, high = torch.quantile(draws, draws.new_tensor([0.05, 0.95]), dim=0)
        names = (*router.library.names, *(f"expert {m}" for m in range(self.posterior.num_experts)))
        sizes = [router.library.space.dim] * self.posterior.num_sources
        if router.model.experts is not None:
            masks = None if self.refinement is None else self.refinement.masks
            sizes += (router.model.experts.masks() if masks is None else masks).sum(-1).tolist()
        parts = tuple(
            Component(name, float(mean[i]), float(low[i]), float(high[i]), int(sizes[i]))
            for i, name in enumerate(names)
        )
        deployment, used = self._deployment, self._owner.fallback if self.falls_back else self._accepted_rule
        reliability = deployment.reliability
        networks = self._networks.of(used, self.posterior)
        return Explanation(
            components=parts,
            score=deployment.scorer.title,
            uncertainty=math.nan if deployment.never_falls_back else self.uncertainty,
            threshold=deployment.threshold,
            falls_back=self.falls_back,
            per_queries=deployment.looks_at_queries,
            fallback=deployment.fallback,
            risk=self.risk,
            tolerance=math.inf if reliability is None else reliability.tolerance,
            risk_is_error=reliability is not None and reliability.is_error,
            reliable=self.reliable,
            reasons=reasons_of(self._view()),
            misrouting=None if math.isnan(self.misrouting) else self.misrouting,
            misrouting_episodes=0 if deployment.misrouting is None else deployment.misrouting.episodes,
            certificate=deployment.certificate if self.refinement is None else None,
            rule=self.rule,
            networks=len(networks.theta),
            mass=networks.mass,
            parameters=router.library.space.dim,
            refinement=self.refinement,
        )

    def _view(self) -> RoutingView:
        """Routes and what the support says of each."""
        batch, metric = self._batch, self._owner.router.model.metric
        features, labels, mask = batch.support.features, batch.support.labels[0], batch.support.mask[0]
        assert features is not None
        logits = leave_one_out_logits(
            features[0].float(), labels, mask, batch.class_mask[0], metric=metric
        )  # (R, S, W)
        losses = torch.nn.functional.cross_entropy(logits.mT, labels.expand(len(logits), -1), reduction="none")
        return RoutingView(
            routes=self._owner.source_names,
            weights=tuple(self._routed.source_weights[0].tolist()),
            losses=losses[:, mask].cpu().double().numpy(),
            labels=labels[mask].cpu().numpy(),
            classes=self.classes,
        )

    @own_defaults()
    @torch.no_grad()
    def suggest(self, images: Any = None, *, count: int = 5) -> Suggestion:
        """What would make the routing surer: which routes to tell apart, and shots of which classes or images.

        Args:
            images: ``(n, C, H, W)`` candidates that could be labelled. They are ranked by the expected information gain
                about the routing: the mutual information of a candidate's label and the routing under the posterior
                predictive, in nats.
            count: how many candidates to name, at least 1.

        Raises:
            ValueError: for images that are not usable, or a count below 1.
        """
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"count is {count!r:.60}; expected at least 1 candidate to name")
        if images is None:
            return suggestion_of(self._view())
        weights, members = self._networks.members(self._deployment.predictive, self._queries(images), self._routed)
        weights, members = in_float64(weights[:, 0, None, None]), in_float64(members[:, 0])  # (K, 1, 1), (K, n, W)
        mixed = (weights * members).sum(0)
        gains = torch.special.entr(mixed).sum(-1) - (weights * torch.special.entr(members)).sum((0, -1))
        return suggestion_of(self._view(), gains.clamp(min=0).cpu().numpy(), mixed.cpu().numpy(), count)


def _accepted(score: float, threshold: float) -> bool:
    """As certificates count it: minus infinity accepts nothing, and NaN is not accepted."""
    return bool(accepted_tasks(np.array([score]), threshold)[0])
