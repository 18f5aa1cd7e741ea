"""Template: what a network expects of its checkpoints, and which of its tensors are mixed.

Parameters and floating-point persistent buffers are mixed (see :mod:`pyro_smat.networks.parameters`). Integer buffers
and buffers that are not persistent are constants of the network. A **head** is left out by patterns: a tensor of the
network whose name matches one is a constant too, it is not in the parameter space and keeps the network's own values;
a tensor of a checkpoint whose name matches one is not looked at. A buffer of the network that holds infinite values
(the mask of an attention, -inf above the diagonal) is a constant as well: a mixture of infinities is NaN. Sources must
agree with it, and with persistent integer and boolean buffers of more than one value (a mask of pruned weights, an
order of channels): what is not mixed would otherwise be replaced by the network's own.

Patterns are those of file names: ``"fc.*"`` is every name that begins with ``fc.``.
"""

from __future__ import annotations

import fnmatch
import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from pyro_smat.networks.parameters import ParameterSpace, refuse_lazy
from pyro_smat.sources.transformers_names import TransformersNames

_HEAD = "(head)"


@dataclass(frozen=True)
class Template:
    """What checkpoints of a network must hold.

    Attributes:
        title: class of the network, for messages.
        tensors: names to shapes of the tensors that are mixed, in the network's order.
        constants: names of its other tensors: integers, buffers that are not persistent or infinite, the head.
        tied: pairs of names that are one tensor.
        embeddings: names of the weights of nn.Embedding.
        head: patterns of the names that are left out.
        fixed: persistent buffers that hold infinite values, or several integers or booleans, with the network's values.
        naming: how files of a network of transformers are read; None for any other network.
    """

    title: str
    tensors: Mapping[str, torch.Size]
    constants: frozenset[str] = frozenset()
    tied: tuple[tuple[str, str], ...] = ()
    embeddings: frozenset[str] = frozenset()
    head: tuple[str, ...] = ()
    fixed: Mapping[str, Tensor] = field(default_factory=dict, repr=False, compare=False)
    naming: TransformersNames | None = field(default=None, repr=False, compare=False)

    @property
    def left_out(self) -> tuple[str, ...]:
        """Patterns of everything in the network that is not mixed though it is floating point."""
        return (*self.head, *(glob.escape(name) for name, value in self.fixed.items() if value.is_floating_point()))

    @classmethod
    def from_module(cls, module: nn.Module, head: Sequence[str] = ()) -> Template:
        """The template of a network, without the tensors that match ``head``.

        Raises:
            ValueError: when ``head`` is one string, or leaves no parameter; for lazy layers without shapes.
        """
        if isinstance(head, str):
            raise ValueError(f"head is the text {head!r}; expected a sequence of patterns: ({head!r},)")
        head = tuple(head)
        refuse_lazy(module, "network")
        parameters = dict(module.named_parameters(remove_duplicate=False))
        buffers = dict(module.named_buffers(remove_duplicate=False))
        persistent: Mapping[str, Tensor] = module.state_dict(keep_vars=True)
        floating = {k: v for k, v in persistent.items() if k in parameters or (k in buffers and v.is_floating_point())}
        kept = {name: tensor for name, tensor in floating.items() if not matches(name, *head)}
        own = {k: v for k, v in persistent.items() if k in buffers and not matches(k, *head)}
        fixed = {k: v.detach().clone() for k, v in own.items() if (_is_infinite if k in kept else _is_table)(v)}
        mixed = {name: tensor.shape for name, tensor in kept.items() if name not in fixed}
        if not any(name in parameters for name in mixed):
            raise ValueError(f"{type(module).__name__} has no parameters outside {head}; expected weights to mix")
        embeddings = {
            f"{name}.weight".lstrip(".") for name, part in module.named_modules() if isinstance(part, nn.Embedding)
        }
        return cls(
            type(module).__name__,
            mixed,
            frozenset({*persistent, *buffers} - mixed.keys()),
            _tied({**parameters, **buffers}),
            frozenset(embeddings),
            head,
            fixed,
            TransformersNames.of(module),
        )

    @classmethod
    def from_space(cls, space: ParameterSpace) -> Template:
        """The template of a network that is known by its parameter space alone."""
        return cls("the network", {entry.name: entry.shape for entry in space.entries})


def matches(name: str, *patterns: str) -> bool:
    """Whether a name is of one of the patterns."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def space_without(module: nn.Module, blocks: Mapping[str, str] | None, head: Sequence[str]) -> ParameterSpace:
    """The parameter space of a network without its head.

    Args:
        module: the network.
        blocks: as :meth:`~pyro_smat.networks.parameters.ParameterSpace.from_module` takes them; the head needs none.
        head: patterns of the names that are left out.

    Raises:
        ValueError: as ``from_module``, and for a block that has nothing but the head.
    """
    if not head:
        return ParameterSpace.from_module(module, blocks)
    expression = "|".join(fnmatch.translate(pattern) for pattern in head)
    whole = ParameterSpace.from_module(module, {_HEAD: expression, **(blocks or {"all": ".*"})})
    size, *sizes = whole.block_sizes
    for name, block in zip(whole.block_names[1:], sizes, strict=True):
        if not block:
            raise ValueError(f"block {name!r} has no tensor outside the head {tuple(head)}; expected weights to mix")
    entries = [replace(e, offset=e.offset - size, block=e.block - 1) for e in whole.entries if e.block]
    return ParameterSpace(tuple(entries), whole.block_names[1:])


def _is_infinite(buffer: Tensor) -> bool:
    """Whether a buffer holds infinite values and no NaN; on the meta device nobody knows."""
    return not buffer.is_meta and bool(buffer.isinf().any()) and not bool(buffer.isnan().any())


def _is_table(buffer: Tensor) -> bool:
    """Whether it is more than a counter; on the meta device nobody knows the values."""
    return not buffer.is_meta and buffer.numel() > 1


def _tied(tensors: Mapping[str, Tensor]) -> tuple[tuple[str, str], ...]:
    first: dict[int, str] = {}
    pairs = []
    for name, tensor in tensors.items():
        if first.setdefault(id(tensor), name) != name:
            pairs.append((first[id(tensor)], name))
    return tuple(pairs)
