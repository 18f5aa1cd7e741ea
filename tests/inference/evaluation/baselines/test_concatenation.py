"""Concatenation: against scikit-learn's kernel ridge regression on features that are really concatenated."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge

from pyro_smat.episodes import EpisodeSampler, glyph_pool
from pyro_smat.inference.assembly.config import RunConfig
from pyro_smat.inference.assembly.router import build_router
from pyro_smat.inference.evaluation.baselines import ComposedLibrary, Concatenation
from pyro_smat.inference.objective.reference import support_losses


def test_it_is_ridge_regression_on_all_features() -> None:
    router = build_router(RunConfig(experts={"count": 0}))
    batch = router.features().attach(EpisodeSampler(glyph_pool("validation"), (2, 4), (1, 3), 3, seed=2).sample(4))
    composed = ComposedLibrary.of(router.model)
    found = Concatenation(composed, temperature=0.5, ridge=0.7)(batch)
    weights = (-support_losses(batch) / 0.5).softmax(-1)
    support, query = (torch.nn.functional.normalize(part, dim=-1) for part in composed.source_features(batch))
    assert found.shape == (*batch.query.labels.shape, batch.max_way)
    for b in range(4):
        scaled = weights[b].sqrt().view(-1, 1, 1)
        shots, asked = batch.support.mask[b], batch.query.mask[b]
        known, new = ((part[b] * scaled).movedim(0, 1).flatten(1) for part in (support, query))
        way = int(batch.way[b])
        targets = np.eye(way)[batch.support.labels[b][shots].numpy()] - 1 / way
        ridge = KernelRidge(alpha=0.7).fit(known[shots].numpy(), targets)
        logits = composed.scale * torch.tensor(ridge.predict(new[asked].numpy()))
        torch.testing.assert_close(found[b][asked][:, :way].double(), logits.softmax(-1), rtol=1e-4, atol=1e-5)
        assert (found[b][asked][:, way:] == 0).all()


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"ridge": -1.0}])
def test_what_is_no_positive_number_is_refused(options: dict[str, float]) -> None:
    router = build_router(RunConfig(experts={"count": 0}))
    with pytest.raises(ValueError, match="expected numbers > 0"):
        Concatenation(ComposedLibrary.of(router.model), **options)
