"""Answers: listed tasks -> decoded or looked up -> routed in batches by ``adapt_many`` -> one row of a part each.

A task that cannot be decoded or routed becomes a row that says why, and the others go on.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import batched
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pyro_smat.episodes import EpisodeBatch, Labelled
from pyro_smat.episodes.pool import same_images
from pyro_smat.episodes.readers.decode import decode_image
from pyro_smat.inference.deployment.adapted_task import AdaptedTask
from pyro_smat.inference.deployment.answering import TaskAnswer
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.deployment.inputs import InputWarning
from pyro_smat.inference.runs.routing.frozen import FrozenImages
from pyro_smat.inference.runs.routing.tasks import ListedImage, ListedTask, TaskSource
from pyro_smat.metrics.scoring import brier_scores, negative_log_likelihoods

Row = dict[str, Any]


@dataclass(frozen=True)
class _Ready:
    """A task that can be routed: S images of the support, then Q queries.

    Attributes:
        rows: ``(S + Q,)`` of the frozen images; -1 for none.
        images: ``(S + Q, C, H, W)`` uint8; None where they are frozen.
        labels: of all images; support: S.
        repeated: how many queries are in the support.
    """

    name: str
    rows: Tensor
    images: Tensor | None
    labels: tuple[str | None, ...]
    support: int
    repeated: int


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
        found = iter(self._answered([task for task in ready if isinstance(task, _Ready)]))
        return [task if isinstance(task, dict) else next(found) for task in ready]

    def _ready(self, task: ListedTask) -> _Ready | Row:
        if task.failure is not None:
            return _failed(task.name, task.failure)
        listed = (*task.support, *task.query)
        count, images = len(task.support), None
        try:
            if self._frozen is not None:
                rows, pictures = self._frozen.of(listed)
            else:
                images, rows = self._decoded(listed), torch.full((len(listed),), -1)
                pictures = same_images(images).tolist()
        except (OSError, ValueError) as error:
            return _failed(task.name, str(error))
        seen = set(pictures[:count])
        repeated = sum(one in seen for one in pictures[count:])
        shots: dict[tuple[int, str | None], int] = {}
        kept = [i for i in range(count) if shots.setdefault((pictures[i], listed[i].label), i) == i]  # no copies
        if len(kept) < count:
            count, kept = len(kept), [*kept, *range(count, len(listed))]
            rows, images = rows[kept], None if images is None else images[kept]
            listed = tuple(listed[i] for i in kept)
        return _Ready(task.name, rows, images, tuple(image.label for image in listed), count, repeated)

    def _decoded(self, listed: Sequence[ListedImage]) -> Tensor:
        data = self._classifier.router.config.data
        found = []
        for one in listed:
            file = self._source.file(one.content) if isinstance(one.content, str) else one.content
            found.append(decode_image(file, data.size, data.channels, name=one.name))
        return torch.from_numpy(np.stack(found))

    def _answered(self, ready: Sequence[_Ready]) -> list[Row]:
        """The rows of tasks; where one of them fails, halves by themselves until it is alone with its failure."""
        if not ready:
            return []
        try:
            return self._together(ready)
        except (ArithmeticError, RuntimeError, ValueError) as error:
            if len(ready) == 1:
                return [_failed(ready[0].name, " ".join(str(error).split()) or type(error).__name__)]
        half = len(ready) // 2
        return self._answered(ready[:half]) + self._answered(ready[half:])

    def _together(self, ready: Sequence[_Ready]) -> list[Row]:
        tasks, pixels = self._decoded_tasks(ready) if self._frozen is None else self._frozen_tasks(ready, self._frozen)
        queries = [
            Labelled(own, rows=one.rows[one.support :]) if len(own) else None
            for own, one in zip(pixels, ready, strict=True)
        ]
        answers = self._classifier.answer_many(tasks, queries)
        rows = [self._row(*pair) for pair in zip(answers, ready, strict=True)]
        return [row | losses for row, losses in zip(rows, _losses(answers, ready), strict=True)]

    def _decoded_tasks(self, ready: Sequence[_Ready]) -> tuple[list[AdaptedTask], list[Tensor]]:
        """The tasks and the images of their queries."""
        images = [one.images for one in ready if one.images is not None]
        supports = [(own[: one.support], one.labels[: one.support]) for own, one in zip(images, ready, strict=True)]
        tasks = list(self._classifier.adapt_many(supports, seed=self._seed, at_once=self._at_once))
        return tasks, [own[one.support :].float().div_(255.0) for own, one in zip(images, ready, strict=True)]

    def _frozen_tasks(self, ready: Sequence[_Ready], frozen: FrozenImages) -> tuple[list[AdaptedTask], list[Tensor]]:
        tasks = self._classifier.adapt_many(
            [_batch(ready, frozen)],
            features=frozen.features,
            shared=frozen.shared,
            seed=self._seed,
            at_once=self._at_once,
        )
        rows = [one.rows[one.support :] for one in ready]
        return list(tasks), list(frozen.at(torch.cat(rows)).split([len(own) for own in rows]))

    def _row(self, answer: TaskAnswer, ready: _Ready) -> Row:
        row: Row = {
            "task": ready.name,
            "weights": answer.weights.tolist(),
            "queries": len(ready.rows) - ready.support,
            "repeated": ready.repeated,
            "labelled": 0,
            "predictions": answer.predictions,
            "uncertainty": answer.uncertainty,
            "risk": answer.risk,
            "reliable": answer.reliable,
            "falls_back": answer.falls_back,
        }
        if self._probabilities and row["queries"]:
            row |= {"classes": list(answer.classes), "probabilities": answer.probabilities.tolist()}
        return row


def _batch(ready: Sequence[_Ready], frozen: FrozenImages) -> EpisodeBatch:
    """The supports of tasks of frozen images, padded."""
    names = [tuple(sorted({str(label) for label in one.labels[: one.support]})) for one in ready]
    rows = pad_sequence([one.rows[: one.support] for one in ready], batch_first=True, padding_value=-1)
    labels, mask = torch.zeros_like(rows), rows >= 0
    for own, one, known in zip(labels, ready, names, strict=True):
        number = {name: k for k, name in enumerate(known)}
        own[: one.support] = torch.tensor([number[str(label)] for label in one.labels[: one.support]])
    images = frozen.at(rows.clamp(min=0))
    if not mask.all():
        images[~mask] = 0.0
    way = torch.tensor([len(known) for known in names])
    return EpisodeBatch(Labelled(images, labels, mask, rows), None, way, class_names=tuple(names))


def _losses(answers: Sequence[TaskAnswer], ready: Sequence[_Ready]) -> list[Row]:
    """Of each task, over the queries whose labels are known."""
    rows: list[Row] = [{} for _ in answers]
    by_way: dict[int, list[tuple[int, list[int], list[int]]]] = {}
    for i, (answer, one) in enumerate(zip(answers, ready, strict=True)):
        number = {name: k for k, name in enumerate(answer.classes)}
        names = one.labels[one.support :]
        asked = [q for q, name in enumerate(names) if name is not None]
        if asked:
            by_way.setdefault(len(number), []).append((i, asked, [number[names[q]] for q in asked]))
    for known in by_way.values():
        values = torch.cat([answers[i].probabilities[asked] for i, asked, _ in known]).double().numpy()
        truth = np.concatenate([labels for _, _, labels in known])
        each = {
            "error": (values.argmax(1) != truth).astype(float),
            "brier": 0.5 * brier_scores(values, truth),
            "nll": negative_log_likelihoods(values, truth),
        }
        counts = np.array([len(labels) for _, _, labels in known])
        starts = np.concatenate([[0], counts.cumsum()[:-1]])
        means = {name: np.add.reduceat(loss, starts) / counts for name, loss in each.items()}
        means["brier"] = means["brier"].clip(max=1.0)  # a sum of probabilities may round above 1
        for k, (i, _, labels) in enumerate(known):
            rows[i] = {"labelled": len(labels), **{name: float(mean[k]) for name, mean in means.items()}}
    return rows


def _failed(name: str, reason: str) -> Row:
    return {"task": name, "failure": reason}
