"""Running statistics measured anew: exactly the pooled mean and variance of what each layer sees."""

from __future__ import annotations

import pytest
import small_networks as networks
import torch
from torch import Tensor, nn

from pyro_smat.networks import Conv4
from pyro_smat.networks.parameters import ParameterSpace
from pyro_smat.sources.alignment import interpolate, recompute_statistics


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.ReLU(inplace=True), nn.Conv2d(4, 3, 3),
        nn.BatchNorm2d(3), nn.Flatten(), nn.LazyLinear(5), nn.BatchNorm1d(5, momentum=None),
    )  # fmt: skip


def _pooled(values: Tensor) -> tuple[Tensor, Tensor]:
    flat = values.double().transpose(0, 1).flatten(1)
    return flat.mean(1).float(), flat.var(1).float()


def test_statistics_are_pooled_over_all_images_and_batches():
    network, images = _network(), torch.rand(11, 2, 8, 8) * 3 + 100  # a large mean: one-pass sums would lose digits
    network.eval()(images)
    state = recompute_statistics(network, network.state_dict(), images, batch_size=5)

    x = network[0](images)
    expected = {1: _pooled(x)}
    parts = [  # two batches, of 6 and 5; each is normalised by itself on the way to the next layer
        torch.nn.functional.batch_norm(part, None, None, network[1].weight, network[1].bias, training=True)
        for part in x.split([6, 5])
    ]
    parts = [network[4](part.relu()) for part in parts]
    expected[5] = _pooled(torch.cat(parts))
    parts = [
        network[7](
            torch.nn.functional.batch_norm(part, None, None, network[5].weight, network[5].bias, True).flatten(1)
        )
        for part in parts
    ]
    expected[8] = _pooled(torch.cat(parts))
    for layer, (mean, variance) in expected.items():
        torch.testing.assert_close(state[f"{layer}.running_mean"], mean, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(state[f"{layer}.running_var"], variance, atol=1e-5, rtol=1e-4)


def test_only_running_statistics_change_and_the_module_does_not():
    network, images = _network(), torch.rand(6, 2, 8, 8)
    network.eval()(images)
    network.train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = recompute_statistics(network, before, images)
    changed = {name for name in before if not torch.equal(state[name], before[name])}
    assert changed == {f"{n}.running_{kind}" for n in (1, 5, 8) for kind in ("mean", "var")}
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert network.training


def test_a_flat_theta_goes_in_as_its_views():
    network, images = networks.Residual(), torch.rand(6, 3, 8, 8)
    space = ParameterSpace.from_module(network)
    theta = space.flatten(network.state_dict())
    repaired = recompute_statistics(network, space.unflatten(theta), images)
    from_dict = recompute_statistics(network, network.state_dict(), images)
    assert torch.equal(space.flatten(repaired), space.flatten(from_dict))
    assert torch.equal(space.flatten(repaired)[space.trainable()], theta[space.trainable()])


def test_mixed_networks_get_their_variance_back():
    """REPAIR: the mean of two strangers' statistics overstates the variance of the mixed activations."""
    torch.manual_seed(0)
    images = torch.rand(64, 3, 8, 8)
    ends = [recompute_statistics(net, net.state_dict(), images) for net in (networks.Residual(), networks.Residual())]
    mixed = interpolate(ends[0], ends[1], 0.5)
    repaired = recompute_statistics(networks.Residual(), mixed, images)
    ratio = repaired["inner.1.4.running_var"] / mixed["inner.1.4.running_var"]
    assert ratio.mean() < 0.8


def test_networks_without_batch_normalisation_come_back_as_they_were():
    network = Conv4(1, 8, 16)
    state = recompute_statistics(network, network.state_dict(), torch.rand(4, 1, 16, 16))
    assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())


def test_bad_input_is_refused():
    network = networks.mlp()
    with pytest.raises(ValueError, match="1 images in batches of 128; expected at least 2 of each"):
        recompute_statistics(network, network.state_dict(), torch.rand(1, 6))
    with pytest.raises(ValueError, match="4 images in batches of 1; expected at least 2"):
        recompute_statistics(network, network.state_dict(), torch.rand(4, 6), batch_size=1)
    with pytest.raises(ValueError, match=r"weights do not fit Sequential:\n  missing: 0\.weight"):
        recompute_statistics(network, {"x": torch.zeros(1)}, torch.rand(4, 6))
