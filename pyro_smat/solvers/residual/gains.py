r"""What a block is worth at a joint refit, to second order: how much a new one would gain, how much an old one holds.

At a refit the gradient vanishes along everything that is free: the entries of the support and the directions
:math:`e_r - e_{r'}` between sources with weight. Let H be the Hessian of the objective on these. Letting the entries of
another block b move as well, and everything free with them, lowers the second-order expansion by

.. math:: \tfrac12 g_b^\top \big(H_{bb} + \mathrm{ridge}\, I - H_{bF} H_{FF}^{-1} H_{Fb}\big)^{-1} g_b,

and taking block b of the support away raises it by :math:`\tfrac12 \Delta_b^\top [(H^{-1})_{bb}]^{-1} \Delta_b`. For
the squared loss both are exact as long as the sources with weight stay the same. What all features have in common, and
what other sources would explain, is projected out; a plain gradient sees it in every coordinate.
"""

from __future__ import annotations

import numpy as np

from pyro_smat.metrics.arrays import FloatArray
from pyro_smat.solvers.problem import Problem
from pyro_smat.solvers.refit import Fit

_SINGULAR = 1e-10  # smaller curvature, relative to the block's own, counts as none
_FLAT = 1e-13  # the same, among the free directions, relative to the largest


def addition_gains(problem: Problem, fit: Fit) -> FloatArray:
    """``(L,)`` decrease of the value when each block joins; -inf for those in, and those the support already spans."""
    gradient = problem.gradient(fit.point).residual
    cross = problem.cross_hessian(fit.point) @ _whitening(problem, fit)  # (p, f)
    gains = np.full(len(problem.blocks), -np.inf)
    for (numbers, entries), own in zip(problem.blocks.by_size, problem.block_hessians(fit.point), strict=True):
        whole = own + problem.ridge * np.eye(entries.shape[1])
        curvatures, axes = np.linalg.eigh(whole - cross[entries] @ cross[entries].mT)
        along = np.einsum("msa,ms->ma", axes, gradient[entries])
        sound = curvatures[:, 0] > _SINGULAR * np.trace(whole, axis1=1, axis2=2)
        gains[numbers[sound]] = (along[sound] ** 2 / curvatures[sound]).sum(1) / 2
    gains[fit.support] = -np.inf
    return gains


def removal_costs(problem: Problem, fit: Fit) -> FloatArray:
    """``(m,)`` increase of the value when each block of the support leaves, in the order of ``fit.support``."""
    half = _whitening(problem, fit)[problem.sources :]
    inverse = half @ half.T  # the residual's part of the inverse Hessian
    costs, first = np.empty(len(fit.support)), 0
    for place, number in enumerate(fit.support):
        own = slice(first, first + len(problem.blocks.members[number]))
        values = fit.point.values[own]
        costs[place] = values @ np.linalg.lstsq(inverse[own, own], values, rcond=None)[0] / 2
        first = own.stop
    return costs


def _whitening(problem: Problem, fit: Fit) -> FloatArray:
    """W ``(R + s, f)``: its columns span the free directions that have curvature, and W'HW = I."""
    weights, count = fit.point.weights, problem.sources
    hessian = problem.expand(fit.point).hessian
    hessian[count:, count:] += problem.ridge * np.eye(len(hessian) - count)
    largest = int(weights.argmax())
    active = weights.nonzero()[0]
    free = np.eye(len(hessian))[:, np.concatenate([active[active != largest], np.arange(count, len(hessian))])]
    free[largest, : len(active) - 1] = -1.0  # the face of the simplex: differences to its largest weight
    curvatures, axes = np.linalg.eigh(free.T @ hessian @ free)
    kept = curvatures > _FLAT * curvatures.max(initial=0.0)
    return free @ axes[:, kept] / np.sqrt(curvatures[kept])
