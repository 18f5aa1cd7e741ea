"""Descriptors against loops over probes, and what they must not depend on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pyro_smat.networks.composition import TaskNetwork
from pyro_smat.networks.descriptors import CHANGES, DESCRIPTORS, probe_images, source_descriptors
from pyro_smat.networks.parameters import ParameterSpace


class Rotated(nn.Module):
    """Features that a quarter turn of the image does not change, times a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(64, 6)

    def forward(self, x: Tensor) -> Tensor:
        turned = torch.stack([x.rot90(k, (-2, -1)) for k in range(4)]).mean(0)
        return self.last(turned.flatten(1)).relu()


def world(module: nn.Module, sources: int = 3, seed: int = 0) -> tuple[TaskNetwork, Tensor]:
    space = ParameterSpace.from_module(module)
    generator = torch.Generator().manual_seed(seed)
    return TaskNetwork(module, space), torch.randn(sources, space.dim, generator=generator, dtype=torch.float64)


def plain_module() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU())


def test_every_number_by_a_loop() -> None:
    network, basis = world(plain_module())
    images = probe_images(1, 8).double()
    found = source_descriptors(network, basis, images)
    assert found.shape == (3, len(DESCRIPTORS))
    gram_of = []
    for row, numbers in zip(basis, found, strict=True):
        plain = [network(row, image.unsqueeze(0))[0] for image in images]
        centre = sum(plain) / len(plain)
        expected = []
        for change in CHANGES.values():
            after = [network(row, change(image.unsqueeze(0)))[0] for image in images]
            own, others = [], []
            for i, a in enumerate(plain):
                for j, b in enumerate(after):
                    cosine = torch.cosine_similarity(a - centre, b - centre, dim=0).item()
                    (own if i == j else others).append(cosine)
            expected.append(sum(own) / len(own) - sum(others) / len(others))
        pairs = [
            torch.cosine_similarity(a, b, dim=0).item()
            for i, a in enumerate(plain)
            for j, b in enumerate(plain)
            if i != j
        ]
        points = torch.stack(plain) - centre
        variances = torch.linalg.svdvals(points).square()
        gram = points @ points.T
        gram_of.append(gram)
        cka = (gram * gram_of[0]).sum() / gram.norm() / gram_of[0].norm()
        expected += [
            sum(pairs) / len(pairs),
            (variances.sum() ** 2 / variances.square().sum() / len(plain)).item(),
            (variances.max() / variances.sum()).item(),
            (torch.stack(plain) == 0).double().mean().item(),
            cka.item(),
        ]
        torch.testing.assert_close(numbers.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-6)


def test_an_invariance_of_the_network_shows() -> None:
    images = probe_images(1, 8).double()
    turned, plain = world(Rotated()), world(plain_module())
    invariant, other = (source_descriptors(*w, images) for w in (turned, plain))
    torch.testing.assert_close(invariant[:, 0], invariant[:, 1])  # a quarter turn and a half turn
    assert (invariant[:, 0] > 0.9).all()
    assert (other[:, 0] < 0.5).all()


def test_the_basis_of_the_features_does_not_matter() -> None:
    """Scaling all features, or permuting them, changes no number."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 6))
    space = ParameterSpace.from_module(module)
    network = TaskNetwork(module, space)
    weight, bias = torch.randn(6, 64).double(), torch.randn(6).double()
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    rows = torch.stack(
        [
            space.flatten({"1.weight": weight, "1.bias": bias}),
            space.flatten({"1.weight": 3 * weight[order], "1.bias": 3 * bias[order]}),
        ]
    )
    found = source_descriptors(network, rows, probe_images(1, 8).double())
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 28, 96])
def test_probes_are_images_with_ilr_and_always_the_same(channels: int, size: int) -> None:
    probes = probe_images(channels, size)
    assert probes.shape[1:] == (channels, size, size)
    assert probes.min() >= 0
    assert probes.max() <= 1
    assert (probes.flatten(1).std(1) > 0.1).all()
    assert torch.equal(probes, probe_images(channels, size))
    assert not torch.equal(probes, probe_images(channels, size, seed=1))


def test_a_dead_source_is_finite_and_one_probe_is_refused() -> None:
    network, basis = world(plain_module())
    found = source_descriptors(network, torch.zeros_like(basis), probe_images(1, 8).double())
    assert torch.isfinite(found).all()
    with pytest.raises(ValueError, match="1 probe"):
        source_descriptors(network, basis, probe_images(1, 8)[:1])
