"""ParameterSpace: one flat vector for all the weights of a network, and the views back.

First stop of every checkpoint: state dict -> ``flatten`` -> a row of the basis; task parameters ``theta`` come back
through ``unflatten`` as views, so composing networks is linear algebra on rows.

Running statistics. Floating-point *persistent buffers* (BatchNorm's running mean and variance) are coordinates of the
space like any weight, because every source has its own: one-hot coefficients then reproduce a source bit for bit, and
a convex mixture of variances stays positive. Experts never touch them (``trainable`` is False there). Integer buffers
(``num_batches_tracked``) and non-persistent buffers are constants of the template network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


@dataclass(frozen=True)
class Entry:
    """One tensor of the network: its name, shape, first coordinate, block, and whether it is a trainable parameter."""

    name: str
    shape: torch.Size
    offset: int
    block: int
    trainable: bool

    @property
    def numel(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class ParameterSpace:
    """The coordinates of a network's weights.

    Attributes:
        entries: the tensors in the order of the flat vector; entries of one block are neighbours.
        block_names: names of the L blocks of blockwise mixing; ``("all",)`` when there is one.
        sizes: number of coordinates of every entry.

    Example:
        >>> space = ParameterSpace.from_module(nn.Linear(3, 2), {"weights": "weight", "rest": ".*"})
        >>> space.dim, space.block_names
        (8, ('weights', 'rest'))
    """

    entries: tuple[Entry, ...]
    block_names: tuple[str, ...] = ("all",)
    sizes: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", tuple(entry.numel for entry in self.entries))

    @classmethod
    def from_module(cls, module: nn.Module, blocks: Mapping[str, str] | None = None) -> ParameterSpace:
        """The space of ``module``'s parameters and floating-point persistent buffers.

        Args:
            module: any network.
            blocks: name -> regular expression; a tensor belongs to the first block whose expression matches its name
                from the start, and every tensor needs one. None makes a single block.

        Raises:
            ValueError: for parameters or submodules that are registered twice (``functional_call`` would corrupt the
                template), lazy layers without shapes, a network without parameters, or a tensor that no block matches.
        """
        refuse_lazy(module, "network")
        _refuse_sharing(module)
        parameters = dict(module.named_parameters())
        persistent = module.state_dict(keep_vars=True)
        buffers = {k: v for k, v in module.named_buffers() if k in persistent and v.is_floating_point()}
        tensors = {k: v for k, v in persistent.items() if k in parameters or k in buffers}
        if not parameters:
            raise ValueError(f"{type(module).__name__} has no parameters; expected a network with weights to mix")

        block_names = tuple(blocks) if blocks else ("all",)
        of_block = {name: _block_of(name, blocks) for name in tensors}
        ordered = sorted(tensors, key=lambda name: of_block[name])  # stable: keeps the module's order inside a block
        entries, offset = [], 0
        for name in ordered:
            tensor = tensors[name]
            entries.append(Entry(name, tensor.shape, offset, of_block[name], name in parameters))
            offset += tensor.numel()
        return cls(tuple(entries), block_names)

    @property
    def dim(self) -> int:
        """d, the number of coordinates."""
        return sum(self.sizes)

    @property
    def names(self) -> tuple[str, ...]:
        """Tensor names in the order of the flat vector."""
        return tuple(entry.name for entry in self.entries)

    @property
    def block_sizes(self) -> tuple[int, ...]:
        """Number of coordinates of every block, ``(L,)``; blocks are consecutive column slices."""
        sizes = [0] * len(self.block_names)
        for entry in self.entries:
            sizes[entry.block] += entry.numel
        return tuple(sizes)

    def trainable(self) -> Tensor:
        """``(d,)`` bool: False at running statistics, which experts must leave alone."""
        return torch.cat([torch.full((entry.numel,), entry.trainable) for entry in self.entries])

    def flatten(self, state_dict: Mapping[str, Tensor]) -> Tensor:
        """The flat vector ``(d,)`` of a state dict, in the dtype of its tensors.

        Raises:
            ValueError: when tensors are missing, extra or of another shape; all of them are listed.
        """
        problems = self.differences(state_dict)
        if problems:
            raise ValueError("state dict does not fit the network:\n  " + "\n  ".join(problems))
        return torch.cat([state_dict[entry.name].detach().reshape(-1) for entry in self.entries])

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """Named views ``(*b, *shape)`` of flat vectors ``theta`` ``(*b, d)``.

        One ``split``: its backward is one concatenation, where narrow views would each fill a zero vector of size d.
        """
        if theta.shape[-1] != self.dim:
            raise ValueError(f"theta has {theta.shape[-1]} coordinates; expected d = {self.dim}")
        return self.named(theta.split(self.sizes, dim=-1))

    def named(self, pieces: Sequence[Tensor]) -> dict[str, Tensor]:
        """Named views ``(*b, *shape)`` of one piece ``(*b, n)`` for every tensor, in the order of the flat vector."""
        return {
            e.name: piece.unflatten(-1, e.shape) if e.shape else piece.squeeze(-1)
            for e, piece in zip(self.entries, pieces, strict=True)
        }

    def differences(self, state_dict: Mapping[str, Tensor]) -> list[str]:
        """What keeps a state dict from fitting: one line for every missing, extra, misshapen or non-finite tensor."""
        expected = {entry.name: entry.shape for entry in self.entries}
        lines = [f"missing: {name} {tuple(shape)}" for name, shape in expected.items() if name not in state_dict]
        for name, tensor in state_dict.items():
            if name not in expected:
                if tensor.is_floating_point():
                    lines.append(f"extra: {name} {tuple(tensor.shape)}")
            elif tensor.shape != expected[name]:
                lines.append(f"shape: {name} is {tuple(tensor.shape)}, expected {tuple(expected[name])}")
            elif not tensor.is_floating_point():
                lines.append(f"dtype: {name} is {tensor.dtype}, expected floating point")
            elif not torch.isfinite(tensor).all():
                lines.append(f"not finite: {name} holds NaN or infinite weights")
        return lines


def _block_of(name: str, blocks: Mapping[str, str] | None) -> int:
    if not blocks:
        return 0
    for index, pattern in enumerate(blocks.values()):
        try:
            matched = re.match(pattern, name)
        except (re.error, TypeError) as error:
            raise ValueError(
                f"block {list(blocks)[index]!r} has the pattern {pattern!r}, which is no regular expression ({error}); "
                "expected one such as 'layer1.*'"
            ) from error
        if matched:
            return index
    raise ValueError(f"no block matches tensor {name!r}; blocks are {dict(blocks)}: add one with the pattern '.*' last")


def refuse_lazy(module: nn.Module, what: str) -> None:
    """Raises:
    ValueError: for lazy layers that have no shapes yet.
    """
    tensors = [*module.named_parameters(), *module.named_buffers()]
    lazy = [name for name, tensor in tensors if is_lazy(tensor)]
    if lazy:
        raise ValueError(
            f"{what} has lazy layers without shapes yet ({lazy[:3]}); expected one that has seen an image: call it on "
            "images once"
        )


def _refuse_sharing(module: nn.Module) -> None:
    seen: dict[int, str] = {}
    for name, tensor in module.named_parameters(remove_duplicate=False):
        if id(tensor) in seen:
            raise ValueError(
                f"parameter {name!r} is the same tensor as {seen[id(tensor)]!r}; tied weights and twice-registered "
                "submodules cannot be composed: untie them (copy the tensor) or register the module once"
            )
        seen[id(tensor)] = name
    for name, buffer in module.named_buffers(remove_duplicate=False):
        if id(buffer) in seen:
            raise ValueError(f"buffer {name!r} is the same tensor as {seen[id(buffer)]!r}; register the module once")
        seen[id(buffer)] = name
