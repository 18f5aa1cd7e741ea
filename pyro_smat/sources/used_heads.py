"""A head that is left out of the sources though the features pass through it: warned of where sources are opened.

Leaving a tensor out (``head=``) keeps the network's own values of it. That is right for what the features do without,
and where all sources have these values. A last layer of random weights behind the features is neither.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import nn

from pyro_smat.networks.used_tensors import used_tensors
from pyro_smat.sources.checkpoint import Checkpoint
from pyro_smat.sources.issues import outermost_pattern
from pyro_smat.sources.library import SourceLibrary
from pyro_smat.sources.template import Template


class UsedHeadWarning(UserWarning):
    """Features pass through tensors that were left out, and sources have other values of them, or none."""


def warn_of_used_head(module: nn.Module, library: SourceLibrary, image_shape: tuple[int, int, int]) -> None:
    """Warn where the features depend on tensors of the network that are left out and that sources have not alike.

    One image is run, and only where something is left out.

    Args:
        module: the network.
        library: its sources; rows of a basis, which have no heads, are not looked at.
        image_shape: ``(C, H, W)``.
    """
    if not library.has_checkpoints:
        return
    mixed = {*library.space.names, *library._template.fixed}
    own = {k: v for k, v in module.state_dict().items() if k not in mixed and v.is_floating_point()}
    other: dict[str, str] = {}  # name -> a source that has not the network's values of it
    for name, value in own.items():
        for source, checkpoint in library.checkpoints.items():
            if name not in other and not _same(checkpoint, name, value):
                other[name] = source
    used = used_tensors(module, tuple(other), image_shape)
    if not used:
        return
    stored = library.checkpoints.values()
    fit = [n for n in used if all(n in c.names and c.shape(n) == own[n].shape for c in stored)]
    parts = dict.fromkeys(name.rpartition(".")[0] for name in used if name not in fit)
    steps = [f"network.set_submodule({part!r}, torch.nn.Identity())" for part in parts if part]
    mends = []
    if fit:
        mends.append(f"keep {_some(fit)}, which all sources have, with narrower patterns: {_narrower(module, library)}")
    if steps:
        mends.append(f"replace the head by the identity before sources are opened: {', '.join(steps)}")
    source = other[used[0]]
    theirs = "other values" if used[0] in library.checkpoints[source].names else "none"
    warnings.warn(
        f"features of {type(module).__name__} pass through {_some(used)}, which head= leaves out: every task gets the "
        f"network's own values, and source {source!r} has {theirs}; "
        f"{'; '.join(mends) or 'have the network return what comes before'}",
        UsedHeadWarning,
        stacklevel=4,
    )


def _same(checkpoint: Checkpoint, name: str, own: torch.Tensor) -> bool:
    if own.is_meta or name not in checkpoint.names or checkpoint.shape(name) != own.shape:
        return False
    return torch.equal(checkpoint.read(name).float(), own.detach().float().cpu())


def _narrower(module: nn.Module, library: SourceLibrary) -> str:
    """``head=`` that leaves out what the network has not."""
    network = Template.from_module(module)
    known = {*network.tensors, *network.constants}
    extra = [
        n for c in library.checkpoints.values() for n in c.names if n not in known and c.dtype(n).is_floating_point
    ]
    return f"head={tuple(dict.fromkeys(outermost_pattern(name, network) for name in extra))}" if extra else "no head="


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
