r"""The loss barrier between two networks: how much worse the networks on the way from one to the other are.

:math:`\max_t L((1-t)\,a + t\,b) - ((1-t) L(a) + t L(b))` (Frankle et al. 2020, "Linear mode connectivity"; Entezari et
al. 2021). Two state dicts and a loss in; losses along the segment out. About zero means that the networks mix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

Loss = Callable[[dict[str, Tensor]], float]


@dataclass(frozen=True)
class Segment:
    """Losses on the way from network a to network b.

    Attributes:
        positions: t of every point, increasing from 0 (a) to 1 (b).
        losses: the loss at every point.
    """

    positions: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def excess(self) -> tuple[float, ...]:
        """How far every point is above the straight line between the ends."""
        first, last = self.losses[0], self.losses[-1]
        return tuple(loss - ((1 - t) * first + t * last) for t, loss in zip(self.positions, self.losses, strict=True))

    @property
    def barrier(self) -> float:
        """The largest excess; at least 0, which the ends have."""
        return max(self.excess)


def interpolate(a: Mapping[str, Tensor], b: Mapping[str, Tensor], t: float) -> dict[str, Tensor]:
    """``(1 - t) a + t b`` for floating-point tensors, a's own for integers; exactly a at 0 and b at 1."""
    return {
        name: tensor if t == 0 or not tensor.is_floating_point() else b[name] if t == 1 else tensor.lerp(b[name], t)
        for name, tensor in a.items()
    }


def loss_along(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], loss: Loss, positions: Sequence[float] | int = 11
) -> Segment:
    """Losses of the networks on the segment from a to b.

    Args:
        a, b: state dicts of one network.
        loss: takes a state dict, gives a number; recompute running statistics in there to measure with them.
        positions: number of points at equal distances, or the points themselves, increasing from 0 to 1.

    Raises:
        ValueError: for positions that do not run from 0 to 1, networks with different tensors, or a loss that is not
            finite.
    """
    grid = (
        [k / (positions - 1) for k in range(positions)] if isinstance(positions, int) and positions > 1 else positions
    )
    if isinstance(grid, int) or len(grid) < 2 or grid[0] != 0 or grid[-1] != 1 or sorted(set(grid)) != list(grid):
        raise ValueError(f"positions are {positions}; expected at least two, increasing from 0 to 1")
    if different := [n for n in sorted(a.keys() | b.keys()) if n not in a or n not in b or a[n].shape != b[n].shape]:
        raise ValueError(f"the networks differ in tensors {different[:5]}; expected two of one architecture")
    losses = []
    for t in grid:
        value = float(loss(interpolate(a, b, t)))
        if not math.isfinite(value):
            raise ValueError(f"the loss is {value} at t = {t:g}; expected a finite number")
        losses.append(value)
    return Segment(tuple(float(t) for t in grid), tuple(losses))
