"""torchvision:NAME: any of torchvision's classification networks, with random initial weights."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from torch import nn

from pyro_smat.networks.preprocessing import Preprocessing
from pyro_smat.registry import register

_HEADS = ("fc", "classifier", "heads", "head")
_AUXILIARY = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}


@register("network", "torchvision")
def torchvision_network(name: str, *, arguments: Mapping[str, bool | int | float | str] | None = None) -> nn.Module:
    """A classification network of torchvision without its last layer; names are those of torchvision's checkpoints.

    The last layer with weights of its head becomes the identity, so that what comes before it stays (the hidden layers
    of VGG's and MobileNetV3's classifier, ConvNeXt's last normalisation). Mean, standard deviation, interpolation and,
    for networks of a fixed size, that size are those of its default weights, none of which is downloaded. Load a
    checkpoint into a library with ``head=("fc.*",)`` left out, or "heads.head.*", "classifier.6.*", ...: the last layer
    alone ("classifier.*" would leave out the hidden layers of VGG). A library without ``head`` names the pattern.

    Args:
        name: of ``torchvision.models``, such as "resnet50".
        arguments: further ones of its constructor, such as ``{"image_size": 96}`` for a "vit_b_16".

    Raises:
        ValueError: for a name that torchvision doesn't have, or arguments that it doesn't take.
    """
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "see torchvision.models.list_models()"
        raise ValueError(f"torchvision has no classification network {name!r}; {hint}")
    try:
        network = models.get_model(name, weights=None, **{**_AUXILIARY.get(name, {}), **(arguments or {})})
    except TypeError as error:
        raise ValueError(
            f"torchvision:{name} cannot be built with arguments {dict(arguments or {})}: {error}"
        ) from error
    _drop_head(network)
    return _preprocessing(name, network, arguments or {}).attach(network)


def _drop_head(network: nn.Module) -> None:
    """Replaces the last layer with weights of the head by the identity."""
    head = next(child for child in _HEADS if hasattr(network, child))
    weighty = [
        path
        for path, layer in network.named_modules()
        if path.split(".")[0] == head and isinstance(layer, nn.Linear | nn.Conv2d)
    ]
    network.set_submodule(weighty[-1], nn.Identity())


def _preprocessing(name: str, network: nn.Module, arguments: Mapping[str, Any]) -> Preprocessing:
    from torchvision import models

    weights: Any = models.get_model_weights(name)
    default = weights.DEFAULT.transforms()
    fixed = getattr(network, "image_size", arguments.get("input_size"))  # vision transformers know theirs
    if fixed is None and name.startswith("maxvit"):
        fixed = default.crop_size[0]
    if isinstance(fixed, int):
        fixed = (fixed, fixed)
    return Preprocessing(
        tuple(default.mean),
        tuple(default.std),
        None if fixed is None else (fixed[0], fixed[1]),
        interpolation="bicubic" if default.interpolation.value == "bicubic" else "bilinear",
    )
