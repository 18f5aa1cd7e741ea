"""timm:, torchvision: and transformers: networks, small ones with random weights; nothing is downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pyro_smat.networks import ParameterSpace, TaskNetwork, build_network, describe_network, feature_dim
from pyro_smat.networks.configuration import configuration_of
from pyro_smat.networks.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, detach_preprocessing
from pyro_smat.registry import choose

HALVES = (0.5, 0.5, 0.5)
VIT: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def check(network: nn.Module, shape: tuple[int, int, int], features: int) -> Preprocessing:
    """Two task networks give what the modules give, and the network can be described and built again."""
    network.eval()
    assert feature_dim(network, shape) == features
    choice = describe_network(network)
    assert choice is not None
    again = build_network(choose("network", json.loads(json.dumps(choice.to_dict()))))
    assert set(again.state_dict()) == set(network.state_dict())
    space = ParameterSpace.from_module(network)
    x = torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(0))
    row = space.flatten({k: v for k, v in network.state_dict().items() if k in space.names})
    theta = (row * torch.tensor([[1.0], [1.01]])).requires_grad_()
    tasks = TaskNetwork(network, space)
    output = tasks(theta, x)
    assert tasks.one_at_a_time is None
    output.square().mean().backward()
    assert theta.grad is not None
    assert theta.grad.isfinite().all()
    expected = network(x[0]).detach()
    torch.testing.assert_close(output[0].detach(), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    return detach_preprocessing(network)[0]


@pytest.mark.parametrize(
    ("name", "arguments", "features", "size"),
    [
        ("shufflenet_v2_x0_5", {}, 1024, None),
        ("mobilenet_v3_small", {}, 1024, None),  # the hidden layer of its classifier stays
        ("squeezenet1_1", {}, 512, None),
        ("vit_b_32", {"image_size": 32}, 768, (32, 32)),
    ],
)
def test_torchvision(name: str, arguments: dict[str, int], features: int, size: tuple[int, int] | None) -> None:
    network = build_network(f"torchvision:{name}", arguments=arguments, generator=torch.Generator().manual_seed(0))
    with torch.device("meta"):
        from torchvision.models import get_model

        theirs = set(get_model(name, **arguments).state_dict())
    assert set(network.state_dict()) < theirs
    assert len(theirs - set(network.state_dict())) == 2  # the last layer
    found = check(network, (3, 64, 64), features)
    assert (found.mean, found.std, found.size) == (IMAGENET_MEAN, IMAGENET_STD, size)


def test_torchvision_refuses_what_it_does_not_have() -> None:
    with pytest.raises(ValueError, match=r"no classification network 'resnet19'; did you mean .*'resnet18'"):
        build_network("torchvision:resnet19")
    with pytest.raises(ValueError, match=r"torchvision:resnet18 cannot be built with arguments {'wide': 2}"):
        build_network("torchvision:resnet18", arguments={"wide": 2})
    with pytest.raises(ValueError, match=r"'torchvision:resnet18' has no option 'argumnets'; did you mean 'arguments'"):
        build_network("torchvision:resnet18", argumnets={})


@pytest.mark.parametrize(
    ("name", "arguments", "shape", "features", "size", "mean"),
    [
        ("resnet10t", {}, (3, 40, 40), 512, None, IMAGENET_MEAN),
        ("mobilenetv3_small_050", {}, (3, 40, 40), 1024, None, IMAGENET_MEAN),  # normalisation and activation in one
        ("vit_tiny_patch16_224", {"img_size": 32, "depth": 1}, (3, 40, 40), 192, (32, 32), HALVES),
        ("resnet10t", {"in_chans": 1}, (1, 40, 40), 512, None, (sum(IMAGENET_MEAN) / 3,)),
    ],
)
def test_timm(
    name: str, arguments: dict[str, int], shape: tuple[int, int, int], features: int, size: Any, mean: tuple[float, ...]
) -> None:
    timm = pytest.importorskip("timm")
    network = build_network(f"timm:{name}", arguments=arguments, generator=torch.Generator().manual_seed(0))
    with torch.device("cpu"):
        theirs = timm.create_model(name, pretrained=False, **arguments)
    classifier = theirs.default_cfg["classifier"]
    body = {k: v for k, v in theirs.state_dict().items() if not k.startswith(classifier + ".")}
    network.load_state_dict(body)  # a timm checkpoint's keys, without renaming
    assert len(theirs.state_dict()) - len(body) == 2
    found = check(network, shape, features)
    assert found.size == size
    assert found.mean == pytest.approx(mean)


def test_timm_refuses_what_it_does_not_have() -> None:
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match=r"timm has no network 'resnte18'; did you mean 'resnet18'"):
        build_network("timm:resnte18")
    with pytest.raises(ValueError, match="timm:resnet18 cannot be built with arguments"):
        build_network("timm:resnet18", arguments={"wide": 2})


def test_transformers_by_type() -> None:
    pytest.importorskip("transformers")
    arguments = {**VIT, "image_size": 16, "patch_size": 8}
    network = build_network("transformers:vit", arguments=arguments, generator=torch.Generator().manual_seed(0))
    found = check(network, (3, 24, 24), 8)  # the pooler's output
    assert (found.mean, found.std, found.size) == (HALVES, HALVES, (16, 16))


@pytest.mark.parametrize("architecture", ["ViTForImageClassification", "ViTModel"])
def test_transformers_by_folder(architecture: str, tmp_path: Path) -> None:
    """A folder as save_pretrained writes it: its checkpoint's names, but for the classifier."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(**VIT, image_size=16, patch_size=8, num_labels=3)
    theirs = getattr(transformers, architecture)(config).eval()
    theirs.save_pretrained(tmp_path)
    processor = {
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [1.0, 2.0, 4.0],
        "rescale_factor": 1 / 127.5,
        "offset": True,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**processor, "resample": 3}))
    network = build_network(f"transformers:{tmp_path}", generator=torch.Generator().manual_seed(0)).eval()
    body = {k: v for k, v in theirs.state_dict().items() if not k.startswith("classifier.")}
    network.load_state_dict(body)
    x = torch.rand(2, 3, 16, 16)
    mean, std = (torch.tensor(processor[key]).view(-1, 1, 1) for key in ("image_mean", "image_std"))
    output = theirs((2 * x - 1 - mean) / std, output_hidden_states=True)
    if architecture == "ViTModel":
        expected = output.pooler_output
    else:
        expected = theirs.vit.layernorm(output.hidden_states[-1])[:, 0]
    torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-5)
    found = check(network, (3, 24, 24), 8)
    assert found.interpolation == "bicubic"
    assert found.value_range == pytest.approx((-1.0, 1.0))


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("vit", {**VIT, "image_size": 16, "patch_size": 8, "hidden_act": "relu", "layer_norm_eps": 0.5}),
        ("clip", {"vision_config": {**VIT, "image_size": 16, "patch_size": 8}}),
        ("dinov2", {**VIT, "image_size": 16, "patch_size": 8, "use_swiglu_ffn": True}),
        ("swin", {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "image_size": 16, "window_size": 2}),
        ("resnet", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}),
    ],
)
def test_transformers_by_what_a_folder_held(kind: str, values: dict[str, Any], tmp_path: Path) -> None:
    """The same network from its configuration, through JSON, whatever its name stands for since."""
    transformers = pytest.importorskip("transformers")
    config = transformers.CONFIG_MAPPING[kind](**values)
    with torch.device("meta"):
        config.architectures = [type(transformers.AutoModelForImageClassification.from_config(config)).__name__]
    config.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1] * 3, "image_std": [0.7] * 3}))
    first = build_network(f"transformers:{tmp_path}", generator=torch.Generator().manual_seed(0)).eval()
    kept = json.loads(json.dumps(configuration_of(first)))
    (tmp_path / "config.json").unlink()
    again = build_network(f"transformers:{tmp_path}", saved_configuration=kept).eval()
    again.load_state_dict(first.state_dict())
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(again(x), first(x))
    assert configuration_of(again) == kept
    (found,) = detach_preprocessing(again)
    assert found.mean == (0.1, 0.1, 0.1)
    assert found.size == (None if kind == "resnet" else (16, 16))


