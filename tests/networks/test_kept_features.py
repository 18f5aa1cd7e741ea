"""KeptFeatures: a pool is embedded once, whoever asks; never from a file of something else or a damaged one."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from torch import nn

from pyro_smat.episodes.pool import ImagePool
from pyro_smat.networks import ParameterSpace
from pyro_smat.networks.composition import TaskNetwork
from pyro_smat.networks.features import SourceFeatures
from pyro_smat.networks.kept_features import KeptFeatures
from pyro_smat.networks.network_features import NetworkFeatures


def pool(seed: int = 0) -> ImagePool:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (70, 1, 8, 8), dtype=torch.uint8, generator=generator)
    labels = torch.zeros(70, dtype=torch.long)
    return ImagePool(images, labels.unsqueeze(1), ("class",), (("a",),), labels)


def network(*after: nn.Module) -> TaskNetwork:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), *after)
    return TaskNetwork(module, ParameterSpace.from_module(module))


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Images that networks have seen."""
    seen: list[int] = []
    real = TaskNetwork.__call__
    monkeypatch.setattr(TaskNetwork, "__call__", lambda self, theta, x: seen.append(len(x)) or real(self, theta, x))
    return seen


def test_once_for_all_that_ask(tmp_path: Path, ran: list[int]) -> None:
    basis = torch.randn(2, 195)
    plain = SourceFeatures(network(), basis, pool()).of_pool()
    assert torch.equal(KeptFeatures(network(), basis, pool(), tmp_path).of_pool(), plain)
    ran.clear()
    assert torch.equal(KeptFeatures(network(), basis, pool(), tmp_path).of_pool(), plain)
    assert sum(ran) == 2  # to know that it is the network


@pytest.mark.parametrize("changed", ["network", "basis", "images", "dtype"])
def test_not_of_something_else(changed: str, tmp_path: Path) -> None:
    basis = torch.randn(2, 195)
    KeptFeatures(network(), basis, pool(), tmp_path).embed()
    other = network(nn.Tanh()) if changed == "network" else network()
    images = pool(1) if changed == "images" else pool()
    basis = basis + (changed == "basis")
    basis = basis.to(torch.bfloat16 if changed == "dtype" else torch.float32)
    found = KeptFeatures(other, basis, images, tmp_path).of_pool()
    assert torch.equal(found, SourceFeatures(other, basis, images).of_pool())
    assert len(list(tmp_path.iterdir())) == 2


def test_a_damaged_file_is_made_again(tmp_path: Path) -> None:
    basis = torch.randn(2, 195)
    plain = KeptFeatures(network(), basis, pool(), tmp_path).of_pool()
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert torch.equal(KeptFeatures(network(), basis, pool(), tmp_path).of_pool(), plain)
    assert len(path.read_bytes()) == len(whole)


def test_networks_that_tasks_share(tmp_path: Path, ran: list[int]) -> None:
    theta, rows = torch.randn(195), torch.tensor([[5, 3], [69, 5]])
    images = pool().at(rows)
    found = [NetworkFeatures(network(), pool(), folder=tmp_path).of("a", lambda: theta, images, rows) for _ in range(2)]
    assert found[0].shape == (2, 2, 3)
    assert torch.equal(*found)
    assert sum(ran) == 70 + 2


def test_a_pool_is_digested_once_for_all_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    own, images = network(), pool()
    monkeypatch.setattr(hashlib, "sha256", lambda data, _new=hashlib.sha256: asked.append(data.decode()) or _new(data))
    tables = [KeptFeatures(own, torch.full((1, own.space.dim), value), images, tmp_path) for value in (1.0, 2.0)]
    assert not tables[0].of_pool().equal(tables[1].of_pool())
    assert sum(data == "(70, 1, 8, 8)" for data in asked) == 1
    assert pool(0).digest == images.digest != pool(1).digest
