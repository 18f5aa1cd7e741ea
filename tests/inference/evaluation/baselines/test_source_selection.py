"""Selection of sources: against the objective written out on features that are really concatenated."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from pyro_smat.inference.evaluation.baselines import ComposedLibrary, Concatenation
from pyro_smat.inference.evaluation.baselines.source_selection import selected_weights


def test_the_steps_are_those_on_concatenated_features(composed: ComposedLibrary, make_batch: Callable) -> None:
    batch = make_batch(composed)
    support, _ = composed.source_features(batch)
    found = selected_weights(
        support, batch.support.labels, batch.support.mask, batch.class_mask, 10.0, steps=7, learning_rate=0.3
    )
    for i in range(len(batch)):
        shots = batch.support.mask[i]
        unit, labels = F.normalize(support[i][:, shots], dim=-1), batch.support.labels[i][shots]
        logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([logits], lr=0.3)
        for _ in range(7):
            optimizer.zero_grad()
            wide = torch.cat(list(unit * logits.softmax(0).sqrt().view(-1, 1, 1)), dim=-1)
            centres = torch.stack([wide[labels == k].mean(0) for k in range(int(batch.way[i]))])
            F.cross_entropy(10 * F.cosine_similarity(wide[:, None], centres, dim=-1), labels).backward()
            optimizer.step()
        torch.testing.assert_close(found[i], logits.detach().softmax(0), rtol=1e-6, atol=1e-9)


def test_a_source_that_sees_nothing_gets_no_weight_and_padding_has_no_say() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(5).repeat_interleave(4).unsqueeze(0)
    good = torch.eye(5)[labels[0]] + 0.1 * torch.randn(20, 5, generator=generator)
    features = torch.stack([good, torch.randn(20, 5, generator=generator), torch.randn(20, 5, generator=generator)])
    mask, classes = torch.ones(1, 20, dtype=torch.bool), torch.ones(1, 5, dtype=torch.bool)
    weights = selected_weights(features.unsqueeze(0), labels, mask, classes, 10.0)
    assert weights[0, 0] > 0.95
    padded = F.pad(features, (0, 0, 0, 3), value=7.0).unsqueeze(0)
    wider = selected_weights(padded, F.pad(labels, (0, 3)), F.pad(mask, (0, 3)), F.pad(classes, (0, 2)), 10.0)
    torch.testing.assert_close(wider, weights)


def test_concatenation_takes_them(composed: ComposedLibrary, make_batch: Callable) -> None:
    batch = make_batch(composed)
    chosen = Concatenation(composed, select=True)
    support, _ = composed.source_features(batch)
    expected = selected_weights(support, batch.support.labels, batch.support.mask, batch.class_mask, composed.scale)
    assert torch.equal(chosen.weights(batch), expected)
    assert chosen.name == "ridge on the features of all sources, selected by the support"
    assert not torch.allclose(chosen(batch), Concatenation(composed)(batch))
