"""Routing by subspace residual: against projections by hand, and that it is told by name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from pyro_smat.inference.evaluation.baselines import ComposedLibrary, SubspaceResidual
from pyro_smat.registry import build, choose
from pyro_smat.sources import FeatureSubspace, fit_subspace


@pytest.fixture
def subspaces() -> dict[str, FeatureSubspace]:
    """Of all sources but the third."""
    generator = torch.Generator().manual_seed(1)
    return {
        f"source{r}": fit_subspace(torch.randn(30, 5, generator=generator) * torch.tensor([3, 2, 1, 0.5, 0.1]), rank=2)
        for r in (0, 1, 3)
    }


def residual_by_hand(subspace: FeatureSubspace, points: np.ndarray) -> np.ndarray:
    """Least squares on the directions, image by image."""
    left = []
    for point in points:
        deviation = point - subspace.mean.double().numpy()
        fitted = subspace.directions.double().numpy().T
        rest = deviation - fitted @ np.linalg.lstsq(fitted, deviation, rcond=None)[0]
        left.append(rest @ rest / (deviation @ deviation))
    return np.array(left)


@pytest.mark.parametrize("calibrated", [True, False])
def test_the_source_of_the_smallest_residual(
    calibrated: bool, composed: ComposedLibrary, make_batch: Callable, subspaces: dict[str, FeatureSubspace]
) -> None:
    batch = make_batch(composed)
    hard = SubspaceResidual(composed, subspaces, calibrated=calibrated)
    soft = SubspaceResidual(composed, subspaces, temperature=0.3, calibrated=calibrated)
    support, _ = composed.source_features(batch)
    alone = composed.source_probabilities(batch)
    chosen = []
    for i in range(len(batch)):
        shots = support[i][:, batch.support.mask[i]].numpy()
        expected = np.full(4, np.inf)
        for r in (0, 1, 3):
            one = subspaces[f"source{r}"]
            expected[r] = residual_by_hand(one, shots[r]).mean() / (one.usual if calibrated else 1)
        np.testing.assert_allclose(hard.residuals(batch)[i], expected, rtol=1e-5)
        chosen.append(int(expected.argmin()))
        torch.testing.assert_close(hard(batch)[i], alone[i, chosen[-1]])
        weights = np.exp(-expected / 0.3) / np.exp(-expected / 0.3).sum()
        mixed = sum(w * alone[i, r] for r, w in enumerate(weights.tolist()))
        torch.testing.assert_close(soft(batch)[i], mixed, rtol=1e-5, atol=1e-7)
    assert 2 not in chosen


def test_by_name(composed: ComposedLibrary, make_batch: Callable, subspaces: dict[str, FeatureSubspace]) -> None:
    choice = choose("baseline", {"kind": "subspace_residual", "temperature": 0.5})
    made = build(choice, {"composed": composed, "subspaces": subspaces})
    batch = make_batch(composed)
    torch.testing.assert_close(made(batch), SubspaceResidual(composed, subspaces, temperature=0.5)(batch))
    with pytest.raises(ValueError, match=r"none of the sources source0.* has a subspace .*pyro-smat sources subspace"):
        build(choice, {"composed": composed, "subspaces": {}})
    with pytest.raises(ValueError, match="temperature is 0"):
        SubspaceResidual(composed, subspaces, temperature=0.0)
