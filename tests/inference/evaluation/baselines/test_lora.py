"""LoRA against a plain Adam loop on one episode, and the rank of what it changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from pyro_smat.inference.evaluation.baselines import BestSource, ComposedLibrary, LoRA, SingleSource
from pyro_smat.networks.composition import TaskNetwork
from pyro_smat.networks.features import SourceFeatures
from pyro_smat.networks.parameters import ParameterSpace
from pyro_smat.sources import SourceLibrary


def test_against_a_loop(composed: ComposedLibrary, make_batch: Callable, support_loss_by_hand: Callable) -> None:
    batch = make_batch(composed)
    found = LoRA(BestSource(composed), rank=2, steps=6, learning_rate=0.05, seed=3).parameters(batch)
    for i in (0, 2, 3):
        start = BestSource(composed).parameters(batch)[i]
        generator = torch.Generator().manual_seed(3)
        down = (torch.randn(2, 4, generator=generator).double() / 2).requires_grad_()
        up = torch.zeros(5, 2, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([up, down], lr=0.05)

        def changed(start=start, up=up, down=down):  # type: ignore[no-untyped-def]
            return torch.cat([start[:20] + (up @ down).flatten() / 2, start[20:]])

        for _ in range(6):
            optimizer.zero_grad()
            support_loss_by_hand(changed(), batch, i).backward()
            optimizer.step()
        torch.testing.assert_close(found[i], changed().detach(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("rank", [1, 2, 8])
def test_rank_of_the_change(rank: int, make_batch: Callable) -> None:
    """Of a network with a convolution, a linear layer, biases and running statistics."""
    module = torch.nn.Sequential(
        torch.nn.Conv2d(1, 6, 2, padding=1), torch.nn.BatchNorm2d(6), torch.nn.Flatten(), torch.nn.Linear(54, 7)
    )
    space = ParameterSpace.from_module(module)
    basis = torch.rand(3, space.dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    composed = ComposedLibrary(TaskNetwork(module, space), SourceLibrary(("a", "b", "c"), basis, space))
    batch = make_batch(composed)
    start = SingleSource(composed)
    change = LoRA(start, rank=rank, steps=3).parameters(batch) - start.parameters(batch)
    for entry, change_of in zip(space.entries, space.unflatten(change).values(), strict=True):
        if entry.name not in ("0.weight", "3.weight"):
            assert not change_of.any()
            continue
        matrices = change_of.flatten(2) if change_of.ndim > 3 else change_of
        if entry.name == "0.weight":
            matrices = change_of.flatten(2).flatten(2)  # (B, 6, 4)
        ranks = torch.linalg.matrix_rank(matrices, rtol=1e-9)
        assert ranks.tolist() == [min(rank, *matrices.shape[1:])] * len(batch)


def test_episodes_are_fitted_apart(composed: ComposedLibrary, make_batch: Callable) -> None:
    batch = make_batch(composed)
    lora = LoRA(BestSource(composed), rank=2, steps=4)
    together = lora.parameters(batch)
    features = SourceFeatures(composed.network, composed.sources)
    for i in range(len(batch)):
        alone = features.attach(replace(batch, support=replace(batch.support, features=None))[i : i + 1])
        torch.testing.assert_close(lora.parameters(alone)[0], together[i], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("settings", [{"rank": 0}, {"steps": 0}, {"learning_rate": 0.0}])
def test_bad_settings(settings: dict[str, Any], composed: ComposedLibrary) -> None:
    with pytest.raises(ValueError, match="expected at least 1, at least 1, and above 0"):
        LoRA(SingleSource(composed), **settings)


def test_no_matrices() -> None:
    module = torch.nn.LayerNorm(4)
    space = ParameterSpace.from_module(module)
    library = SourceLibrary(("a",), torch.ones(1, space.dim), space)
    with pytest.raises(ValueError, match="no trainable weight of two dims or more"):
        LoRA(SingleSource(ComposedLibrary(TaskNetwork(module, space), library)))
