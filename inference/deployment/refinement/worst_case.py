r"""The worst that weights near w can do: a linear loss exactly, the support loss by linearisation.

The neighbourhood is :math:`\{w' \in \Delta_R : \|w' - w\|_1 \le \epsilon\}`: at most epsilon / 2 of the mass has moved.
For a linear loss g the adversary takes it from the sources of least loss, in their order, and puts it on the source of
largest loss; no linear program is needed.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pyro_smat.metrics.arrays import FloatArray
from pyro_smat.solvers import SimplexObjective


def worst_weights(losses: FloatArray, weights: FloatArray, radius: float) -> FloatArray:
    r"""The argmax of :math:`\langle g, w' \rangle` over w' in the simplex with :math:`\|w' - w\|_1 \le \epsilon`.

    Where g holds the losses of the R sources by themselves, the maximum bounds the loss of every mixture w' whose loss
    is convex in its predictions and whose predictions are linear in w' (averaged predictions, linear networks on
    frozen features), by Jensen. It bounds nothing for weights that are mixed inside a deep network.

    Args:
        losses: g, ``(*b, R)``.
        weights: w, ``(*b, R)``, on the simplex.
        radius: epsilon, 0 to 2.

    Returns:
        ``(*b, R)``.
    """
    order, removed = _removal(losses, weights, radius)
    worst = np.array(weights, dtype=np.float64)
    np.put_along_axis(worst, order, np.take_along_axis(worst, order, -1) - removed, -1)
    top = order[..., -1:]
    np.put_along_axis(worst, top, np.take_along_axis(worst, top, -1) + removed.sum(-1, keepdims=True), -1)
    return worst


class WorstCaseObjective:
    r"""Loss at the worst weights near w, :math:`F(w) = f(w^*(w))`.

    :math:`w^*(w)` is the exact worst point for the linearisation of f at w, block by block, and f is evaluated there.
    So F is the worst case itself where f is linear, and otherwise the loss of one point of the neighbourhood: a lower
    bound of its worst case, not an upper one. w* is piecewise affine in w, hence the exact gradient (almost
    everywhere): that of f at w*, but a source that the adversary empties counts like the next that it would take from.

    A :class:`pyro_smat.solvers.SimplexObjective` that is not convex.

    Args:
        objective: f.
        radius: epsilon.
    """

    convex: bool = False

    def __init__(self, objective: SimplexObjective, radius: float) -> None:
        self.objective, self.radius = objective, radius
        self.shape = objective.shape

    def value(self, weights: FloatArray) -> float:
        return self.objective.value(worst_weights(self.objective.gradient(weights), weights, self.radius))

    def gradient(self, weights: FloatArray) -> FloatArray:
        slope = self.objective.gradient(weights)
        there = self.objective.gradient(worst_weights(slope, weights, self.radius))
        order = slope.argsort(-1, kind="stable")
        taken = np.take_along_axis(weights, order, -1)[..., :-1].cumsum(-1) < self.radius / 2
        last = np.take_along_axis(order, taken.sum(-1, keepdims=True), -1)  # still has mass: the rest is taken here
        pulled = np.take_along_axis(there, order, -1)
        pulled[..., :-1] = np.where(taken, np.take_along_axis(there, last, -1), pulled[..., :-1])
        np.put_along_axis(there, order, pulled, -1)
        return there


def _removal(losses: FloatArray, weights: FloatArray, radius: float) -> tuple[npt.NDArray[np.intp], FloatArray]:
    """Sources in the order of their losses ``(*b, R)``, and the mass that each loses to the last."""
    order = np.argsort(losses, -1, kind="stable")
    mass = np.take_along_axis(weights, order, -1)
    before = mass.cumsum(-1) - mass
    return order, np.clip(radius / 2 - before, 0.0, mass)
