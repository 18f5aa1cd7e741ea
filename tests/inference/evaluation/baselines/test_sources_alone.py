"""Single sources by themselves: which one, and that cached features and networks agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.inference.evaluation.baselines import BestSource, ComposedLibrary, OracleSource, SingleSource
from pyro_smat.networks.features import SourceFeatures


def test_features_and_networks_agree(composed: ComposedLibrary, make_batch: Callable) -> None:
    batch = make_batch(composed)
    by_network = torch.stack(
        [composed.logits(s.expand(len(batch), -1), batch).softmax(-1) for s in composed.sources], 1
    )
    asked = SourceFeatures(composed.network, composed.sources).of(batch.query.images, batch.query.rows)
    cached = replace(batch, query=replace(batch.query, features=asked))
    for one in (batch, cached):
        torch.testing.assert_close(composed.source_probabilities(one), by_network)
    assert composed.source_probabilities(cached) is composed.source_probabilities(cached)  # the last batch is kept
    torch.testing.assert_close(SingleSource(composed, "source2")(batch), by_network[:, 2])
    torch.testing.assert_close(SingleSource(composed)(batch), by_network[:, 0])


def test_the_oracle_knows_the_route(composed: ComposedLibrary, make_batch: Callable) -> None:
    batch: EpisodeBatch = replace(make_batch(composed), route=torch.tensor([1, 0, 2, -1]))
    found = OracleSource(composed, (3, 1, -1))(batch)
    for i, source in enumerate((1, 3, 0, 0)):  # nobody knows route 2, and nothing is known of the last
        torch.testing.assert_close(found[i], composed.source_probabilities(batch)[i, source])


def test_the_best_source_by_hand(composed: ComposedLibrary, make_batch: Callable) -> None:
    batch = make_batch(composed)
    losses = torch.stack([composed.support_loss(s.expand(len(batch), -1), batch) for s in composed.sources], 1)
    best = losses.argmin(1)
    found = BestSource(composed)
    assert torch.equal(found.parameters(batch), composed.sources[best])
    for i in range(len(batch)):
        torch.testing.assert_close(found(batch)[i], composed.source_probabilities(batch)[i, best[i]])


def test_unknown_sources_are_refused(composed: ComposedLibrary) -> None:
    with pytest.raises(ValueError, match="source is 'z'; expected one of source0, source1, source2, source3"):
        SingleSource(composed, "z")
