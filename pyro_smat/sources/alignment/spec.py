"""Which hidden units of a network can change places: groups of units, and the tensor dims that move with them.

A group is one set of interchangeable units (channels, hidden features, attention heads). Permuting every tensor dim
where the group appears leaves the function of the network as it was. ``trace.py`` finds the groups of a module; a user
may write them by hand; ``weights.py`` and ``activations.py`` choose the permutations; :func:`permute` applies them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Permutations = Mapping[str, Tensor]


@dataclass(frozen=True)
class Slot:
    """One place where the units of a group live: a dim of a tensor, laid out as ``(repeat, size, block)``.

    Attributes:
        tensor: name in the state dict.
        dim: dim of the tensor, from 0.
        block: neighbouring coordinates of one unit (pixels of a flattened channel, the width of an attention head).
        repeat: how often the whole set of units appears along the dim, one after another (q, k and v: 3).
        compare: False for running statistics, which move along but say nothing to weight matching.
    """

    tensor: str
    dim: int
    block: int = 1
    repeat: int = 1
    compare: bool = True


@dataclass(frozen=True)
class Observation:
    """A module called once in a forward pass, whose output has the units of a group along ``dim``."""

    module: str
    dim: int


@dataclass(frozen=True)
class PermutationGroup:
    """One set of interchangeable units.

    Attributes:
        name: for tables and for the keys of permutations.
        size: number of units.
        slots: all places where they live.
        bundle: units that stay neighbours: bundles of this many consecutive units move as wholes, and inside a bundle
            units move freely (group normalisation of 8 channels a group: 8). 1 is a free permutation.
        observations: where activation matching may look; empty when there is no such module.
    """

    name: str
    size: int
    slots: tuple[Slot, ...]
    bundle: int = 1
    observations: tuple[Observation, ...] = ()


@dataclass(frozen=True)
class PermutationSpec:
    """All groups of a network, in the order of its forward pass, and what had to stay in place and why."""

    groups: tuple[PermutationGroup, ...]
    notes: tuple[str, ...] = ()

    def check(self, state: Mapping[str, Tensor]) -> None:
        """Hold the groups against the tensors of a state dict.

        Raises:
            ValueError: for groups of one name or without units or slots, a bundle that does not divide its group, a
                slot without its tensor or of another length, or a tensor dim claimed twice; all are listed.
        """
        problems: list[str] = []
        names: set[str] = set()
        claimed: dict[tuple[str, int], str] = {}
        for group in self.groups:
            if group.name in names:
                problems.append(f"{group.name}: two groups have this name")
            names.add(group.name)
            if group.size < 1 or group.bundle < 1 or group.size % group.bundle or not group.slots:
                problems.append(
                    f"{group.name}: {group.size} units in bundles of {group.bundle} and {len(group.slots)} slots; "
                    "expected at least one of each, and a bundle size that divides the units"
                )
            for slot in group.slots:
                problems += _slot_problems(group, slot, state)
                if (slot.tensor, slot.dim) in claimed:
                    other = claimed[slot.tensor, slot.dim]
                    problems.append(f"{group.name}: dim {slot.dim} of {slot.tensor} belongs to {other} already")
                claimed[slot.tensor, slot.dim] = group.name
        if problems:
            raise ValueError("permutation groups do not fit the weights:\n  " + "\n  ".join(problems))


def permute(state: Mapping[str, Tensor], spec: PermutationSpec, permutations: Permutations) -> dict[str, Tensor]:
    """The state dict with its units rearranged: unit i of the result is unit ``permutations[group][i]`` of ``state``.

    Args:
        state: weights that fit ``spec``.
        spec: the groups.
        permutations: ``(size,)`` long for each group's name; groups without one stay.

    Returns:
        A new dict; tensors that do not move are the same objects.

    Raises:
        ValueError: when ``spec`` does not fit, for an unknown group, or for what is no permutation of its bundles.
    """
    spec.check(state)
    groups = {group.name: group for group in spec.groups}
    for name, order in permutations.items():
        if name not in groups:
            raise ValueError(f"permutation of {name!r}, which is no group; groups are {sorted(groups)}")
        _check_permutation(groups[name], order)
    result = dict(state)
    for name, order in permutations.items():
        for slot in groups[name].slots:
            result[slot.tensor] = rearranged(result[slot.tensor], slot, order)
    return result


def rearranged(tensor: Tensor, slot: Slot, order: Tensor) -> Tensor:
    """The tensor with the units of one slot in another order ``(size,)``."""
    units = tensor.unflatten(slot.dim, (slot.repeat, len(order), slot.block))
    return units.index_select(slot.dim + 1, order.to(tensor.device)).flatten(slot.dim, slot.dim + 2)


def random_permutations(spec: PermutationSpec, generator: torch.Generator) -> dict[str, Tensor]:
    """A random permutation of every group that keeps its bundles."""
    result = {}
    for group in spec.groups:
        bundles = torch.arange(group.size).reshape(-1, group.bundle)
        bundles = bundles[torch.randperm(len(bundles), generator=generator)]
        result[group.name] = torch.cat([b[torch.randperm(group.bundle, generator=generator)] for b in bundles])
    return result


def _slot_problems(group: PermutationGroup, slot: Slot, state: Mapping[str, Tensor]) -> list[str]:
    if slot.tensor not in state:
        return [f"{group.name}: there is no tensor {slot.tensor}"]
    shape, expected = tuple(state[slot.tensor].shape), slot.repeat * group.size * slot.block
    if not 0 <= slot.dim < len(shape):
        return [f"{group.name}: dim {slot.dim} of {slot.tensor}, which is {shape}"]
    if shape[slot.dim] != expected:
        return [
            f"{group.name}: dim {slot.dim} of {slot.tensor} {shape} has length {shape[slot.dim]}; expected repeat "
            f"{slot.repeat} x {group.size} units x block {slot.block} = {expected}"
        ]
    return []


def _check_permutation(group: PermutationGroup, order: Tensor) -> None:
    if order.shape != (group.size,) or not torch.equal(order.sort().values.cpu(), torch.arange(group.size)):
        raise ValueError(f"{group.name}: {order.tolist()} is no permutation of its {group.size} units")
    homes = (order // group.bundle).reshape(-1, group.bundle)
    if (homes != homes[:, :1]).any():
        raise ValueError(f"{group.name}: the permutation tears bundles of {group.bundle} units apart")
