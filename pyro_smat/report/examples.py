"""Example tasks of a report: what the router was shown, how it routed, what it answered and how far to trust that.

The first episodes of a condition's stream, through :meth:`RoutedClassifier.adapt`, as a user would; never chosen by
how they went.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pyro_smat.episodes import Episode, EpisodeSampler
from pyro_smat.inference.deployment.adapted_task import AdaptedTask
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.deployment.explanation import OPEN
from pyro_smat.report.example import Example, ExampleClass, Picture

SHOTS, CLASSES = 5, 5  # shown of a task, at most
PIXELS = 64  # of the longer side of a picture in the page


def example_tasks(
    classifier: RoutedClassifier,
    sampler: EpisodeSampler,
    condition: str,
    *,
    count: int = 1,
    route_names: Sequence[str] = (),
) -> tuple[Example, ...]:
    """The next ``count`` episodes of a sampler, routed and answered.

    Args:
        classifier: the router.
        sampler: of episodes with queries, with its corruptions.
        condition: what the page calls them.
        count: how many.
        route_names: names of the true routes, where they are known.
    """
    return tuple(_example(classifier, sampler, condition, route_names) for _ in range(count))


def _example(
    classifier: RoutedClassifier, sampler: EpisodeSampler, condition: str, route_names: Sequence[str]
) -> Example:
    episode = sampler.episode()
    names = episode.class_names or tuple(str(k) for k in range(episode.way))
    numbers = episode.support.labels
    task = classifier.adapt(episode.support.images, numbers)
    probabilities = task.predict_proba(episode.query.images)
    answers = probabilities.argmax(-1)
    known = 0 <= episode.route < len(route_names)
    wrong = _mislabelled(episode, sampler)
    shown = []
    for k in range(min(episode.way, CLASSES)):
        shots = (numbers == k).nonzero().flatten()[:SHOTS].tolist()
        asked = (episode.query.labels == k).nonzero().flatten()
        if not len(asked):
            continue
        query = int(asked[0])
        answer = int(answers[query])
        shown.append(
            ExampleClass(
                names[k],
                tuple(Picture(png_uri(episode.support.images[i]), bool(wrong[i])) for i in shots),
                Picture(png_uri(episode.query.images[query])),
                names[answer],
                float(probabilities[query, answer]),
                answer == k,
            )
        )
    return Example(
        condition=condition,
        classes=tuple(shown),
        routes=_routes(task, classifier.source_names),
        true_route=route_names[episode.route] if known else "",
        accuracy=float((answers == episode.query.labels).float().mean()),
        doubt=_doubt(task),
        reliable=task.reliable_on(episode.query.images),
    )


def _mislabelled(episode: Episode, sampler: EpisodeSampler) -> Tensor:
    """``(S,)`` bool: shots whose class in the pool has another name than their label."""
    pool, rows = sampler.pool, episode.support.rows
    attribute = episode.route if 0 <= episode.route < len(pool.attributes) else 0
    names, own = episode.class_names, pool.class_names[attribute]
    if not names or not set(names) <= set(own) or (rows < 0).any():
        return torch.zeros(len(rows), dtype=torch.bool)
    true = pool.labels[rows.cpu(), attribute].tolist()
    return torch.tensor([own[t] != names[k] for t, k in zip(true, episode.support.labels.tolist(), strict=True)])


def _routes(task: AdaptedTask, names: Sequence[str]) -> tuple[tuple[str, float], ...]:
    weights = zip(names, task.posterior.source_weights[0].tolist(), strict=True)
    return tuple(sorted(((n, w) for n, w in weights if w >= OPEN), key=lambda pair: -pair[1]))


def _doubt(task: AdaptedTask) -> tuple[str, ...]:
    explained = task.explain()
    return tuple(f"{line[0].upper()}{line[1:]}." for line in (*explained.reasons, *explained.doubts))


def png_uri(image: Tensor) -> str:
    """A PNG of ``(C, H, W)`` in [0, 1] as a data URI; larger images are made smaller.

    Example:
        >>> png_uri(torch.zeros(1, 4, 4))[:22]
        'data:image/png;base64,'
    """
    values = (image.detach().cpu().clamp(0, 1) * 255).round().byte().numpy()
    picture = Image.fromarray(values[0] if len(values) == 1 else np.moveaxis(values, 0, -1))
    picture.thumbnail((PIXELS, PIXELS))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
