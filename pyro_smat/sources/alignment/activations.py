"""Activation matching: pairs the units of two networks that do the same on the same inputs.

One assignment a group on the correlations of activations over a calibration set (Li et al. 2016, "Convergent
learning"; Ainsworth et al. 2022, section 3.1; Jordan et al. 2022). Module, two state dicts, groups and inputs in;
Alignment out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pyro_smat.networks.evaluation_mode import EvaluationMode
from pyro_smat.sources.alignment.assignment import best_permutation
from pyro_smat.sources.alignment.loading import loaded
from pyro_smat.sources.alignment.result import Alignment, GroupAlignment, State, check_pair, distance, moved
from pyro_smat.sources.alignment.spec import Observation, PermutationSpec, permute
from pyro_smat.sources.alignment.weights import WeightSearch


def align_activations(
    state: State,
    reference: State,
    groups: PermutationSpec,
    module: nn.Module,
    inputs: Tensor,
    *,
    batch_size: int = 64,
) -> Alignment:
    """Rearrange a network's units so that each correlates best with the unit of the reference in its place.

    The objective is the mean, over the units of all observed groups, of the correlation with the reference (positions
    of a feature map count as samples; a group seen by several modules takes the mean of their correlations). Groups
    that no module shows, such as attention heads, are matched by weights once the others are placed.

    Args:
        state: the network to rearrange.
        reference: the network to resemble.
        groups: what can change places, with the modules to observe.
        module: the network that both fit; runs as copies.
        inputs: calibration inputs, at least 2.
        batch_size: inputs run at once.

    Raises:
        ValueError: when networks, groups and module do not fit, there are fewer than 2 inputs, or a module that is to
            be observed does not exist, does not run exactly once, or makes something of another shape.
    """
    check_pair(state, reference, groups)
    if len(inputs) < 2:
        raise ValueError(f"there are {len(inputs)} calibration inputs; expected at least 2")
    correlations = _correlations(module, state, reference, groups, inputs, batch_size)
    search = WeightSearch(state, reference, groups)
    identity = search.identity()
    permutations = dict(identity)
    for group in groups.groups:
        if group.name in correlations:
            permutations[group.name] = best_permutation(correlations[group.name], group.bundle)
    unseen = [group.name for group in groups.groups if group.name not in correlations]
    permutations, _ = search.descend(permutations, unseen)

    rows, totals, units = [], [0.0, 0.0], 0
    for group in groups.groups:
        order = permutations[group.name]
        if group.name in correlations:
            table = correlations[group.name]
            before, after = table.diagonal().mean().item(), table[torch.arange(group.size), order].mean().item()
            totals = [totals[0] + before * group.size, totals[1] + after * group.size]
            units += group.size
        else:
            before, after = search.cosine(group, identity), search.cosine(group, permutations)
        by = "activations" if group.name in correlations else "weights"
        rows.append(GroupAlignment(group.name, group.size, moved(order), before, after, by))
    objective_before, objective_after = (total / max(units, 1) for total in totals)
    aligned = permute(state, groups, permutations)
    return Alignment(
        state=aligned,
        permutations=permutations,
        groups=tuple(rows),
        objective_before=objective_before,
        objective_after=objective_after,
        history=(objective_before, objective_after),
        distance_before=distance(state, reference, groups),
        distance_after=distance(aligned, reference, groups),
    )


@dataclass
class _Moments:
    """Running sums over samples for the correlations between two sets of units."""

    count: int = 0
    sums: list[Tensor] = field(default_factory=list)

    def add(self, first: Tensor, second: Tensor) -> None:
        """Rows ``(units, samples)`` of both networks."""
        parts = [first.sum(1), second.sum(1), first.square().sum(1), second.square().sum(1), first @ second.T]
        self.count += first.shape[1]
        self.sums = [a + b for a, b in zip(self.sums, parts, strict=True)] if self.sums else parts

    def correlation(self) -> Tensor:
        """``(units, units)``; zero where a unit is constant."""
        first, second, first_squares, second_squares, products = (total / self.count for total in self.sums)
        covariance = products - first[:, None] * second
        scale = ((first_squares - first**2).clamp(min=0)[:, None] * (second_squares - second**2).clamp(min=0)).sqrt()
        floor = 1e-12 * (first_squares[:, None] * second_squares).sqrt()  # what is left of a constant is rounding
        return torch.where(scale > floor, covariance / scale.clamp(min=torch.finfo(torch.float64).tiny), 0.0)


def _correlations(
    module: nn.Module, state: State, reference: State, spec: PermutationSpec, inputs: Tensor, batch_size: int
) -> dict[str, Tensor]:
    networks = [loaded(module, weights) for weights in (reference, state)]
    observed = {seen for group in spec.groups for seen in group.observations}
    sizes = {seen: group.size for group in spec.groups for seen in group.observations}
    seen_by: list[dict[str, list[Tensor]]] = [{}, {}]
    hooks = []
    for network, outputs in zip(networks, seen_by, strict=True):
        parts = dict(network.named_modules())
        for name in {seen.module for seen in observed}:
            if name not in parts:
                raise ValueError(
                    f"module {name!r} is to be observed, but {type(module).__name__} has none of this name"
                )
            hooks.append(parts[name].register_forward_hook(_recorder(outputs, name)))
    moments = {seen: _Moments() for seen in observed}
    try:
        with torch.no_grad():
            for batch in inputs.split(batch_size):
                for network, outputs in zip(networks, seen_by, strict=True):
                    outputs.clear()
                    with EvaluationMode(network, batched=False, gradient=False):  # no fused layers: they call no parts
                        network(batch.clone())
                for seen in observed:
                    moments[seen].add(*(_samples(outputs, seen, sizes[seen]) for outputs in seen_by))
    finally:
        for hook in hooks:
            hook.remove()
    return {
        group.name: torch.stack([moments[seen].correlation() for seen in group.observations]).mean(0)
        for group in spec.groups
        if group.observations
    }


def _recorder(outputs: dict[str, list[Tensor]], name: str) -> Callable[[nn.Module, Any, Tensor], None]:
    def record(_: nn.Module, __: Any, output: Tensor) -> None:
        outputs.setdefault(name, []).append(output.clone())  # the next layer may work in place

    return record


def _samples(outputs: dict[str, list[Tensor]], seen: Observation, size: int) -> Tensor:
    """``(size, samples)`` float64."""
    calls = outputs.get(seen.module, [])
    if len(calls) != 1 or calls[0].ndim <= seen.dim or calls[0].shape[seen.dim] != size:
        raise ValueError(
            f"module {seen.module!r} made outputs of shapes {[tuple(c.shape) for c in calls]}; expected one call, with "
            f"{size} units along dim {seen.dim}"
        )
    return calls[0].movedim(seen.dim, 0).reshape(size, -1).double()
