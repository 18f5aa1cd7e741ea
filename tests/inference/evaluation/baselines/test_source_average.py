"""Averages of all sources' predictions, source by source."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from pyro_smat.inference.evaluation.baselines import (
    BestSource,
    ComposedLibrary,
    SourceAverage,
    WeightedSourceAverage,
)


def test_averages_by_loop(composed: ComposedLibrary, make_batch: Callable, support_loss_by_hand: Callable) -> None:
    batch = make_batch(composed)
    equal, weighted = SourceAverage(composed)(batch), WeightedSourceAverage(composed, temperature=0.7)(batch)
    for i in (0, 2, 3):  # two shots a class or more, which the loss by hand asks for
        losses = np.array([float(support_loss_by_hand(theta, batch, i)) for theta in composed.sources])
        weights = np.exp(-losses / 0.7) / np.exp(-losses / 0.7).sum()
        alone = [composed.logits(theta.expand(len(batch), -1), batch).softmax(-1)[i] for theta in composed.sources]
        torch.testing.assert_close(equal[i], sum(alone) / 4)
        torch.testing.assert_close(weighted[i], sum(w * p for w, p in zip(weights, alone, strict=True)))


def test_between_the_best_source_and_the_equal_average(composed: ComposedLibrary, make_batch: Callable) -> None:
    batch = make_batch(composed)
    cold, hot = (WeightedSourceAverage(composed, temperature=t)(batch) for t in (1e-6, 1e6))
    torch.testing.assert_close(cold, BestSource(composed)(batch))
    torch.testing.assert_close(hot, SourceAverage(composed)(batch), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_bad_temperatures(temperature: float, composed: ComposedLibrary) -> None:
    with pytest.raises(ValueError, match=r"temperature is .*; expected a number of nats > 0"):
        WeightedSourceAverage(composed, temperature=temperature)
