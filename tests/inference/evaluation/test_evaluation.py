"""Losses of an evaluation, query by query."""

from __future__ import annotations

import math

import numpy as np
import pytest
from made_evaluation import made_evaluation


def test_bounded_losses_query_by_query() -> None:
    generator = np.random.default_rng(3)
    evaluation = made_evaluation(generator.random(5), generator)
    p, y = evaluation.probabilities["posterior_predictive"], evaluation.labels
    for measure, of in (
        ("error", lambda row, k: float(row.argmax() != k)),
        ("brier", lambda row, k: 0.5 * sum((row[j] - (j == k)) ** 2 for j in range(3))),
        ("nll", lambda row, k: min(-math.log(row[k]), 1.5) / 1.5),
    ):
        values = np.array([of(row, k) for row, k in zip(p, y, strict=True)]).reshape(5, -1).mean(1)
        np.testing.assert_allclose(evaluation.bounded_loss("posterior_predictive", measure, 1.5), values)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="loss is 'hinge'; expected 'error', 'brier' or 'nll'"):
        evaluation.bounded_loss("posterior_predictive", "hinge")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="clip is 0"):
        evaluation.bounded_loss("posterior_predictive", "nll", 0)
