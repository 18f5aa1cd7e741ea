"""What is wrong with a network is said where it is given, with how to mend it, and the mended one works."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyro_smat.episodes import EpisodeBatch, EpisodeSampler, glyph_pool
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.deployment.network_check import check_runs, unfit_images
from pyro_smat.networks import ParameterSpace, Preprocessing, TaskNetwork


class Net(nn.Module):
    """Statistics of the pixels, mixed; what is done with them afterwards is given."""

    def __init__(self, last: Callable[[Tensor], Tensor] = lambda x: x.mean((2, 3)), channels: int = 3) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.conv(x)))


def made(network: Any, sources: Any = None, shape: Any = (3, 8, 8), **options: Any) -> RoutedClassifier:
    found = {"a": network, "b": network} if sources is None else sources
    return RoutedClassifier.from_sources(found, network=network, image_shape=shape, **options)


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return Net()


IMAGES, LABELS = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), ["x", "x", "y", "y"]


@pytest.mark.parametrize(
    ("network", "shape", "message"),
    [
        (Net, (3, 8, 8), r"network is the class Net; expected an instance: Net\(\.\.\.\)"),
        (7, (3, 8, 8), r"network is a int, 7; expected a torch.nn.Module"),
        (nn.DataParallel(Net()), (3, 8, 8), r"is a DataParallel, .*; expected the network inside: network\.module"),
        (nn.Sequential(nn.LazyConv2d(3, 3)), (3, 8, 8), r"lazy layers without shapes yet \(\['0.weight', '0.bias'\]\)"),
        (on_meta(), (3, 8, 8), r"on the meta device, so \['norm.num_batches_tracked'\] have no values"),
        (Net(channels=1), (3, 8, 8), r"cannot run on images \(3, 8, 8\): .*; it can on \(1, 8, 8\): expected such"),
        (Net(), (1, 8, 8), r"cannot run on images \(1, 8, 8\): .* image_shape=\(3, 8, 8\)"),
        (Net(lambda x: x[..., :18, :18].unfold(2, 18, 18).flatten(1)), (3, 8, 8), r"it can on \(3, 32, 32\)"),
        (Net(lambda x: x @ torch.zeros(7)), (3, 8, 8), r"on images \(3, 8, 8\): .*takes images \(n, 3, 8, 8\)"),
        (Net(lambda x: x), (3, 8, 8), r"gives \(2, 4, 6, 6\) for 2 images; expected features .* pool the map"),
        (Net(lambda x: x.flatten(2)), (3, 8, 8), r"gives \(2, 4, 36\) .* these are tokens"),
        (Net(lambda x: x.flatten(1)[:, 0]), (3, 8, 8), r"gives \(2,\) .* \.unsqueeze\(1\)"),
        (Net(), 8, r"image_shape is 8; expected \(channels, height, width\) such as"),
        (Net(), (8, 8), r"image_shape is \(8, 8\); expected \(channels, height, width\)"),
        (Net(), (8, 8, 3), r"image_shape is \(8, 8, 3\); expected 1 or 3 channels and square images"),
        (Net(), (1, 0, 0), r"image_shape is \(1, 0, 0\); expected"),
    ],
)
def test_what_is_wrong_is_said_where_the_network_is_given(network: Any, shape: Any, message: str) -> None:
    sources = {"a": Net().state_dict()} if isinstance(network, nn.Module) and "meta" in message else None
    with pytest.raises(ValueError, match=message):
        made(network, sources, shape)


def test_what_the_messages_ask_for_works() -> None:
    parallel = nn.DataParallel(Net())
    lazy = nn.Sequential(nn.LazyConv2d(3, 3), nn.Flatten())
    lazy(IMAGES)
    for network, shape in ((parallel.module, (3, 8, 8)), (lazy, (3, 8, 8)), (Net(channels=1), (1, 8, 8))):
        assert set(made(network, shape=shape).adapt(IMAGES, LABELS).predict(IMAGES)) <= {"x", "y"}


def test_short_memory_is_no_fault_of_the_images() -> None:
    network = TaskNetwork(Net(), ParameterSpace.from_module(Net()))
    theta = torch.zeros(network.space.dim)
    short = torch.OutOfMemoryError("CUDA out of memory")
    assert unfit_images(network, theta, (3, 8, 8), short) is short
    check_runs(network, theta, (3, 8, 8))


def test_adapt_says_it_too_of_batches_of_other_images() -> None:
    episode = EpisodeSampler(glyph_pool("validation"), 2, 2, 1).episode()
    with pytest.raises(ValueError, match=r"cannot run on images \(1, 32, 32\): .*; it can on \(3, 32, 32\)"):
        list(made(Net()).adapt_many([EpisodeBatch.collate([episode])]))


def test_validation_is_a_sampler_of_such_images() -> None:
    pool = glyph_pool("validation")
    with pytest.raises(ValueError, match=r"validation is a ImagePool; expected a sampler of episodes: Ep"):
        made(Net(channels=1), shape=(1, 32, 32), validation=pool)
    sampler = EpisodeSampler(pool, 3, 2, 1)
    with pytest.raises(ValueError, match=r"are \(1, 32, 32\) and image_shape is \(3, 16, 16\); .* size=16, channels=3"):
        made(Net(), shape=(3, 16, 16), validation=sampler)


@pytest.mark.parametrize("device", ["gpu", "tpu:0"])
def test_devices_are_those_of_load(device: str) -> None:
    with pytest.raises(ValueError, match=rf"device is '{device}'; expected 'auto', 'cpu', 'cuda' or 'mps'"):
        made(Net(), device=device)
    found = made(Net(), device="auto").router.device
    assert found.type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_who_normalises_is_said_by_the_network() -> None:
    normalised = (IMAGES - 0.5) / 0.2
    plain, step = Net(), Preprocessing((0.5,) * 3, (0.2,) * 3)
    with pytest.raises(ValueError, match=r"undo it, and where .* Preprocessing\(mean, std\)\.attach\(network\)"):
        made(plain).adapt(normalised, LABELS)
    mended = made(step.attach(plain))
    with pytest.raises(ValueError, match="undo it, the network does that itself"):
        mended.adapt(normalised, LABELS)
    assert mended.adapt(IMAGES, LABELS).classes == ("x", "y")


def test_load_takes_an_instance(tmp_path: Path) -> None:
    network = Net()
    made(network).save(tmp_path)
    with pytest.raises(ValueError, match=r"network is the class Net; expected an instance: Net\(\.\.\.\)"):
        RoutedClassifier.load(tmp_path, network=Net)  # type: ignore[arg-type]
    assert RoutedClassifier.load(tmp_path, network=Net()).source_names == ("a", "b")
