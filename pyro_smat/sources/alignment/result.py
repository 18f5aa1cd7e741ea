"""What an alignment hands back: the aligned weights, the permutations, and how much closer they came."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_smat.sources.alignment.spec import PermutationSpec, Slot

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class GroupAlignment:
    """One group: its units, the share of them that changed place, and its similarity to the reference.

    Attributes:
        by: "weights" (cosine of all weights of the group) or "activations" (mean correlation of matched units).
    """

    name: str
    size: int
    moved: float
    before: float
    after: float
    by: str


@dataclass(frozen=True)
class Alignment:
    """A network whose units were rearranged to resemble those of a reference.

    Attributes:
        state: the aligned weights; the same function as before.
        permutations: ``(size,)`` long for each group: unit i is unit ``permutation[i]`` of what came in.
        groups: similarities, a group each.
        objective_before, objective_after: what the matching maximises, its docstring says what that is.
        history: the objective after each step of the search that won.
        distance_before, distance_after: Euclidean distance of the weights (no running statistics) to the reference.
    """

    state: dict[str, Tensor]
    permutations: dict[str, Tensor]
    groups: tuple[GroupAlignment, ...]
    objective_before: float
    objective_after: float
    history: tuple[float, ...]
    distance_before: float
    distance_after: float


def align_all(states: Mapping[str, State], align: Callable[[State, State], Alignment]) -> dict[str, Alignment]:
    """Align every network to the first.

    Args:
        states: ``{"name": state dict}``, the reference first.
        align: takes a state dict and the reference, e.g. ``lambda s, r: align_weights(s, r, groups)``.

    Returns:
        An alignment for every name but the first.

    Raises:
        ValueError: when there are fewer than two networks, or as ``align`` does; the network is named.
    """
    if len(states) < 2:
        raise ValueError(f"networks to align are {list(states)}; expected a reference and at least one more")
    (_, reference), *others = states.items()
    result = {}
    for name, state in others:
        try:
            result[name] = align(state, reference)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return result


def check_pair(state: State, reference: State, spec: PermutationSpec) -> None:
    """Hold two networks and the groups against each other.

    Raises:
        ValueError: when there are no groups, tensors of one network are missing from the other or of another shape,
            weights are not finite, or the groups do not fit.
    """
    if not spec.groups:
        raise ValueError("there are no permutation groups to align: " + ("; ".join(spec.notes) or "the spec is empty"))
    floating = [{n for n, tensor in side.items() if tensor.is_floating_point()} for side in (state, reference)]
    problems = [f"{name} is only in one of the networks" for name in sorted(floating[0] ^ floating[1])]
    for name in sorted(floating[0] & floating[1]):
        if state[name].shape != reference[name].shape:
            problems.append(f"{name} is {tuple(state[name].shape)}, in the reference {tuple(reference[name].shape)}")
        elif not all(torch.isfinite(side[name]).all() for side in (state, reference)):
            problems.append(f"{name} holds NaN or infinite numbers")
    if problems:
        raise ValueError("network and reference cannot be aligned:\n  " + "\n  ".join(problems))
    spec.check(state)


def unit_rows(tensor: Tensor, slot: Slot, size: int) -> Tensor:
    """``(size, rest)`` float64: all numbers of each unit of a slot."""
    units = tensor.unflatten(slot.dim, (slot.repeat, size, slot.block)).movedim(slot.dim + 1, 0)
    return units.reshape(size, -1).double()


def distance(state: State, reference: State, spec: PermutationSpec) -> float:
    """Euclidean distance over all floating-point tensors that are no running statistics."""
    statistics = {slot.tensor for group in spec.groups for slot in group.slots if not slot.compare}
    names = [name for name in state if name not in statistics and state[name].is_floating_point()]
    return sum((state[n].double() - reference[n].double()).square().sum().item() for n in names) ** 0.5


def moved(order: Tensor) -> float:
    """Share of units that are not where they were."""
    return (order != torch.arange(len(order))).double().mean().item()
