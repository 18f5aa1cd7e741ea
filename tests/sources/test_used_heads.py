"""A head behind the features that is left out is warned of, with what to do; heads that do no harm are not."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pyro_smat.inference.assembly.config import RunConfig
from pyro_smat.inference.assembly.router import open_library
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.networks import build_network
from pyro_smat.sources import SourceLibrary
from pyro_smat.sources.used_heads import UsedHeadWarning, warn_of_used_head

SHAPE = (1, 8, 8)


class Classifier(nn.Module):
    """Body, normalisation and last layer in one head, and an auxiliary head that is not run."""

    def __init__(self, classes: int, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.body = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Flatten())
            self.head = nn.Sequential(nn.LayerNorm(216), nn.Linear(216, classes))
            self.auxiliary = nn.Linear(216, classes)
            nn.init.normal_(self.head[0].weight)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.head(self.body(images))
        return features


SOURCES = {"a": Classifier(4, 1), "b": Classifier(5, 2)}


def warned(
    module: nn.Module,
    head: tuple[str, ...],
    sources: dict[str, nn.Module] | None = None,
    shape: tuple[int, int, int] = SHAPE,
) -> str:
    """What is said; "" for nothing."""
    library = SourceLibrary.from_files(module, sources or SOURCES, head=head)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_used_head(module, library, shape)
    assert all(one.category is UsedHeadWarning for one in caught)
    return "".join(str(one.message) for one in caught)


def test_random_weights_behind_the_features() -> None:
    said = warned(Classifier(3), ("head.1.*", "auxiliary.*"))
    assert "features of Classifier pass through head.1.weight, head.1.bias, which head= leaves out" in said
    assert "source 'a' has other values" in said
    assert said.endswith("network.set_submodule('head.1', torch.nn.Identity())")


def test_doing_what_is_said_gives_the_features_of_the_source() -> None:
    module = Classifier(3)
    module.set_submodule("head.1", nn.Identity())
    assert warned(module, ("head.1.*", "auxiliary.*")) == ""
    source = copy.deepcopy(SOURCES["b"])
    source.set_submodule("head.1", nn.Identity())
    library = SourceLibrary.from_files(module, SOURCES, head=("head.1.*", "auxiliary.*"))
    module.load_state_dict(library.space.unflatten(library.basis[1]), strict=False)
    images = torch.rand(2, *SHAPE)
    assert torch.equal(module(images), source(images))


def test_a_pattern_that_is_too_wide_is_named_with_the_narrower_one() -> None:
    module = Classifier(3)
    module.set_submodule("head.1", nn.Identity())
    said = warned(module, ("head.*", "auxiliary.*"))
    assert "pass through head.0.weight, head.0.bias" not in said  # equal biases do no harm
    assert "pass through head.0.weight, which" in said
    assert said.endswith("keep head.0.weight, which all sources have, with narrower patterns: head=('head.1.*',)")
    assert warned(module, ("head.1.*", "auxiliary.*")) == ""


def test_a_head_that_no_source_has() -> None:
    bare = copy.deepcopy(SOURCES["a"])
    bare.set_submodule("head.1", nn.Identity())
    said = warned(Classifier(3), ("head.1.*", "auxiliary.*"), {"bare": bare})
    assert "source 'bare' has none" in said


def test_heads_that_do_no_harm() -> None:
    same = {"a": SOURCES["a"], "again": copy.deepcopy(SOURCES["a"])}
    assert warned(copy.deepcopy(SOURCES["a"]), ("head.1.*", "auxiliary.*"), same) == ""  # all have the network's values
    four = {"a": SOURCES["a"], "c": Classifier(4, 3)}
    assert warned(Classifier(4), ("auxiliary.*",), four) == ""  # not run
    assert warned(Classifier(4), (), four) == ""
    assert warned(Classifier(4).to("meta"), ("head.1.*",), four) == ""


def test_rows_of_a_basis_have_no_heads() -> None:
    module = Classifier(3)
    library = SourceLibrary.from_files(module, SOURCES, head=("head.1.*", "auxiliary.*"))
    rows = SourceLibrary(library.names, library.basis, library.space)
    assert rows.checkpoints.keys() == SOURCES.keys()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_used_head(module, rows, SHAPE)


def test_a_router_and_a_config_warn_where_they_open_sources(tmp_path: Path) -> None:
    head = ("head.1.*", "auxiliary.*")
    with pytest.warns(UsedHeadWarning, match=r"set_submodule\('head\.1'") as caught:
        RoutedClassifier.from_sources(SOURCES, network=Classifier(3), image_shape=SHAPE, head=head)
    assert caught[0].filename == __file__
    files = {}
    for seed in range(2):
        conv4 = build_network("conv4", channels=8, generator=torch.Generator().manual_seed(seed))
        files[str(seed)] = str(tmp_path / f"{seed}.safetensors")
        save_file(conv4.state_dict(), files[str(seed)])
    sources = {"network": {"kind": "conv4", "channels": 8}, "files": files, "head": ["blocks.3.0.*"]}
    config = RunConfig.model_validate({"sources": sources})
    with pytest.warns(
        UsedHeadWarning, match=r"pass through blocks\.3\.0\.weight, blocks\.3\.0\.bias, which head= leaves"
    ):
        open_library(config)


def test_the_head_of_a_convnext_of_timm(tmp_path: Path) -> None:
    """Its last normalisation is part of "head": leaving it out is warned of, the classifier alone is exact."""
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("convnext_atto", num_classes=4)
    theirs.head.norm.weight.data.uniform_(0.5, 1.5)
    network = build_network("timm:convnext_atto")
    sources = {"only": theirs}
    assert network.default_cfg["classifier"] == "head.fc"
    said = warned(network, ("head.*",), sources, (3, 32, 32))
    assert said.endswith("narrower patterns: head=('head.fc.*',)")
    assert warned(network, ("head.fc.*",), sources, (3, 32, 32)) == ""
