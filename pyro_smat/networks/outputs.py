"""Outputs: what networks return, turned into one tensor, and into features ``(n, f)``.

The rule, for every network:

1. A tensor is itself.
2. Of a mapping, or an object with named outputs, the first of :data:`NAMES` that is there and not None, else its first
   value that holds a tensor.
3. Of a tuple or list, its first element that holds a tensor.
4. Features are ``(n, f)``; of tokens ``(n, tokens, f)`` the mean over the tokens, and of a map ``(n, f, h, w)`` the
   mean over the pixels.

TaskNetwork applies 1 to 3 to whatever it runs, and :func:`~pyro_smat.networks.build_network` all four. A module of a
person's own is taken at its word: where it gives no features ``(n, f)``, :func:`checked_features` says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

NAMES = ("pooler_output", "image_embeds", "features", "x_norm_clstoken", "last_hidden_state", "logits")


def tensor_of(output: Any) -> Tensor:
    """The tensor that stands for an output, by rules 1 to 3 above.

    Raises:
        ValueError: when there is no tensor in it.

    Example:
        >>> import torch
        >>> tensor_of({"last_hidden_state": torch.zeros(2, 5, 3), "pooler_output": torch.ones(2, 3)}).shape
        torch.Size([2, 3])
    """
    found = _search(output)
    if found is None:
        raise ValueError(
            f"the network returns {_told(output)}; expected a tensor, or a tuple, mapping or object that holds one: "
            "return the features (n, f)"
        )
    return found


def as_features(output: Any) -> Tensor:
    """Features ``(n, f)`` of an output, by the rule above.

    Raises:
        ValueError: when there is no tensor in it, or one without a dim of features.
    """
    tensor = tensor_of(output)
    if tensor.ndim < 2:
        raise ValueError(f"the network returns {tuple(tensor.shape)}; expected features (n, f)")
    if tensor.ndim == 2:
        return tensor
    return tensor.mean(1) if tensor.ndim == 3 else tensor.flatten(2).mean(2)


def checked_features(features: Tensor, count: int) -> Tensor:
    """The features ``(n, f)`` of ``count`` images, as they are.

    Raises:
        ValueError: for any other shape; says how features are made of it.

    Example:
        >>> import torch
        >>> checked_features(torch.zeros(2, 16, 8, 8), 2)
        Traceback (most recent call last):
        ValueError: the network gives (2, 16, 8, 8) for 2 images; expected features (2, f): pool the map, .mean((2, 3))
    """
    shape = tuple(features.shape)
    if len(shape) == 2 and shape[0] == count and shape[1]:
        return features
    if not shape or shape[0] != count:
        hint = "keep the images apart, the first dim"
    elif len(shape) == 1:
        hint = "return one row of features an image, .unsqueeze(1) for a single one"
    elif len(shape) == 3:
        hint = "these are tokens: take the class token, [:, 0], or their mean, .mean(1)"
    elif len(shape) == 4:
        hint = "pool the map, .mean((2, 3))"
    else:
        hint = "return the layer before the classifier, .flatten(1)"
    raise ValueError(f"the network gives {shape} for {count} images; expected features ({count}, f): {hint}")


def _search(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    values: Iterable[Any]
    if isinstance(output, Mapping):
        values = [output[name] for name in NAMES if name in output] + list(output.values())
    elif isinstance(output, tuple | list) and not hasattr(output, "_fields"):
        values = output
    else:
        named = [getattr(output, name, None) for name in NAMES]
        values = named + list(output if isinstance(output, tuple) else getattr(output, "__dict__", {}).values())
    return next((found for found in map(_search, values) if found is not None), None) if _holds(output) else None


def _holds(output: Any) -> bool:
    return isinstance(output, Mapping | tuple | list) or hasattr(output, "__dict__")


def _told(output: Any) -> str:
    return f"{type(output).__name__} without a tensor" if _holds(output) else type(output).__name__