@pytest.mark.parametrize(
    "values",
    [{}, {"config": [], "preprocessor": {}}, {"config": {"model_type": "none"}, "preprocessor": {}}, {"config": {}}],
)
def test_transformers_refuses_a_configuration_that_is_none(values: dict[str, Any]) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(ValueError, match="transformers:x: its saved configuration cannot be used"):
        build_network("transformers:x", saved_configuration=values)


def test_transformers_builds_networks_alone() -> None:
    """Of what the package has under a name, nothing but a network; the plain encoder otherwise."""
    pytest.importorskip("transformers")
    config = {"model_type": "vit", **VIT, "architectures": ["AutoModelForImageClassification"]}
    network = build_network("transformers:x", saved_configuration={"config": config, "preprocessor": {}})
    assert type(network).__name__ == "ViTModel"


def test_transformers_refuses_texts_and_never_downloads() -> None:
    pytest.importorskip("transformers")
    with pytest.raises(ValueError, match="which takes input_ids; expected an encoder of images"):
        build_network("transformers:bert", arguments=VIT)
    with pytest.raises(ValueError, match="networks are never downloaded"):
        build_network("transformers:somebody/never-saw-this")
    with pytest.raises(
        ValueError, match="architecture is 'hf-hub:somebody/x', of a hub; networks are never downloaded"
    ):
        build_network("transformers:timm_wrapper", arguments={"architecture": "hf-hub:somebody/x"})
    inside = {"model_type": "detr", "backbone_config": {"model_type": "timm_backbone", "backbone": "hf-hub:somebody/x"}}
    with pytest.raises(ValueError, match="backbone is 'hf-hub:somebody/x', of a hub; networks are never downloaded"):
        build_network("transformers:x", saved_configuration={"config": inside, "preprocessor": {}})
