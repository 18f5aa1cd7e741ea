"""What is known about the dims of tensors while a network is traced: which of them carry the same units.

The rules of ``layers.py`` and ``operations.py`` write here; ``trace.py`` reads the groups off at the end.
Everything errs to one side: units that meet something unknown are *fixed*, which costs an alignment a few units and
never makes it wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from pyro_smat.sources.alignment.spec import Observation, PermutationGroup, PermutationSpec, Slot


class Units:
    """A set of units; sets that turn out to be the same are joined (union-find), the earlier one stands for both."""

    def __init__(self, number: int, name: str, size: int, hidden: bool) -> None:
        self.number, self.name, self.size, self.hidden = number, name, size, hidden
        self.bundle, self.fixed = 1, False
        self._parent = self

    def root(self) -> Units:
        """The set that stands for this one."""
        while self._parent is not self:
            self = self._parent
        return self

    def join(self, other: Units) -> bool:
        """Make two sets of one size the same; False when their bundles differ, which fixes both."""
        first, second = sorted((self.root(), other.root()), key=lambda units: units.number)
        fits = first.bundle == second.bundle or 1 in (first.bundle, second.bundle)
        first.fixed = first.fixed or second.fixed or not fits
        first.bundle = max(first.bundle, second.bundle)
        first.hidden = first.hidden or second.hidden
        second._parent = first
        return fits


@dataclass(frozen=True)
class Axis:
    """A dim that carries units, ``block`` neighbouring coordinates each."""

    units: Units
    block: int = 1


Axes = tuple[Axis | None, ...]
"""One entry a dim; None where the order of coordinates must stay."""


class Ledger:
    """Attachments of units to the dims of a module's tensors.

    Attributes:
        where: the place in the network that is being read, for notes and names.
    """

    def __init__(self, module: nn.Module) -> None:
        self.where = ""
        self._names: dict[int, list[str]] = {}
        for name, tensor in module.state_dict(keep_vars=True).items():
            self._names.setdefault(id(tensor), []).append(name)
        self._parameters = {id(tensor) for tensor in module.parameters()}
        self._attached: dict[tuple[int, int], tuple[Axis | None, int]] = {}
        self._observed: list[tuple[Axis, Observation]] = []
        self._notes: dict[str, None] = {}
        self._count = 0

    def new(self, size: int, name: str = "", hidden: bool = True) -> Axis | None:
        """Fresh units, named after the place; None for a single one. Notes speak of hidden ones only."""
        self._count += 1
        return Axis(Units(self._count, name or self.where, size, hidden)) if size > 1 else None

    def fix(self, axis: Axis | None, why: str = "") -> None:
        """Keep units in place; ``why`` goes into the notes unless they were fixed before."""
        if axis is None or axis.units.root().fixed:
            return
        root = axis.units.root()
        root.fixed = True
        if why and root.hidden:
            self._notes[f"{self.where}: {why}; {root.size} units of {root.name} stay in place"] = None

    def unite(self, first: Axis | None, second: Axis | None, why: str = "") -> Axis | None:
        """Two dims that must move together; when they cannot (one of them stays), both stay."""
        if first is None or second is None or (first.block, first.units.size) != (second.block, second.units.size):
            self.fix(first, why)
            self.fix(second, why)
            return None
        if not first.units.join(second.units):
            self._notes[f"{self.where}: two normalisations group {first.units.size} units differently"] = None
        return first

    def bundle(self, axis: Axis | None, size: int) -> None:
        """Consecutive units that stay together."""
        if axis is None:
            return
        root = axis.units.root()
        if axis.block == 1 and root.bundle in (1, size):
            root.bundle = size
        else:
            self.fix(axis, f"bundles of {size} do not fit those of another layer")

    def attach(self, tensor: Tensor | None, dim: int, axis: Axis | None, repeat: int = 1) -> None:
        """A dim of a parameter or buffer carries these units; a tensor that is not in the state dict fixes them."""
        if tensor is None:
            return
        if id(tensor) not in self._names:
            self.fix(axis, "a weight is computed from others (a parametrization)")
            return
        known, times = self._attached.setdefault((id(tensor), dim), (axis, repeat))
        if times != repeat:
            self.fix(axis, "a tensor is used in two layouts")
            self.fix(known, "a tensor is used in two layouts")
        else:
            self._attached[id(tensor), dim] = (self.unite(known, axis, "a tensor that stays is shared"), repeat)

    def observe(self, dim: int, axis: Axis | None) -> None:
        """The output of the layer at this place has units along ``dim``."""
        if axis is not None and axis.block == 1:
            self._observed.append((axis, Observation(self.where, dim)))

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """A part of the layer at this place."""
        outer, self.where = self.where, f"{self.where}.{name}".lstrip(".")
        yield
        self.where = outer

    def spec(self, unobserved: set[str]) -> PermutationSpec:
        """The groups that are free to move; modules in ``unobserved``, or called twice, are not observed."""
        slots: dict[Units, list[Slot]] = {}
        for (identity, dim), (axis, repeat) in self._attached.items():
            if axis is not None and not axis.units.root().fixed:
                slots.setdefault(axis.units.root(), []).extend(
                    Slot(name, dim, axis.block, repeat, identity in self._parameters) for name in self._names[identity]
                )
        calls = Counter(seen.module for _, seen in self._observed)
        groups = []
        for units in sorted(slots, key=lambda units: units.number):
            observations = tuple(
                seen
                for axis, seen in self._observed
                if axis.units.root() is units and calls[seen.module] == 1 and seen.module not in unobserved
            )
            bundle = 1 if units.bundle == units.size else units.bundle
            groups.append(PermutationGroup(units.name, units.size, tuple(slots[units]), bundle, observations))
        return PermutationSpec(tuple(groups), tuple(self._notes))
