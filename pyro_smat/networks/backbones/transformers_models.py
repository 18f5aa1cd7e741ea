"""transformers:NAME: image encoders of Hugging Face's transformers, with random initial weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from pyro_smat.networks.configuration import keep_configuration
from pyro_smat.networks.preprocessing import Interpolation, Preprocessing
from pyro_smat.registry import register

_HEADS = ("classifier", "cls_classifier", "distillation_classifier", "classifier_distill", "head", "dist_head", "fc")
_INTERPOLATIONS: Mapping[int, Interpolation] = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # PIL's numbers


@register("network", "transformers")
def transformers_network(
    name: str,
    *,
    arguments: Mapping[str, bool | int | float | str] | None = None,
    saved_configuration: Mapping[str, Any] | None = None,
) -> nn.Module:
    """An image encoder of transformers, without a head; names are those that transformers has in memory.

    Files that ``save_pretrained`` wrote fit, though their names are others for some types: sources are opened as
    transformers opens them (:mod:`pyro_smat.sources.transformers_names`); leave their head out, ``head=
    ("classifier.*",)``. A folder whose ``config.json`` says ``"architectures": ["...ForImageClassification"]`` gives
    that class with its classifier replaced by the identity, so that names have its prefix ("vit.layers..."); any other
    gives the plain encoder ("layers..."). Size, mean, standard deviation and rescaling are those of
    ``preprocessor_config.json`` beside it, else the defaults of the type's image processor. Nothing is downloaded, and
    no code of a folder is run. A saved router carries the configuration, and needs the folder no more.

    Args:
        name: a folder with ``config.json``, a type of transformers' configurations ("vit", "dinov2", "convnext"), or a
            name that Hugging Face's cache on this machine has.
        arguments: in place of the configuration's values, such as ``{"hidden_size": 192}``.
        saved_configuration: of a saved router, in place of all this: ``{"config": ..., "preprocessor": ...}``, what
            ``config.json`` and ``preprocessor_config.json`` would hold.

    Raises:
        ValueError: when transformers isn't installed, nothing of that name is on this machine, it doesn't take images,
            or a saved configuration is none of transformers.
    """
    try:
        import transformers
    except ImportError as error:
        raise ValueError(
            f"network 'transformers:{name}' needs the package transformers: pip install 'pyro-smat[transformers]'"
        ) from error
    if saved_configuration is None:
        config = _configuration(name, dict(arguments or {}))
        processor = _processor(name, config)
    else:
        config, processor = _saved(name, saved_configuration)
    config._attn_implementation = "sdpa" if _takes_sdpa(config) else "eager"
    architecture = next(iter(config.architectures or ()), "")
    cls = getattr(transformers, architecture, None) if "ForImageClassification" in architecture else None
    cls = cls if isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel) else None
    try:
        kept = {"config": json.loads(config.to_json_string(use_diff=False)), "preprocessor": dict(processor)}
        _refuse_hubs(kept["config"])
        network = transformers.AutoModel.from_config(config, trust_remote_code=False) if cls is None else cls(config)
    except (ValueError, ImportError) as error:
        raise ValueError(f"transformers:{name} cannot be built: {error}") from error
    if network.main_input_name != "pixel_values":
        raise ValueError(
            f"transformers:{name} is {type(network).__name__}, which takes {network.main_input_name}; expected an "
            "encoder of images (pixel_values)"
        )
    for head, part in list(network.named_children()) if cls is not None else ():
        if head in _HEADS and any(True for _ in part.parameters()):
            setattr(network, head, nn.Identity())
    return keep_configuration(_preprocessing(processor, config).attach(network), kept)


def _configuration(name: str, arguments: dict[str, Any]) -> Any:
    from transformers import CONFIG_MAPPING, AutoConfig

    if name in CONFIG_MAPPING and not Path(name, "config.json").is_file():
        return CONFIG_MAPPING[name](**arguments)
    try:
        return AutoConfig.from_pretrained(name, local_files_only=True, trust_remote_code=False, **arguments)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"transformers:{name}: there is no folder {Path(name).resolve()} with a config.json, no type of that name, "
            f"and nothing in Hugging Face's cache; networks are never downloaded: fetch it (hf download {name})"
        ) from error


def _saved(name: str, values: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
    """Configuration and preprocessing that a router was saved with."""
    from transformers import CONFIG_MAPPING

    try:
        config, processor = dict(values["config"]), dict(values["preprocessor"])
        return CONFIG_MAPPING[config["model_type"]].from_dict(config), processor
    except Exception as error:  # the checks of every type are its own, and so is what they raise
        raise ValueError(
            f"transformers:{name}: its saved configuration cannot be used ({type(error).__name__}: {error}); expected "
            "what the router was saved with, and a version of transformers that knows it"
        ) from error


def _refuse_hubs(values: Any) -> None:
    """Refuse networks of timm that a configuration names at any depth by where they would be fetched from."""
    for key, value in values.items() if isinstance(values, dict) else ():
        if key in ("architecture", "backbone") and isinstance(value, str) and ":" in value:
            raise ValueError(f"{key} is {value!r}, of a hub; networks are never downloaded: use 'timm:NAME'")
        _refuse_hubs(value)


def _takes_sdpa(config: Any) -> bool:
    from transformers import AutoModel

    cls = AutoModel._model_mapping.get(type(config), None)
    return bool(getattr(cls, "_supports_sdpa", False))


def _preprocessing(own: Mapping[str, Any], config: Any) -> Preprocessing:
    mean, std = (
        tuple(own[key]) if own.get("do_normalize", True) and own.get(key) else None
        for key in ("image_mean", "image_std")
    )
    factor = 255 * (own.get("rescale_factor") or 1 / 255) if own.get("do_rescale", True) else 255.0
    factor = 1.0 if abs(factor - 1.0) < 1e-6 else factor
    low = -1.0 if own.get("offset") else 0.0
    return Preprocessing(
        mean, std, _size(config), (low, low + factor), _INTERPOLATIONS.get(own.get("resample", 2), "bicubic")
    )


def _size(config: Any) -> tuple[int, int] | None:
    """The size that the network takes; None where any will do (it has no table of positions)."""
    size = getattr(getattr(config, "vision_config", config), "image_size", None)
    if size is None:
        return None
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _processor(name: str, config: Any) -> Mapping[str, Any]:
    file = Path(name, "preprocessor_config.json")
    if file.is_file():
        found: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

    whole = config.model_type.removesuffix("_vision_model")  # the image encoder of a pair has that of the pair
    cls: Any = None
    try:
        processors = IMAGE_PROCESSOR_MAPPING[CONFIG_MAPPING[whole] if whole in CONFIG_MAPPING else type(config)]
        options = processors.values() if isinstance(processors, Mapping) else processors
        cls = next((one for one in options if one is not None), None)
        return cls().to_dict() if cls is not None else {}
    except (KeyError, ImportError, AttributeError, TypeError):
        return {}
