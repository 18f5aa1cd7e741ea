"""Mixtures fitted by Frank-Wolfe: local optimality checked by hand, hindsight against every source."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyro_smat.inference.evaluation.baselines import (
    ComposedLibrary,
    HindsightMixture,
    HindsightSource,
    SupportMixture,
    SupportOracle,
)
from pyro_smat.networks.composition import TaskNetwork
from pyro_smat.networks.parameters import ParameterSpace
from pyro_smat.sources import SourceLibrary

SEVERAL_SHOTS = (0, 2, 3)  # episodes whose support loss the fixture knows


def weights_of(theta: Tensor, sources: Tensor) -> Tensor:
    """The weights ``(B, R)`` that made theta ``(B, d)``, and a check that there are such in the simplex."""
    weights = torch.linalg.lstsq(sources.T, theta.T).solution.T
    torch.testing.assert_close(weights @ sources, theta, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weights.sum(-1), torch.ones(len(theta), dtype=theta.dtype), rtol=1e-6, atol=1e-6)
    assert weights.min() > -1e-6
    return weights.clamp(min=0)


def test_mixture_of_two_is_a_local_optimum(
    composed: ComposedLibrary, make_library: Callable, make_batch: Callable, support_loss_by_hand: Callable
) -> None:
    for seed in range(3):
        pair = make_library(composed.sources[seed : seed + 2])
        batch = make_batch(pair, seed)
        theta = SupportMixture(pair, steps=40).parameters(batch)
        w = weights_of(theta, pair.sources)[:, 0]
        for i in SEVERAL_SHOTS:

            def loss(share: Tensor, i: int = i, batch=batch, pair=pair) -> Tensor:  # type: ignore[no-untyped-def]
                return support_loss_by_hand(share * pair.sources[0] + (1 - share) * pair.sources[1], batch, i)

            assert loss(w[i]) <= loss(torch.tensor(0.5)) + 1e-12
            for neighbour in (w[i] - 0.02, w[i] + 0.02):
                assert loss(w[i]) <= loss(neighbour.clamp(0, 1)) + 1e-4


def test_hindsight_source_is_the_minimum(
    composed: ComposedLibrary, make_batch: Callable, query_loss_by_hand: Callable
) -> None:
    batch = make_batch(composed)
    best = HindsightSource(composed).parameters(batch)
    for i in range(len(batch)):
        losses = torch.stack([query_loss_by_hand(source, batch, i) for source in composed.sources])
        assert torch.equal(best[i], composed.sources[losses.argmin()])


def test_hindsight_mixture_beats_every_source(
    composed: ComposedLibrary, make_batch: Callable, query_loss_by_hand: Callable
) -> None:
    batch = make_batch(composed)
    theta = HindsightMixture(composed, steps=10).parameters(batch)
    weights_of(theta, composed.sources)
    better = []
    for i in range(len(batch)):
        loss = query_loss_by_hand(theta[i], batch, i)
        others = [*composed.sources, composed.sources.mean(0)]
        least = torch.stack([query_loss_by_hand(other, batch, i) for other in others]).min()
        assert loss <= least + 1e-6
        better.append(bool(loss < least - 1e-2))
    assert any(better)  # mixing does something that no source does


@pytest.mark.parametrize("nonzeros", [1, 5])
def test_support_oracle(
    nonzeros: int, composed: ComposedLibrary, make_batch: Callable, support_loss_by_hand: Callable
) -> None:
    batch = make_batch(composed)
    oracle = SupportOracle(composed, nonzeros)
    mixture, residual = oracle.solve(batch)
    weights_of(mixture, composed.sources)
    assert (residual != 0).sum(-1).tolist() == [nonzeros] * len(batch)
    theta = oracle.parameters(batch)
    torch.testing.assert_close(theta, mixture + residual)
    for i in SEVERAL_SHOTS:
        loss = support_loss_by_hand(theta[i], batch, i)
        for other in (*composed.sources, composed.sources.mean(0)):
            assert loss < support_loss_by_hand(other, batch, i)


def test_a_large_ridge_leaves_the_mixture(composed: ComposedLibrary, make_batch: Callable) -> None:
    _, residual = SupportOracle(composed, 5, ridge=1e6).solve(make_batch(composed))
    assert residual.norm(dim=-1).max() < 1e-3


def test_blockwise_mixture(make_batch: Callable, support_loss_by_hand: Callable) -> None:
    """With blocks, every block has weights of its own, which a single mixture cannot follow."""
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 5), torch.nn.Tanh())
    space = ParameterSpace.from_module(module, {"weight": ".*weight", "bias": ".*bias"})
    basis = 0.7 * torch.randn(3, 25, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    composed = ComposedLibrary(TaskNetwork(module, space), SourceLibrary(("a", "b", "c"), basis, space))
    batch = make_batch(composed)
    theta = SupportMixture(composed, steps=10).parameters(batch)
    for_weight = weights_of(theta[:, :20], basis[:, :20])
    for_bias = weights_of(theta[:, 20:], basis[:, 20:])
    assert (for_weight - for_bias).abs().max() > 0.05
    for i in SEVERAL_SHOTS:
        assert support_loss_by_hand(theta[i], batch, i) < support_loss_by_hand(basis.mean(0), batch, i)


def test_bad_settings(composed: ComposedLibrary) -> None:
    for kind in (SupportMixture, HindsightMixture):
        with pytest.raises(ValueError, match="steps is 0; expected at least 1 Frank-Wolfe step"):
            kind(composed, steps=0)
    with pytest.raises(ValueError, match=r"rounds is 0 and mixture_steps 5; expected at least 1"):
        SupportOracle(composed, 3, rounds=0)
    with pytest.raises(ValueError, match=r"nonzeros is 26; expected a budget in \[1, 25\]"):
        SupportOracle(composed, 26)
