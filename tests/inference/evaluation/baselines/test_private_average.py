"""The private average: predictions weighted by a release, and nothing else of the support."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from pyro_smat.encoders.private_evidence import PrivateEvidence
from pyro_smat.inference.evaluation.baselines import (
    ComposedLibrary,
    PrivateSourceAverage,
    SourceAverage,
    private_source_average,
)
from pyro_smat.inference.evaluation.baselines.private_average import TRUSTS


def test_weights_are_the_softmax_of_the_release(composed: ComposedLibrary, make_batch: Callable) -> None:
    batch = make_batch(composed)
    mechanism = PrivateEvidence.on_public([make_batch(composed, 50)], epsilon=math.inf, most_shots=4)
    found = PrivateSourceAverage(composed, mechanism, trust=2.0)(batch)
    evidence, alone = mechanism.statistic(batch), composed.source_probabilities(batch)
    for i in range(len(batch)):
        weights = torch.exp(2 * evidence[i]) / torch.exp(2 * evidence[i]).sum()
        torch.testing.assert_close(found[i], sum(w * p for w, p in zip(weights, alone[i], strict=True)))
    equal = PrivateSourceAverage(composed, mechanism, trust=0.0)
    torch.testing.assert_close(equal(batch), SourceAverage(composed)(batch))
    with pytest.raises(ValueError, match="trust is -1"):
        PrivateSourceAverage(composed, mechanism, trust=-1.0)


def test_trust_is_that_of_the_highest_validation_accuracy(composed: ComposedLibrary, make_batch: Callable) -> None:
    validation = [make_batch(composed, seed) for seed in range(100, 130, 5)]
    made = private_source_average(composed, validation, epsilon=math.inf, most_shots=4)
    accuracy = {}
    for trust in TRUSTS:
        right = []
        for batch in validation:
            said = replace(made, trust=trust)(batch).argmax(-1)
            right.append((said == batch.query.labels)[batch.query.mask])
        accuracy[trust] = torch.cat(right).double().mean().item()
    assert accuracy[made.trust] == max(accuracy.values())
    assert made.name == "average of all sources, weighted privately (epsilon inf)"
    with pytest.raises(ValueError, match="no validation episodes"):
        private_source_average(composed, [])


def test_every_call_draws_noise_anew_and_a_seed_gives_it_again(composed: ComposedLibrary, make_batch: Callable) -> None:
    pytest.importorskip("dp_accounting", reason="optional dependency: pip install 'pyro-smat[privacy]'")
    batch = make_batch(composed)
    mechanism = PrivateEvidence.on_public([batch], epsilon=1.0, most_shots=4)
    noisy = PrivateSourceAverage(composed, mechanism, seed=3)
    first, second = noisy(batch), noisy(batch)
    assert not torch.allclose(first, second)
    assert torch.equal(PrivateSourceAverage(composed, mechanism, seed=3)(batch), first)
