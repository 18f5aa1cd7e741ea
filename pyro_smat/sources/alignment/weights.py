r"""Weight matching: permutations that bring the weights of a network as close to a reference as can be found.

:math:`\max_\pi \sum_\ell \langle \theta^{ref}_\ell, (\pi\theta)_\ell \rangle` over the permutations of all groups, by
coordinate descent, one linear assignment a group (Ainsworth, Hayase, Srinivasa 2022, "Git Re-Basin", algorithm 1).
Needs no data. State dict, reference and groups in; Alignment out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from pyro_smat.sources.alignment.assignment import best_permutation
from pyro_smat.sources.alignment.result import Alignment, GroupAlignment, State, check_pair, distance, moved, unit_rows
from pyro_smat.sources.alignment.spec import PermutationGroup, PermutationSpec, Slot, permute, rearranged

_SWEEPS = 100  # the objective rises strictly over finitely many permutations; real networks settle in 5 to 20


def align_weights(
    state: State, reference: State, groups: PermutationSpec, *, starts: int = 4, seed: int = 0
) -> Alignment:
    """Rearrange a network's units so that its weights resemble those of a reference.

    Coordinate descent from several starts, the best of them wins: the first start goes through the groups in the order
    of the forward pass and compares each by the tensors whose other units are placed already (that finds a permuted
    copy at once); the others start from where the units are and visit groups in random order. A step is taken only
    when it raises the objective, the inner product of all weights with those of the reference; since permuting does
    not change norms, the distance to the reference falls.

    Args:
        state: the network to rearrange.
        reference: the network to resemble.
        groups: what can change places.
        starts: number of starts, at least 1.
        seed: of the random orders.

    Raises:
        ValueError: when ``starts`` is below 1, or networks and groups do not fit.
    """
    if starts < 1:
        raise ValueError(f"starts is {starts}; expected at least 1")
    check_pair(state, reference, groups)
    search = WeightSearch(state, reference, groups)
    identity = search.identity()
    objective_before = search.objective(identity)
    found = [search.descend(search.forward(), list(identity))]
    for start in range(1, starts):
        if found[0][1][-1] >= search.bound() * (1 - 1e-12):
            break  # a permuted copy: nothing can be closer
        generator = torch.Generator().manual_seed(seed + start)
        found.append(search.descend(dict(identity), list(identity), generator))
    permutations, history = max(found, key=lambda result: result[1][-1])
    if history[-1] <= objective_before:
        permutations, history = identity, (objective_before,)
    aligned = permute(state, groups, permutations)
    return Alignment(
        state=aligned,
        permutations=permutations,
        groups=tuple(
            GroupAlignment(
                name=group.name,
                size=group.size,
                moved=moved(permutations[group.name]),
                before=search.cosine(group, identity),
                after=search.cosine(group, permutations),
                by="weights",
            )
            for group in groups.groups
        ),
        objective_before=objective_before,
        objective_after=history[-1],
        history=history,
        distance_before=distance(state, reference, groups),
        distance_after=distance(aligned, reference, groups),
    )


class WeightSearch:
    """Similarities of the units of two networks under permutations of their other units.

    Args:
        state, reference, spec: networks and groups that fit.
    """

    def __init__(self, state: State, reference: State, spec: PermutationSpec) -> None:
        self._groups = {group.name: group for group in spec.groups}
        self._places: dict[str, list[tuple[str, Slot]]] = {}
        for group in spec.groups:
            for slot in group.slots:
                if slot.compare:
                    self._places.setdefault(slot.tensor, []).append((group.name, slot))
        self._state = {name: state[name].detach().cpu().double() for name in self._places}
        self._reference = {name: reference[name].detach().cpu().double() for name in self._places}

    def identity(self) -> dict[str, Tensor]:
        """Every unit where it is."""
        return {name: torch.arange(group.size) for name, group in self._groups.items()}

    def objective(self, permutations: Mapping[str, Tensor], names: Iterable[str] | None = None) -> float:
        """Inner product with the reference, over all tensors or some."""
        names = self._places if names is None else names
        return sum((self._reference[n] * self._arranged(n, permutations)).sum().item() for n in names)

    def bound(self) -> float:
        """What the objective cannot exceed: the product of norms, tensor by tensor (Cauchy-Schwarz)."""
        return sum(self._state[n].norm().item() * self._reference[n].norm().item() for n in self._places)

    def cosine(self, group: PermutationGroup, permutations: Mapping[str, Tensor]) -> float:
        """Cosine between reference and network over all tensors of a group."""
        names = self._tensors(group.name)
        norms = [sum(side[n].square().sum().item() for n in names) for side in (self._state, self._reference)]
        product = (norms[0] * norms[1]) ** 0.5
        return self.objective(permutations, names) / product if product else 0.0

    def forward(self) -> dict[str, Tensor]:
        """Permutations chosen in the order of the groups, each by tensors that hold placed units only."""
        permutations = self.identity()
        placed: set[str] = set()
        for name in self._groups:
            settled = [
                tensor
                for tensor in self._tensors(name)
                if all(other in placed for other, slot in self._places[tensor] if other != name)
                and sum(other == name for other, _ in self._places[tensor]) == 1
            ]
            permutations[name] = self._best(name, permutations, settled or self._tensors(name))
            placed.add(name)
        return permutations

    def descend(
        self, permutations: dict[str, Tensor], names: list[str], generator: torch.Generator | None = None
    ) -> tuple[dict[str, Tensor], tuple[float, ...]]:
        """Improve the named groups one at a time until none improves; in random order where there is a generator.

        Returns:
            the permutations, and the objective at the start and after every step that was taken.
        """
        history = [self.objective(permutations)]
        for _ in range(_SWEEPS):
            order = torch.randperm(len(names), generator=generator) if generator else torch.arange(len(names))
            taken = len(history)
            for name in (names[k] for k in order):
                tensors = self._tensors(name)
                trial = {**permutations, name: self._best(name, permutations, tensors)}
                gain = self.objective(trial, tensors) - self.objective(permutations, tensors)
                if gain > 1e-12 * abs(history[-1]):
                    permutations = trial
                    history.append(history[-1] + gain)
            if len(history) == taken:
                break
        return permutations, tuple(history)

    def _tensors(self, name: str) -> list[str]:
        return list(dict.fromkeys(slot.tensor for slot in self._groups[name].slots if slot.compare))

    def _best(self, name: str, permutations: Mapping[str, Tensor], tensors: list[str]) -> Tensor:
        """The assignment for one group; where a tensor holds the group twice, its other dim is as it is."""
        group = self._groups[name]
        similarity = torch.zeros(group.size, group.size, dtype=torch.float64)
        for tensor in tensors:
            for owner, slot in self._places[tensor]:
                if owner == name:
                    rows = unit_rows(self._arranged(tensor, permutations, leave=slot), slot, group.size)
                    similarity += unit_rows(self._reference[tensor], slot, group.size) @ rows.T
        return best_permutation(similarity, group.bundle)

    def _arranged(self, tensor: str, permutations: Mapping[str, Tensor], leave: Slot | None = None) -> Tensor:
        result = self._state[tensor]
        for owner, slot in self._places[tensor]:
            if slot is not leave:
                result = rearranged(result, slot, permutations[owner])
        return result
