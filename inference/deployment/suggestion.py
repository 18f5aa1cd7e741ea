"""Reasons and suggestions: what the routing of a task is torn between, in words, and which shots would decide it.

From the posterior and what each source says of the shots when they are left out in turn; with candidate images, from
their expected information gain about the routing (Lindley 1956), which for a finite mixture of networks is the
disagreement of their answers.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import torch

from pyro_smat.inference.decision.scores.support_error import left_out_logits, share_wrong
from pyro_smat.inference.deployment.routed_tasks import RoutedTasks
from pyro_smat.metrics.arrays import FloatArray, IntArray

NAMED = 0.1  # a route with less weight than this times the largest is not named
TORN = 0.75  # a largest weight below this is a doubt
# A share of wrong shots above this times that of guessing: the support is hardly explained. For two classes that is
# the default tolerance of from_sources, so that nothing which that relies on is called unexplained.
NEAR_CHANCE = 0.6


@dataclass(frozen=True)
class RoutingView:
    """A routed support, as seen from its R sources.

    Attributes:
        routes: names of the sources.
        weights: ``(R,)`` posterior means.
        losses: ``(R, S)`` leave-one-out loss of every shot under every source, in nats.
        errors: shares of the shots that are misclassified when they are left out in turn, by each source and by the
            sources as they are weighted: ``(R + 1,)``. NaN where every class has a single shot.
        labels: ``(S,)`` class of every shot.
        classes: names.
    """

    routes: tuple[str, ...]
    weights: tuple[float, ...]
    losses: FloatArray
    errors: FloatArray
    labels: IntArray
    classes: tuple[Hashable, ...]

    @property
    def torn_between(self) -> tuple[str, ...]:
        """The routes that share the posterior, the likeliest first; one where it is sure."""
        order = sorted(range(len(self.routes)), key=lambda r: -self.weights[r])
        if self.weights[order[0]] >= TORN:
            return (self.routes[order[0]],)
        least = NAMED * self.weights[order[0]]
        return tuple(self.routes[r] for r in order if self.weights[r] > least)

    @property
    def is_explained(self) -> bool:
        """Whether any source, or their mixture, classifies the support much better than chance, as far as is known.

        By classes and not by losses, which a network whose features are all much alike has near those of guessing,
        however right it is; and so in the terms of :class:`~pyro_smat.inference.decision.scores.SupportError`.
        """
        return self.is_unknown or float(self.errors.min()) <= NEAR_CHANCE * self.chance

    @property
    def is_unknown(self) -> bool:
        """Whether no shot can be left out."""
        return bool(np.isnan(self.errors).all())

    @property
    def chance(self) -> float:
        """Share of wrong answers by guessing."""
        return 1.0 - 1.0 / len(self.classes)

    def weight(self, route: str) -> float:
        return self.weights[self.routes.index(route)]

    def class_losses(self) -> FloatArray:
        """``(W,)`` mean loss of the shots of each class, under the sources as they are weighted."""
        mixed = np.array(self.weights) @ self.losses / max(sum(self.weights), 1e-12)
        return np.array([mixed[self.labels == k].mean() for k in range(len(self.classes))])


@dataclass(frozen=True)
class Suggestion:
    """Which further shots would help.

    Attributes:
        pairs: pairs of routes between which more shots would decide, the likeliest pair first; none where the routing
            is sure.
        classes: class names, those that need shots most first.
        candidates: of the images that were given, the indices of the most informative ones, best first.
        gains: expected information gain of these about the routing, in nats.
        sentence: the same in words.
    """

    pairs: tuple[tuple[str, str], ...]
    classes: tuple[Hashable, ...]
    candidates: tuple[int, ...]
    gains: tuple[float, ...]
    sentence: str

    def __str__(self) -> str:
        return self.sentence


def reasons_of(view: RoutingView) -> tuple[str, ...]:
    """Why the routing is sure or not, one sentence a reason; where nothing explains the support that alone."""
    torn, sentences = view.torn_between, []
    if len(torn) > 1 and view.is_explained:
        shares = _listed(tuple(f"{100 * view.weight(r):.0f}%" for r in torn))
        equal = view.weight(torn[-1]) > 0.5 * view.weight(torn[0])
        fit = "about equally well" if equal else "all in part"
        sentences.append(f"the support fits {_listed(torn)} {fit} ({shares}); a shot in which they differ would decide")
    if not view.is_explained:
        sentences.append(
            f"no source explains the support (left out in turn, {100 * float(view.errors.min()):.0f}% of the shots are "
            f"misclassified; by guessing, {100 * view.chance:.0f}%): labels may be wrong, or the images unlike what "
            "the sources know"
        )
    if not sentences:
        sentences.append(f"the support fits {torn[0]} ({100 * view.weight(torn[0]):.0f}%) and little else")
    if view.is_unknown:
        sentences.append("every class has a single shot: none can be left out to see whether a source explains them")
    return tuple(sentences)


def suggestion_of(
    view: RoutingView,
    gains: FloatArray | None = None,
    answers: FloatArray | None = None,
    count: int = 5,
) -> Suggestion:
    """What would help.

    Args:
        view: the routed support.
        gains: ``(n,)`` expected information gain of candidate images, in nats; None for no candidates.
        answers: ``(n, W)`` their class probabilities.
        count: how many of them to name.
    """
    torn = view.torn_between
    pairs = [(a, b) for i, a in enumerate(torn) for b in torn[i + 1 :]]
    pairs.sort(key=lambda pair: -view.weight(pair[0]) * view.weight(pair[1]))
    needs = view.class_losses()
    if gains is not None and answers is not None:
        needs = gains @ answers  # of which classes the informative candidates may be
    classes = tuple(view.classes[k] for k in np.argsort(-needs, kind="stable"))
    best = () if gains is None else tuple(np.argsort(-gains, kind="stable")[:count].tolist())
    named = () if gains is None else tuple(gains[list(best)].tolist())
    return Suggestion(tuple(pairs), classes, best, named, _sentence(view, pairs, classes, best, named))


def _sentence(
    view: RoutingView,
    pairs: list[tuple[str, str]],
    classes: tuple[Hashable, ...],
    best: tuple[int, ...],
    gains: tuple[float, ...],
) -> str:
    if pairs and view.is_explained:
        differ = f"shots in which {pairs[0][0]} and {pairs[0][1]} differ"
        if best:
            return f"{differ} would help most: label image {best[0]} first (expected gain {gains[0]:.2f} nats)"
        return f"{differ} would help most, of classes {_listed(classes[:2])} first"
    if not view.is_explained:
        return f"check the labels of classes {_listed(classes[:2])} first, or give more shots of them"
    if best and gains[0] > 0.01:
        return f"the routing is sure; image {best[0]} could still tell most (expected gain {gains[0]:.2f} nats)"
    return "the routing is sure: more shots would change little"


def _listed(names: tuple[Hashable, ...]) -> str:
    words = [str(name) for name in names]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def view_of(task: RoutedTasks) -> RoutingView:
    """The routes of a single task, and what its support says of each."""
    support, weights = task.batch.support, task.routed.source_weights[0]
    labels, mask = support.labels[0], support.mask[0]
    logits = left_out_logits(task.owner.router.model, task.batch)[:, 0]  # (R, S, W)
    losses = torch.nn.functional.cross_entropy(logits.mT, labels.expand(len(logits), -1), reduction="none")
    probabilities = logits.softmax(-1)
    mixed = (weights[:, None, None].to(probabilities) * probabilities).sum(0, keepdim=True)
    predicted = torch.cat([logits.argmax(-1), mixed.argmax(-1)]).unsqueeze(1)  # (R + 1, 1, S)
    return RoutingView(
        routes=task.owner.source_names,
        weights=tuple(weights.tolist()),
        losses=losses[:, mask].cpu().double().numpy(),
        errors=share_wrong(predicted, support)[:, 0].cpu().double().numpy(),
        labels=labels[mask].cpu().numpy(),
        classes=task.classes[0],
    )
