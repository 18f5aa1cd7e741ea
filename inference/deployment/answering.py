"""Answers to the queries of many tasks: tasks that were routed together are asked together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyro_smat.episodes import Labelled
from pyro_smat.inference.deployment.inputs import read_images
from pyro_smat.inference.deployment.routed_tasks import RoutedTasks
from pyro_smat.metrics.arrays import FloatArray

if TYPE_CHECKING:
    from pyro_smat.inference.deployment.adapted_task import AdaptedTask


@dataclass(frozen=True)
class TaskAnswer:
    """What a task says of its queries, as the methods of :class:`AdaptedTask` of the same names do.

    Attributes:
        classes: W of them, as they were given to ``adapt``.
        probabilities: of the n queries, ``(n, W)``.
        weights: posterior mean of the sources, ``(R,)``.
        uncertainty: U; None where no decision reads it.
        risk: None for a deployment without one.
        misrouting: None where it is unknown.
        falls_back, reliable: what is decided. These, uncertainty and risk are None for a task without queries where a
            score looks at them.
    """

    classes: tuple[Any, ...]
    probabilities: Tensor
    weights: Tensor
    uncertainty: float | None
    risk: float | None
    misrouting: float | None
    falls_back: bool | None
    reliable: bool | None

    @property
    def predictions(self) -> list[Any]:
        """The label of every query.

        Raises:
            ValueError: where probabilities are not finite.
        """
        return [self.classes[k] for k in finite(self.probabilities).argmax(-1).tolist()]


def finite(probabilities: Tensor) -> Tensor:
    """Class probabilities ``(n, W)``, as they are.

    Raises:
        ValueError: where they are not finite, as the largest of them would be no answer.
    """
    broken = (~torch.isfinite(probabilities).all(-1)).nonzero().flatten().tolist()
    if broken:
        raise ValueError(
            f"probabilities of images {broken[:8]} are NaN or infinite; expected finite features under every network: "
            "leave these images out, look at the sources for extreme weights, or set precision to float32"
        )
    return probabilities


@torch.no_grad()
def answers_of(tasks: Sequence[AdaptedTask], queries: Sequence[Any]) -> list[TaskAnswer]:
    """The answers of tasks to their queries; those that were routed together as one batch.

    Args:
        tasks: of ``adapt_many``.
        queries: of each task, in a form that ``predict_proba`` takes; None for none.

    Raises:
        ValueError: for images that are not usable, or other numbers of tasks and queries.
    """
    if len(tasks) != len(queries):
        raise ValueError(f"got {len(tasks)} tasks and queries of {len(queries)}; expected one set for each task")
    groups: dict[tuple[RoutedTasks, bool], list[int]] = {}
    for number, (task, asked) in enumerate(zip(tasks, queries, strict=True)):
        groups.setdefault((task.together, asked is None), []).append(number)
    found: dict[int, TaskAnswer] = {}
    for (together, silent), numbers in groups.items():
        if together.refinement is not None:  # of one task, whose routing is not the router's
            for number in numbers:
                asked = None if silent else read_queries([queries[number]], together)
                found |= zip([number], _answers(together, asked), strict=True)
            continue
        index = [tasks[number].index for number in numbers]
        routed = together if index == list(range(len(together))) else together.take(index)
        asked = None if silent else read_queries([queries[number] for number in numbers], routed)
        found |= zip(numbers, _answers(routed, asked), strict=True)
    return [found[number] for number in range(len(tasks))]


def read_queries(queries: Sequence[Any], routed: RoutedTasks) -> Labelled:
    """Queries ``(B, n)`` of B tasks, padded, of the size of their supports and with the rows that they came with.

    Those that are rows of a pool were looked at when the pool was made.
    """
    height, width = routed.batch.support.images.shape[-2:]
    form, size = routed.owner.image_form, (int(height), int(width))
    read = []
    for one in queries:
        images, rows = (one.images, one.rows) if isinstance(one, Labelled) else (one, None)
        pooled = rows is not None and images.shape[-2:] == size and bool((rows >= 0).all())
        read.append(Labelled(images if pooled else read_images(images, form, like=size), rows=rows))
    return Labelled.collate(read).map(lambda tensor: tensor.to(routed.batch.way.device))


def _answers(routed: RoutedTasks, asked: Labelled | None) -> list[TaskAnswer]:
    deployment = routed.deployment
    decided = asked is not None or not any(score.looks_at_queries for score in deployment.reads)
    if asked is None:
        probabilities = torch.empty(len(routed), 0, routed.batch.max_way)
        counts = [0] * len(routed)
    else:
        probabilities, counts = routed.probabilities(asked), asked.counts.tolist()
    reads = decided and not deployment.never_falls_back
    uncertainty = _numbers(routed.uncertainty(asked) if reads else None, len(routed))
    risk = _numbers(routed.risk(asked) if decided else None, len(routed))
    misrouting = _numbers(routed.misrouting(), len(routed))
    falls_back = routed.falls_back(asked).tolist() if decided else [None] * len(routed)
    reliable = routed.reliable(asked).tolist() if decided else [None] * len(routed)
    weights = routed.posterior.source_weights.float().cpu()
    return [
        TaskAnswer(
            classes,
            probabilities[i, : counts[i]],
            weights[i],
            uncertainty[i],
            risk[i],
            misrouting[i],
            falls_back[i],
            reliable[i],
        )
        for i, classes in enumerate(routed.classes)
    ]


def _numbers(values: FloatArray | None, count: int) -> list[float | None]:
    """None for NaN, and for what was not asked."""
    return [None] * count if values is None else [None if np.isnan(value) else value for value in values.tolist()]
