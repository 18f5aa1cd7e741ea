"""AdaptedTask: one support set, routed and perhaps refined; it predicts, abstains and explains itself.

Made by :meth:`RoutedClassifier.adapt`: posterior and refinement -> decision rule -> task networks -> probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from pyro_smat.episodes import EpisodeBatch, check_images
from pyro_smat.guides.posterior import RoutingPosterior
from pyro_smat.inference.decision.rules import Rule, routings
from pyro_smat.inference.decision.scores import query_scores, support_scores
from pyro_smat.inference.deployment.explanation import Component, Explanation
from pyro_smat.inference.deployment.monitoring import routing_scores
from pyro_smat.inference.deployment.refinement import Refinement
from pyro_smat.networks.composition import compose
from pyro_smat.networks.heads import prototype_logits

if TYPE_CHECKING:
    from pyro_smat.inference.deployment.classifier import RoutedClassifier

TaskRule = Rule | Literal["refined"]


class AdaptedTask:
    """One routed task.

    Attributes:
        posterior: q(c | S), batch size 1: the router's, or that of a refinement that has one.
        classes: class names, in the order of the columns of :meth:`predict_proba`.
        refinement: what the deployment mode found, or None.
    """

    def __init__(
        self,
        owner: RoutedClassifier,
        batch: EpisodeBatch,
        posterior: RoutingPosterior,
        classes: tuple[str, ...],
        seed: int,
        refinement: Refinement | None = None,
    ) -> None:
        self._owner, self._batch, self._seed = owner, batch, seed
        self._routed, self.classes, self.refinement = posterior, classes, refinement
        refined = None if refinement is None else refinement.posterior
        self.posterior = posterior if refined is None else refined
        self._composed: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

    @property
    def uncertainty(self) -> float:
        """U(S), by the score of the abstention rule; NaN when that looks at queries: see :meth:`uncertainty_on`."""
        return math.nan if self._owner.abstention.looks_at_queries else self.uncertainty_on(None)

    @property
    def abstains(self) -> bool:
        """Whether U(S) exceeds the threshold; predictions then come from the fallback.

        False when the score looks at queries: every batch of them is then decided on by itself, :meth:`abstains_on`.
        """
        return self.uncertainty > self._owner.abstention.threshold

    @torch.no_grad()
    def uncertainty_on(self, images: Tensor | None) -> float:
        """U of this task with these queries ``(n, C, H, W)``, by the score of the abstention rule.

        Of the router's own posterior, for which the threshold was chosen, also where the task is refined.

        Raises:
            ValueError: for images that are not usable, or None where the score looks at queries.
        """
        rule, scores = self._owner.abstention, self._support_scores
        if rule.looks_at_queries:
            if images is None:
                raise ValueError(
                    f"score {rule.score!r} looks at queries; expected the images that are to be classified"
                )
            scores = scores | self._query_scores(images)
        return float(rule.uncertainty({name: [scores[name]] for name in rule.needs})[0])

    def abstains_on(self, images: Tensor | None) -> bool:
        """Whether predictions of these queries come from the fallback; arguments as in :meth:`uncertainty_on`."""
        return self.uncertainty_on(images) > self._owner.abstention.threshold

    @property
    def rule(self) -> TaskRule:
        """What predictions use: the fallback when the task abstains, a refined point, or else the router's own rule."""
        return "fallback" if self.abstains else self._accepted_rule

    @property
    def _accepted_rule(self) -> TaskRule:
        point = self.refinement is not None and self.refinement.posterior is None
        return "refined" if point else self._owner.router.config.decision.rule

    @torch.no_grad()
    def predict_proba(self, images: Tensor, rule: TaskRule | None = None) -> Tensor:
        """Class probabilities ``(n, W)``.

        Args:
            images: ``(n, C, H, W)`` float in [0, 1].
            rule: a decision rule, or "refined": the network at the refined coefficients; default: the fallback where
                the task abstains (on these images, if its score looks at queries), else :attr:`rule`.

        Raises:
            ValueError: for images that are not usable or of another size than the support, or rule "refined" of a
                task that was not refined.
        """
        self._check_queries(images)
        if rule is None:
            rule = "fallback" if self.abstains_on(images) else self._accepted_rule
        weights, probabilities = self._member_probabilities(self._compose(rule), images)
        return (weights.view(-1, 1, 1) * probabilities).sum(0).cpu()

    def predict_sets(self, images: Tensor, threshold: float) -> list[tuple[str, ...]]:
        """Label sets of images ``(n, C, H, W)``: the classes that the query may have; none or many say "unsure".

        Args:
            images: as in :meth:`predict_proba`.
            threshold: of :func:`pyro_smat.inference.evaluation.certification.calibrate_label_sets`, whose coverage is
                marginal over the queries of accepted tasks; a task that abstains says nothing and gets all classes.
        """
        if self.abstains_on(images):
            self._check_queries(images)
            return [self.classes] * len(images)
        kept = 1.0 - self.predict_proba(images, self._accepted_rule).double() <= threshold
        return [tuple(c for c, inside in zip(self.classes, row, strict=True) if inside) for row in kept.tolist()]

    def _check_queries(self, images: Tensor) -> None:
        check_images(images, "query")
        if images.shape[1:] != self._batch.support.images.shape[2:]:
            raise ValueError(
                f"images are {tuple(images.shape[1:])}; the support is {tuple(self._batch.support.images.shape[2:])}"
            )

    def _member_probabilities(self, composed: tuple[Tensor, Tensor, Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
        """Weights ``(K,)`` and class probabilities ``(K, n, W)`` of the networks that a rule composed."""
        model = self._owner.router.model
        theta, support, weights = composed
        images = images.to(theta.device)
        queries = model.network(theta, images.expand(len(theta), *images.shape)).float()
        batch = self._batch
        logits = prototype_logits(
            support, batch.support.labels, batch.support.mask, queries, batch.class_mask, model.scale, model.metric
        )
        return weights, logits.softmax(-1)

    @cached_property
    def _support_scores(self) -> dict[str, float]:
        owner, generator = self._owner, torch.Generator(device=self._batch.way.device).manual_seed(self._seed)
        found = support_scores(owner.router.model, self._routed, self._batch, owner.bases, generator)
        return {name: float(value) for name, value in found.items()}

    def _query_scores(self, images: Tensor) -> dict[str, float]:
        """As in evaluation: of the ensemble of the router's posterior, averaged over the samples of the gates."""
        self._check_queries(images)
        config = self._owner.router.config.decision
        generator = torch.Generator(device=self._batch.way.device).manual_seed(self._seed)
        drawn, weights = routings(self._routed, "ensemble", config.draws, config.k, generator)
        bases = list(self._owner.bases)
        _, members = self._member_probabilities(self._compose_all(drawn[:, 0], weights[:, 0], bases), images)
        members = members.unflatten(0, (len(bases), len(drawn))).mean(0).unsqueeze(1)
        mask = torch.ones(1, len(images), dtype=torch.bool, device=members.device)
        return {name: float(value) for name, value in query_scores(members, weights, mask).items()}

    @property
    def routing_scores(self) -> dict[str, float]:
        """KL of the router's posterior to the prior and its entropy, in nats: what a RoutingMonitor follows."""
        scores = routing_scores(self._routed, self._owner.router.model.prior)
        return {name: float(value) for name, value in scores.items()}

    def predict(self, images: Tensor, rule: TaskRule | None = None) -> list[str]:
        """Class names of images ``(n, C, H, W)``."""
        return [self.classes[k] for k in self.predict_proba(images, rule).argmax(-1).tolist()]

    @torch.no_grad()
    def explain(self) -> Explanation:
        """Which sources and experts, how sure, and what it costs."""
        router = self._owner.router
        draws = self.posterior.sample(512, torch.Generator(device=self._batch.way.device).manual_seed(self._seed))[:, 0]
        mean = self.posterior.mean[0] if self.refinement is None else self.refinement.coefficients
        if self.posterior.num_blocks > 1:  # a block counts by its share of the coordinates
            share = torch.tensor(router.library.space.block_sizes, device=mean.device).to(mean)
            share = (share / share.sum()).unsqueeze(-1)
            draws, mean = (draws * share).sum(-2), (mean * share).sum(-2)
        low, high = torch.quantile(draws, torch.tensor([0.05, 0.95], device=draws.device), dim=0)
        names = (*router.library.names, *(f"expert {m}" for m in range(self.posterior.num_experts)))
        sizes = [router.library.space.dim] * self.posterior.num_sources
        if router.model.experts is not None:
            masks = None if self.refinement is None else self.refinement.masks
            sizes += (router.model.experts.masks() if masks is None else masks).sum(-1).tolist()
        parts = tuple(
            Component(name, float(mean[i]), float(low[i]), float(high[i]), int(sizes[i]))
            for i, name in enumerate(names)
        )
        rule, abstention = self.rule, self._owner.abstention
        calibration = None if abstention.looks_at_queries else abstention.misrouting
        return Explanation(
            components=parts,
            score=abstention.score,
            uncertainty=self.uncertainty,
            threshold=abstention.threshold,
            abstains=self.abstains,
            per_queries=abstention.looks_at_queries,
            fallback=abstention.fallback,
            misrouting=None if calibration is None else float(calibration.probability([self.uncertainty])[0]),
            certificate=abstention.certificate if self.refinement is None else None,
            rule=rule,
            networks=len(self._compose(rule)[2]),
            parameters=router.library.space.dim,
            refinement=self.refinement,
        )

    def _compose(self, rule: TaskRule) -> tuple[Tensor, Tensor, Tensor]:
        """Task parameters ``(K, d)``, support features ``(K, S, f)`` and weights ``(K,)`` of a rule, composed once."""
        if rule not in self._composed:
            self._composed[rule] = self._compose_all(*self._networks(rule))
        return self._composed[rule]

    def _compose_all(
        self, coefficients: Tensor, weights: Tensor, bases: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        router, images = self._owner.router, self._batch.support.images[0]
        theta = torch.cat([compose(coefficients, basis, router.library.space) for basis in bases])
        support = router.model.network(theta, images.expand(len(theta), *images.shape)).float()
        return theta, support, weights.repeat(len(bases)) / len(bases)

    def _networks(self, rule: TaskRule) -> tuple[Tensor, Tensor, Sequence[Tensor]]:
        """Coefficients ``(K, C)`` and weights ``(K,)`` of a rule, and the bases ``(C, d)`` that they are of."""
        owner, config = self._owner, self._owner.router.config.decision
        if rule == "refined":
            if self.refinement is None:
                raise ValueError(
                    "rule is 'refined' and the task was not refined: call adapt(..., refine='frank-wolfe')"
                )
            coefficients = self.refinement.coefficients.unsqueeze(0)
            basis = self.refinement.basis(owner.router.model, owner.deployed_basis)
            return coefficients, coefficients.new_ones(1), [basis]
        generator = torch.Generator(device=self._batch.way.device).manual_seed(self._seed)
        drawn, weights = routings(self.posterior, rule, config.draws, config.k, generator, owner.fallback)
        return drawn[:, 0], weights[:, 0], list(owner.bases)
