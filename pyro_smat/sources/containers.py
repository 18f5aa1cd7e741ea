"""State dicts inside what training tools save: ``{"state_dict": ...}``, ``{"model": ..., "epoch": 3}`` and the like.

Comes after a file is read and before its tensors get a :class:`~pyro_smat.sources.checkpoint.Checkpoint`. One state
dict is taken out of whatever holds it; of several (weights and their moving average) none is chosen silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

ENTRIES = (  # where tools put the weights: PyTorch examples, timm, DeiT, fairseq, Lightning, DeepSpeed, BasicSR, ...
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "net",
    "network",
    "weights",
    "params",
    "ema",
    "model_ema",
    "ema_model",
    "ema_state_dict",
    "state_dict_ema",
    "model_ema_state_dict",
    "params_ema",
    "shadow",
    "teacher",
    "student",
    "backbone",
    "encoder",
)
_DEEP = 4  # levels of containers
_EXTRA_STATE = "_extra_state"  # what a module's get_extra_state puts into its state dict: no weights


def state_dict_in(content: Any, origin: str, entry: str | None = None) -> dict[str, Tensor]:
    """The one state dict in the content of a file, of a network's state dict, or of a mapping that was passed.

    Entries of ``get_extra_state`` that are not tensors are left out: they are not weights, the network keeps its own.

    Args:
        content: what was read.
        origin: for messages.
        entry: which of several state dicts, by its key; None where there is one.

    Raises:
        ValueError: for anything but tensors by name, naming what is there instead; for several state dicts without
            ``entry``, or an entry that is not there.

    Example:
        >>> import torch
        >>> list(state_dict_in({"model": {"weight": torch.zeros(2)}, "epoch": 3}, "m.pt"))
        ['weight']
    """
    if entry is not None:
        if not isinstance(content, Mapping) or entry not in content:
            keys = sorted(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
            raise ValueError(f"{origin}: entry is {entry!r} and the file holds {_some(keys)}; expected one of them")
        return state_dict_in(content[entry], f"{origin}, entry {entry!r}")
    return _found(content, origin, _DEEP)


def _found(content: Any, origin: str, levels: int) -> dict[str, Tensor]:
    expected = "expected a state dict (names to tensors)"
    if not isinstance(content, Mapping):
        raise ValueError(f"{origin}: holds {_kind(content)}; {expected}")
    if not content:
        raise ValueError(f"{origin}: holds an empty {type(content).__name__}; {expected}")
    weights = {k: v for k, v in content.items() if not (_is_extra_state(k) and not isinstance(v, Tensor))}
    if weights and all(isinstance(v, Tensor) for v in weights.values()):
        wrong = next((k for k in weights if not isinstance(k, str)), None)
        if wrong is not None:
            raise ValueError(
                f"{origin}: names of its tensors are {type(wrong).__name__} such as {wrong!r}; expected names as text, "
                "those of the network's state dict"
            )
        return dict(weights)
    inside = {k: v for k, v in content.items() if isinstance(v, Mapping) and v and k in ENTRIES}
    inside = {k: v for k, v in inside.items() if _holds_tensors(v, levels - 1)}
    if len(inside) > 1:
        raise ValueError(
            f"{origin}: holds several state dicts, {_some(list(inside))}; expected one: open the one that you mean "
            f"with open_checkpoint(path, entry={next(iter(inside))!r}), or save it to a file of its own"
        )
    if inside and levels:
        ((key, value),) = inside.items()
        return _found(value, f"{origin}, entry {key!r}", levels - 1)
    odd = next(((k, v) for k, v in content.items() if not isinstance(v, Tensor)), None)
    assert odd is not None
    what = f"holds {type(content).__name__} with the keys {_some([str(k) for k in content])}"
    others = [str(k) for k, v in content.items() if isinstance(v, Mapping) and _holds_tensors(v, 1)]
    if others:
        what += f", of which {_some(others)} hold tensors: open one with open_checkpoint(path, entry={others[0]!r})"
    elif any(isinstance(v, Tensor) for v in content.values()):
        what += f", of which {odd[0]!r} is {_kind(odd[1])}"
    raise ValueError(f"{origin}: {what}; {expected}")


def _holds_tensors(content: Mapping[Any, Any], levels: int) -> bool:
    """Whether there is a flat dict of tensors in it: not an optimiser's state, whose tensors have numbers for names."""
    tensors = [k for k, v in content.items() if isinstance(v, Tensor)]
    if tensors:
        return all(isinstance(k, str) for k in tensors)
    return levels > 0 and any(
        isinstance(v, Mapping) and k in ENTRIES and _holds_tensors(v, levels - 1) for k, v in content.items()
    )


def _is_extra_state(key: Any) -> bool:
    return isinstance(key, str) and key.rpartition(".")[2] == _EXTRA_STATE


def _kind(thing: Any) -> str:
    if isinstance(thing, Tensor):
        return f"one tensor {tuple(thing.shape)}"
    return f"{type(thing).__module__}.{type(thing).__name__}".removeprefix("builtins.")


def _some(keys: list[str] | str) -> str:
    if isinstance(keys, str):
        return keys
    return f"{keys[:8]}" + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")
