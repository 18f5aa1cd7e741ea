"""Sources whose features are not finite are named, and no task answers with them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pyro_smat import RoutedClassifier

LABELS = [0, 0, 1, 1]


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.BatchNorm1d(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).masked_fill(x.flatten(1)[:, :1] > 0.99, torch.nan)  # as an overflow would be


def router(variance: float) -> RoutedClassifier:
    torch.manual_seed(0)
    sources = {name: Normalised().eval() for name in ("pre", "good", "merged")}
    sources["merged"].layers[2].running_var[1] = variance
    return RoutedClassifier.from_sources(sources, network=Normalised(), image_shape=(3, 8, 8))


def images(count: int) -> Tensor:
    return 0.9 * torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_a_source_of_negative_variance_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"under source 'merged' \(layers\.2\.running_var goes down to -1\.6: variances"
    ):
        router(-1.6).adapt(images(4), LABELS)
    with pytest.raises(ValueError, match="under source 'merged'"):
        list(router(-1.6).adapt_many([(images(4), LABELS)]))


def test_queries_whose_probabilities_are_not_finite_have_no_answer() -> None:
    task = router(1.0).adapt(images(4), LABELS)
    asked = images(3)
    assert len(task.predict(asked)) == 3
    asked[1] = 1.0
    for ask in (task.predict, task.predict_proba, lambda x: task.predict_sets(x, 0.9)):
        with pytest.raises(ValueError, match=r"probabilities of images \[1\] are NaN or infinite"):
            ask(asked)
