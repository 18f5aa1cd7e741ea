"""The aligned source: against gradient steps on the whole f x f map, an episode at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from pyro_smat.inference.evaluation.baselines import AlignedSource, ComposedLibrary, SingleSource
from pyro_smat.networks.heads import similarities


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_the_steps_are_those_on_the_whole_map(metric: str, composed: ComposedLibrary, make_batch: Callable) -> None:
    batch = make_batch(composed)
    composed = replace(composed, metric=metric)
    found = AlignedSource(composed, "source2", steps=6, learning_rate=0.2)(batch)
    support, query = (part[:, 2] for part in composed.source_features(batch))
    for i in range(len(batch)):
        shots, asked, way = batch.support.mask[i], batch.query.mask[i], int(batch.way[i])
        known, labels = support[i][shots], batch.support.labels[i][shots]
        matrix = torch.eye(5, dtype=torch.float64, requires_grad=True)

        def logits(points: torch.Tensor) -> torch.Tensor:
            moved = known @ matrix.mT  # noqa: B023 (called inside the iteration)
            centres = torch.stack([moved[labels == k].mean(0) for k in range(way)])  # noqa: B023
            return 10 * similarities(points @ matrix.mT, centres, metric)  # type: ignore[arg-type]  # noqa: B023

        for _ in range(6):
            (gradient,) = torch.autograd.grad(F.cross_entropy(logits(known), labels), matrix)
            matrix = (matrix - 0.2 * gradient).detach().requires_grad_()
        expected = logits(query[i][asked]).softmax(-1).detach()
        torch.testing.assert_close(found[i][asked][:, :way], expected, rtol=1e-6, atol=1e-8)


def test_no_step_is_the_source_by_itself(composed: ComposedLibrary, make_batch: Callable) -> None:
    batch = make_batch(composed)
    aligned = AlignedSource(composed, "source1", steps=0)
    torch.testing.assert_close(
        aligned(batch)[batch.query.mask], SingleSource(composed, "source1")(batch)[batch.query.mask]
    )
    assert aligned.name == "source: source1, aligned"
    assert AlignedSource(composed).name == "source: source0, aligned"


@pytest.mark.parametrize("options", [{"steps": -1}, {"learning_rate": 0.0}, {"source": "nobody"}])
def test_what_cannot_be_is_refused(options: dict, composed: ComposedLibrary) -> None:
    with pytest.raises(ValueError, match="expected"):
        AlignedSource(composed, **options)
