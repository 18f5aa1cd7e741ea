"""timm:NAME: any network of timm (PyTorch Image Models), with random initial weights."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from torch import nn

from pyro_smat.networks.preprocessing import Interpolation, Preprocessing
from pyro_smat.registry import register


@register("network", "timm")
def timm_network(name: str, *, arguments: Mapping[str, bool | int | float | str] | None = None) -> nn.Module:
    """A network of timm without its classifier; names are those of timm's checkpoints.

    Mean, standard deviation, interpolation and, for networks of a fixed size, that size come from its configuration.
    Nothing is downloaded. A timm checkpoint's keys fit as they are, but for the classifier, which a library leaves
    out: ``head=("fc.*",)``, or "head.*", "head.fc.*", "classifier.*". The pattern is
    ``network.default_cfg["classifier"] + ".*"``, and no wider one: the "head" of a ConvNeXt has its last normalisation.

    Args:
        name: as ``timm.create_model`` takes it, such as "vit_tiny_patch16_224"; what follows a dot names weights and
            is used for its configuration.
        arguments: further ones of ``timm.create_model``, such as ``{"img_size": 96}`` or ``{"in_chans": 1}``.

    Raises:
        ValueError: when timm isn't installed, has no such network, or doesn't take the arguments.
    """
    try:
        import timm
    except ImportError as error:
        raise ValueError(f"network 'timm:{name}' needs the package timm: pip install 'pyro-smat[timm]'") from error
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "see timm.list_models()"
        raise ValueError(f"timm has no network {name!r}; {hint}")
    given: dict[str, Any] = dict(arguments or {})
    try:
        network = timm.create_model(name, pretrained=False, num_classes=0, **given)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"timm:{name} cannot be built with arguments {given}: {error}") from error
    return _preprocessing(network, given).attach(network)


def _preprocessing(network: nn.Module, given: Mapping[str, Any]) -> Preprocessing:
    from timm.data import resolve_model_data_config

    data = resolve_model_data_config(network)
    own: Any = network.pretrained_cfg
    size = given.get("img_size") or data["input_size"][1:]
    size = (size, size) if isinstance(size, int) else tuple(size)
    fixed = (own.get("fixed_input_size", False) or "img_size" in given) and not given.get("dynamic_img_size", False)
    mean, std = data["mean"], data["std"]
    channels = given.get("in_chans", len(mean))
    if channels != len(mean):  # other images than those of the configuration: their mean over channels
        mean, std = (sum(mean) / len(mean),) * channels, (sum(std) / len(std),) * channels
    interpolation: Interpolation = "bilinear" if data["interpolation"] == "bilinear" else "bicubic"
    return Preprocessing(tuple(mean), tuple(std), size if fixed else None, interpolation=interpolation)
