"""Loss barriers: closed forms, and a permuted copy before and after alignment."""

from __future__ import annotations

import pytest
import small_networks as networks
import torch
from torch import Tensor
from torch.func import functional_call

from pyro_smat.sources.alignment import (
    Segment,
    align_weights,
    find_groups,
    interpolate,
    loss_along,
    permute,
    random_permutations,
    recompute_statistics,
)


def test_a_quadratic_has_a_barrier_in_closed_form():
    """L(x) = -x^2 from 0 to 4: the line between the ends is -16 t, the excess 16 t - 16 t^2, at most 4."""
    a, b = {"x": torch.tensor(0.0)}, {"x": torch.tensor(4.0)}
    segment = loss_along(a, b, lambda s: -s["x"].square().item())
    assert segment.positions == tuple(k / 10 for k in range(11))
    assert segment.barrier == pytest.approx(4)
    assert segment.excess[3] == pytest.approx(16 * 0.3 * 0.7)
    assert loss_along(a, b, lambda s: s["x"].square().item(), (0, 0.2, 1)).barrier == 0  # convex: no barrier


def test_the_ends_are_the_networks_bit_for_bit():
    a, b = {"x": torch.randn(50), "n": torch.tensor(1)}, {"x": torch.randn(50) * 1e-8, "n": torch.tensor(5)}
    for t, end in ((0.0, a), (1.0, b)):
        assert torch.equal(interpolate(a, b, t)["x"], end["x"])
    half = interpolate(a, b, 0.5)
    torch.testing.assert_close(half["x"], (a["x"] + b["x"]) / 2)
    assert half["n"] == 1


@pytest.mark.parametrize("build", [networks.mlp, networks.Residual])
def test_aligning_a_permuted_copy_removes_the_barrier(build):
    torch.manual_seed(0)
    network = build().eval()
    inputs = torch.rand(32, 6) if build is networks.mlp else torch.rand(32, 3, 8, 8)
    spec = find_groups(network, inputs[:2])
    a = recompute_statistics(network, network.state_dict(), inputs)  # activations of unit scale
    b = permute(a, spec, random_permutations(spec, torch.Generator().manual_seed(1)))
    targets = functional_call(network, a, (inputs,)).detach()

    def loss(state: dict[str, Tensor]) -> float:
        return (functional_call(network, state, (inputs,)) - targets).square().mean().item() / targets.var(
            0
        ).mean().item()

    before = loss_along(a, b, loss)
    after = loss_along(a, align_weights(b, a, spec).state, loss)
    assert before.losses[0] < 1e-9 > before.losses[-1]  # the same function at both ends
    assert before.barrier > 0.05
    assert after.barrier < 1e-9


@pytest.mark.parametrize(
    "positions", [1, 0, (0.0,), (0.1, 1.0), (0.0, 0.9), (0.0, 0.5, 0.5, 1.0), (0.0, 0.7, 0.2, 1.0)]
)
def test_positions_must_run_from_one_end_to_the_other(positions):
    a = {"x": torch.zeros(1)}
    with pytest.raises(ValueError, match="expected at least two, increasing from 0 to 1"):
        loss_along(a, a, lambda s: 0.0, positions)


def test_bad_networks_and_losses_are_named():
    a = {"x": torch.zeros(1), "y": torch.zeros(2)}
    with pytest.raises(ValueError, match=r"differ in tensors \['x', 'z'\]"):
        loss_along(a, {"x": torch.zeros(3), "y": torch.zeros(2), "z": torch.zeros(1)}, lambda s: 0.0)
    with pytest.raises(ValueError, match=r"the loss is nan at t = 0\.5"):
        loss_along({"x": torch.zeros(1)}, {"x": torch.ones(1)}, lambda s: float("nan") if 0 < s["x"] < 1 else 0.0, 3)


def test_the_barrier_of_given_losses():
    assert Segment((0.0, 0.25, 1.0), (1.0, 3.0, 2.0)).barrier == pytest.approx(3 - 1.25)
