"""Answers: listed tasks -> decoded or looked up -> routed in batches by ``adapt_many`` -> one row of a part each.

A task that cannot be decoded or routed becomes a row that says why, and the others go on.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import batched
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_smat.episodes import Episode, EpisodeBatch, Labelled
from pyro_smat.episodes.pool import same_images
from pyro_smat.episodes.readers.decode import decode_image
from pyro_smat.inference.deployment.adapted_task import AdaptedTask
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.deployment.inputs import InputWarning
from pyro_smat.inference.runs.routing.frozen import FrozenImages
from pyro_smat.inference.runs.routing.tasks import ListedImage, ListedTask, TaskSource
from pyro_smat.metrics import brier_score, negative_log_likelihood

Row = dict[str, Any]


@dataclass(frozen=True)
class _Ready:
    """A task whose images are there: S of the support, then Q queries."""

    name: str
    images: Tensor  # (S + Q, C, H, W), uint8
    rows: Tensor  # (S + Q,) of the frozen images, -1 for none
    labels: tuple[str | None, ...]
    support: int
    repeated: int

    @property
    def query(self) -> Labelled | None:
        """None where there are none."""
        if self.support == len(self.rows):
            return None
        return Labelled(self.images[self.support :].float() / 255.0, rows=self.rows[self.support :])


class Answers:
    """Rows of tasks under one router.

    Args:
        classifier: the router.
        source: of the tasks.
        frozen: the images of all tasks with their features, where they are held; else every task decodes its own.
        seed: of the rules that draw.
        at_once: tasks a batch.
        probabilities: whether rows have the class probabilities of the queries.
    """

    def __init__(
        self,
        classifier: RoutedClassifier,
        source: TaskSource,
        frozen: FrozenImages | None = None,
        *,
        seed: int = 0,
        at_once: int = 32,
        probabilities: bool = False,
    ) -> None:
        self._classifier, self._source, self._frozen = classifier, source, frozen
        self._seed, self._at_once, self._probabilities = seed, at_once, probabilities
        self._warned = False

    def __call__(self, tasks: Iterable[ListedTask]) -> Iterator[list[Row]]:
        """The rows of tasks, a batch at a time, in order.

        Warns:
            InputWarning: of images that are unlike those that the router was trained on, the first time.
        """
        for batch in batched(tasks, self._at_once):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", InputWarning)
                rows = self._rows(batch)
            for one in caught:
                if not issubclass(one.category, InputWarning):
                    warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
                elif not self._warned:
                    self._warned = True
                    warnings.warn(
                        f"task {batch[0].name} or one soon after it: {one.message}", InputWarning, stacklevel=2
                    )
            yield rows

    def _rows(self, batch: Sequence[ListedTask]) -> list[Row]:
        ready: list[_Ready | Row] = [self._ready(task.checked()) for task in batch]
        good = [task for task in ready if isinstance(task, _Ready)]
        try:
            answered = self._answered(good)
        except (ArithmeticError, RuntimeError, ValueError):  # of one of them: find out of which
            answered = [self._alone(task) for task in good]
        found = iter(answered)
        return [task if isinstance(task, dict) else next(found) for task in ready]

    def _ready(self, task: ListedTask) -> _Ready | Row:
        if task.failure is not None:
            return _failed(task.name, task.failure)
        listed = (*task.support, *task.query)
        count = len(task.support)
        try:
            if self._frozen is not None:
                images, rows, pictures = self._frozen.of(listed)
            else:
                images, rows = self._decoded(listed), torch.full((len(listed),), -1)
                pictures = same_images(images)
        except (OSError, ValueError) as error:
            return _failed(task.name, str(error))
        repeated = int(torch.isin(pictures[count:], pictures[:count]).sum())
        return _Ready(task.name, images, rows, tuple(image.label for image in listed), count, repeated)

    def _decoded(self, listed: Sequence[ListedImage]) -> Tensor:
        data = self._classifier.router.config.data
        found = []
        for one in listed:
            file = self._source.file(one.content) if isinstance(one.content, str) else one.content
            found.append(decode_image(file, data.size, data.channels, name=one.name))
        return torch.from_numpy(np.stack(found))

    def _alone(self, task: _Ready) -> Row:
        try:
            return self._answered([task])[0]
        except (ArithmeticError, RuntimeError, ValueError) as error:
            return _failed(task.name, " ".join(str(error).split()) or type(error).__name__)

    def _answered(self, ready: Sequence[_Ready]) -> list[Row]:
        if not ready:
            return []
        if self._frozen is None:
            supports = [(task.images[: task.support], task.labels[: task.support]) for task in ready]
            tasks = self._classifier.adapt_many(supports, seed=self._seed, at_once=self._at_once)
        else:
            tasks = self._classifier.adapt_many(
                [EpisodeBatch.collate([_episode(task) for task in ready])],
                features=self._frozen.features,
                shared=self._frozen.shared,
                seed=self._seed,
                at_once=self._at_once,
            )
        return [self._row(task, one) for task, one in zip(tasks, ready, strict=True)]

    def _row(self, task: AdaptedTask, ready: _Ready) -> Row:
        deployment, query = self._classifier.deployment, ready.query
        row: Row = {
            "task": ready.name,
            "weights": task.posterior.source_weights[0].float().tolist(),
            "queries": len(ready.rows) - ready.support,
            "repeated": ready.repeated,
            "labelled": 0,
            "predictions": [],
        }
        if query is not None or not any(score.looks_at_queries for score in deployment.reads):
            row |= {
                "uncertainty": None if deployment.never_falls_back else _number(task.uncertainty_on(query)),
                "risk": _number(task.risk_on(query)),
                "reliable": task.reliable_on(query),
                "falls_back": task.falls_back_on(query),
            }
        if query is None:
            return row
        found = task.predict_proba(query)
        if not torch.isfinite(found).all():
            raise ValueError("the network's probabilities are NaN or infinite; the images or a source are at fault")
        row["predictions"] = [task.classes[k] for k in found.argmax(-1).tolist()]
        if self._probabilities:
            row |= {"classes": list(task.classes), "probabilities": found.tolist()}
        return row | _losses(found, ready.labels[ready.support :], task.classes)


def _losses(probabilities: Tensor, labels: Sequence[str | None], classes: Sequence[Any]) -> Row:
    """Of the queries ``(n, W)`` whose labels are known."""
    known = [i for i, label in enumerate(labels) if label is not None]
    if not known:
        return {}
    truth = np.array([classes.index(labels[i]) for i in known])
    values = probabilities[known].cpu().double().numpy()
    return {
        "labelled": len(known),
        "error": float((values.argmax(1) != truth).mean()),
        "brier": min(0.5 * brier_score(values, truth), 1.0),  # a sum of probabilities may round above 1
        "nll": negative_log_likelihood(values, truth),
    }


def _episode(task: _Ready) -> Episode:
    names = task.labels[: task.support]
    classes = sorted({str(name) for name in names})
    target = torch.tensor([classes.index(str(name)) for name in names])
    images = task.images[: task.support].float() / 255.0
    return Episode(Labelled(images, target, rows=task.rows[: task.support]), class_names=tuple(classes))


def _failed(name: str, reason: str) -> Row:
    return {"task": name, "failure": reason}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
