"""AdaptedTask: one support set, routed and perhaps refined; it predicts, doubts and explains itself.

Made by :meth:`RoutedClassifier.adapt` and ``adapt_many``; what it says is computed by
:class:`~pyro_smat.inference.deployment.routed_tasks.RoutedTasks`, of one task here.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pyro_smat.episodes import Labelled
from pyro_smat.float64 import in_float64
from pyro_smat.guides.posterior import RoutingPosterior
from pyro_smat.inference.assembly.defaults import own_defaults
from pyro_smat.inference.decision.deployment import Deployment
from pyro_smat.inference.decision.prediction import as_rule
from pyro_smat.inference.decision.rules import DecisionRule
from pyro_smat.inference.decision.scores.score import UncertaintyScore
from pyro_smat.inference.deployment.answering import finite, read_queries
from pyro_smat.inference.deployment.explanation import Explanation, explanation_of
from pyro_smat.inference.deployment.monitoring import routing_scores
from pyro_smat.inference.deployment.refinement import Refinement
from pyro_smat.inference.deployment.routed_tasks import REFINED, Answering, RoutedTasks
from pyro_smat.inference.deployment.suggestion import Suggestion, suggestion_of, view_of
from pyro_smat.networks.initial_weights import DrawsFrom

TaskRule = DecisionRule | Mapping[str, Any] | str  # a rule or what names one; "refined" is the refined point


class AdaptedTask:
    """One routed task; any number of threads may ask it at once, with the answers of one thread.

    Args:
        together: the tasks that it was routed with, or itself alone.
        index: which of them it is.

    Attributes:
        together, index: as they were given.
        classes: as they were given to ``adapt``, in the order of the columns of :meth:`predict_proba`.
    """

    def __init__(self, together: RoutedTasks, index: int = 0) -> None:
        self.together, self.index, self.classes = together, index, together.classes[index]

    @cached_property
    def alone(self) -> RoutedTasks:
        """The task as a batch of one, which keeps what it has computed."""
        return self.together.alone(self.index)

    @property
    def posterior(self) -> RoutingPosterior:
        """q(c | S), batch size 1: the router's, or that of a refinement that has one."""
        return self.alone.posterior

    @property
    def refinement(self) -> Refinement | None:
        """What the refinement found, or None."""
        return self.together.refinement

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

    @own_defaults()
    def uncertainty_on(self, images: Any) -> float:
        """U of this task with these queries ``(n, C, H, W)``, by the score that falling back is decided on.

        Of the router's own posterior, for which the threshold was chosen, also where the task is refined.

        Raises:
            ValueError: for images that are not usable, or None where the score looks at queries.
        """
        return float(self.alone.uncertainty(self._looked_at(images, self._deployment.scorer))[0])

    @own_defaults()
    def falls_back_on(self, images: Any) -> bool:
        """Whether predictions of these queries come from the fallback; arguments as in :meth:`uncertainty_on`."""
        decides = None if self._deployment.never_falls_back else self._deployment.scorer
        return bool(self.alone.falls_back(self._looked_at(images, decides))[0])

    @own_defaults()
    def risk_on(self, images: Any) -> float:
        """The risk of this task with these queries ``(n, C, H, W)``; NaN for a deployment without one.

        Raises:
            ValueError: as :meth:`uncertainty_on`.
        """
        reliability = self._deployment.reliability
        score = None if reliability is None else reliability.predictor
        return float(self.alone.risk(self._looked_at(images, score))[0])

    @own_defaults()
    def reliable_on(self, images: Any) -> bool:
        """Whether answers to these queries can be relied on; arguments as in :meth:`uncertainty_on`."""
        reliability = self._deployment.reliability
        if reliability is None:
            return not self.falls_back_on(images)
        decides = None if reliability.tolerance == math.inf else reliability.predictor
        return bool(self.alone.reliable(self._looked_at(images, decides))[0])

    def abstains_on(self, images: Any) -> bool:
        """Whether answers to these queries should not be relied on."""
        return not self.reliable_on(images)

    @property
    def misrouting(self) -> float:
        """Probability that the route which the router trusts most is the wrong one; NaN where that is unknown.

        The posterior's own, calibrated on validation episodes where true routes were known; not calibrated, it is
        stated for a posterior over a list of routings alone.
        """
        return float(self.alone.misrouting()[0])

    @property
    def rule(self) -> str:
        """What predictions use: the fallback when the task falls back, "refined" at a refined point, or the rule."""
        used = self.alone.owner.fallback if self.falls_back else self.alone.accepted_rule
        return used if isinstance(used, str) else used.name

    @property
    def fallback(self) -> str:
        """The routing that a task uses that falls back."""
        return self._deployment.fallback

    def _looked_at(self, images: Any, score: UncertaintyScore | None) -> Labelled | None:
        """The queries where a score looks at them; else nobody reads them."""
        return self._queries(images) if images is not None and score is not None and score.looks_at_queries else None

    @property
    def _deployment(self) -> Deployment:
        return self.together.deployment

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
            ValueError: for images that are not usable or on which the networks are not finite, an unknown rule, or rule
                "refined" of a task that was not refined.
        """
        asked = self._queries(images)
        return finite(self.alone.probabilities(asked, None if rule is None else self._named(rule))[0])

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
        if not self.alone.reliable(asked)[0]:
            return [self.classes] * len(asked)
        probabilities = finite(self.alone.probabilities(asked, self.alone.accepted_rule)[0])
        kept = 1.0 - in_float64(probabilities) <= threshold
        return [tuple(c for c, inside in zip(self.classes, row, strict=True) if inside) for row in kept.tolist()]

    def _queries(self, images: Any) -> Labelled:
        """Images ``(1, n, C, H, W)`` of the support's size, with the rows that they came with."""
        return read_queries([images], self.together)

    def _named(self, rule: TaskRule) -> Answering:
        """A rule from what names one; the deployed ones by their names, with their options."""
        owner = self.together.owner
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
        task = self.alone
        with DrawsFrom(task.generator()):  # a Monte Carlo KL draws from the global generator
            scores = routing_scores(task.routed, task.owner.router.model.prior)
        return {name: float(value) for name, value in scores.items()}

    def predict(self, images: Any, rule: TaskRule | None = None) -> list[Any]:
        """The label of every image, as it was given to ``adapt``; arguments as in :meth:`predict_proba`."""
        return [self.classes[k] for k in self.predict_proba(images, rule).argmax(-1).tolist()]

    @own_defaults()
    def explain(self) -> Explanation:
        """Which sources and experts, how sure, and what it costs."""
        return explanation_of(self)

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
        task = self.alone
        if images is None:
            return suggestion_of(view_of(task))
        weights, members = task.members(task.deployment.predictive, self._queries(images), task.routed)
        weights, members = in_float64(weights[:, 0, None, None]), in_float64(members[:, 0])  # (K, 1, 1), (K, n, W)
        mixed = (weights * members).sum(0)
        gains = torch.special.entr(mixed).sum(-1) - (weights * torch.special.entr(members)).sum((0, -1))
        return suggestion_of(view_of(task), gains.clamp(min=0).cpu().numpy(), mixed.cpu().numpy(), count)
