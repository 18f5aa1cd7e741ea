"""Evaluations that are made up, with scores that know something of the loss."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pyro_smat.inference.evaluation.evaluation import Evaluation
from pyro_smat.metrics.arrays import FloatArray

QUERIES, WAY = 6, 3


def made_evaluation(
    hardness: FloatArray, generator: np.random.Generator, scores: Mapping[str, FloatArray] | None = None
) -> Evaluation:
    """Episodes of six queries and three classes.

    The routed prediction ("posterior_predictive") is wrong with probability ``hardness`` ``(N,)``, the fallback with
    0.3 and half of it. Score "entropy" is the hardness with noise, "least_confidence" is noise.
    """
    count = len(hardness)
    labels = generator.integers(WAY, size=count * QUERIES)
    episode = np.repeat(np.arange(count), QUERIES)

    def answers(error: FloatArray) -> FloatArray:
        wrong = generator.random(len(labels)) < error[episode]
        chosen = (labels + wrong * generator.integers(1, WAY, size=len(labels))) % WAY
        sure = generator.uniform(0.4, 0.95, size=len(labels))
        return np.where(np.arange(WAY) == chosen[:, None], sure[:, None], (1 - sure[:, None]) / (WAY - 1))

    made = {
        "entropy": hardness + 0.05 * generator.standard_normal(count),
        "least_confidence": generator.random(count),
        **(scores or {}),
    }
    whole = np.zeros(count, dtype=np.int64)
    return Evaluation(
        probabilities={"posterior_predictive": answers(hardness), "fallback": answers(0.3 + 0.5 * hardness)},
        labels=labels,
        episode=episode,
        scores=made,
        weights=np.tile([0.6, 0.4], (count, 1)),
        support_loss=np.zeros((count, 2)),
        source_loss=np.zeros((count, 2)),
        route=whole - 1,
        source_of_route=(),
        corrupted_labels=whole,
        confounded_with=whole - 1,
        way=whole + WAY,
        shots=whole + 9,
        source_names=("a", "b"),
    )
