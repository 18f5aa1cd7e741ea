r"""A lower bound on the optimum over all supports: the dual of the perspective relaxation.

For every :math:`\alpha \in \mathbb{R}^{n \times T}` Fenchel's inequality :math:`\phi_i(z) \ge \alpha_i^\top z -
\phi_i^*(\alpha_i)` makes the objective separable, and its minimum over w in the simplex and over residuals of at most k
blocks is explicit. With :math:`g_w = A \alpha / n` (R,) and :math:`g_b = X_b^\top \alpha / n`,

.. math:: f(w, \Delta) \;\ge\; D(\alpha) = -\frac1n \sum_i \phi_i^*(\alpha_i) + \min_r g_{w,r}
          - \frac{1}{2\,\mathrm{ridge}} \sum_{b \in \text{k largest}} \|g_b\|^2 .

At :math:`\alpha_i = \nabla \phi_i(z_i)`, z the predictions of *any* weights and residual, the inequality is an equality
for these z, g is the gradient of the loss there, and the bound needs nothing but value and gradient:

.. math:: D = \ell(w, \Delta) - \big(w^\top g_w - \min_r g_{w,r}\big) - \Delta^\top g
          - \frac{1}{2\,\mathrm{ridge}} \sum_{b \in \text{k largest}} \|g_b\|^2 .

The largest D is the value of the perspective relaxation (Pilanci, Wainwright and El Ghaoui, Mathematical Programming
151, 2015; the k-support norm of Argyriou et al. 2012), a convex problem over :math:`0 \le z \le 1, \sum z_b \le k`:

.. math:: v(z) = \min_{w, \Delta}\; \ell(w, \Delta) + \tfrac{\mathrm{ridge}}{2} \sum_b \|\Delta_b\|^2 / z_b,
          \qquad \partial v / \partial z_b = -\|g_b\|^2 / (2\,\mathrm{ridge}).

It is a joint refit with other penalties, and D at its minimiser is v(z) minus its Frank-Wolfe gap. Whatever the
minimisation of v achieves, every D on the way is a bound.
"""

from __future__ import annotations

import time

import numpy as np

from pyro_smat.metrics.arrays import FloatArray
from pyro_smat.solvers.problem import Point, Problem
from pyro_smat.solvers.refit import Fit, refit

_MEMORY = 8  # values that a step may not exceed all of
_DECREASE = 1e-4
_SMALLEST = 1e-300  # divisor
_ROUNDING = 100 * float(np.finfo(np.float64).eps)
_TOLERANCE = 1e-7  # between v and D, relative to the fit's value


def dual_value(problem: Problem, point: Point) -> float:
    """D at the predictions of a point: no weights and residual within the budget have a lower objective.

    Args:
        problem: the task, with a ridge > 0.
        point: any weights in the simplex and any residual, within the budget or not.
    """
    return _dual(problem, point)[0]


def lower_bound(problem: Problem, fit: Fit, *, iterations: int = 200, deadline: float | None = None) -> float:
    """The best bound found from a fit: spectral projected gradient on z (Birgin, Martinez and Raydan 2000).

    Without a ridge the dual is minus infinity, and what is left is the loss of the best residual of any size: the
    least-squares optimum, which is 0 where examples are fewer than features, and 0 for the logistic loss.

    Args:
        problem: the task.
        fit: the best fit known; the search starts from its support and ends early where the bound meets its value.
        iterations: steps in z; 0 is the bound that the fit itself implies.
        deadline: ``time.monotonic()`` at which to stop.
    """
    if problem.ridge == 0:
        return min(fit.value, problem.unrestricted_loss())
    tolerance = _TOLERANCE * fit.value
    z = np.zeros(len(problem.blocks))
    z[fit.support] = 1.0
    bound, slope = _dual(problem, fit.point)
    best, relaxed = max(0.0, bound), fit  # no loss is negative
    recent = [fit.value]
    step = 1 / max(float(np.abs(slope).max()), _SMALLEST)
    for _ in range(iterations):
        if min(fit.value, relaxed.value) - best <= tolerance or (deadline and time.monotonic() >= deadline):
            break
        direction = capped_simplex_projection(z - step * slope, problem.budget) - z
        length = 1.0
        while True:
            moved = z + length * direction
            moved[moved < 1e-12] = 0.0
            candidate = _relaxed_refit(problem, moved, relaxed)
            allowed = max(recent[-_MEMORY:]) + _DECREASE * length * float(slope @ direction) + tolerance / 10
            if candidate.value <= allowed or length < 1e-6:
                break
            length /= 2
        bound, moved_slope = _dual(problem, candidate.point)
        best = max(best, bound)
        change, bend = moved - z, float((moved - z) @ (moved_slope - slope))
        if not change.any():
            break
        largest = max(float(np.abs(moved_slope).max()), _SMALLEST)
        step = float(np.clip(change @ change / bend if bend > 0 else np.inf, 1e-8 / largest, 1e3 / largest))
        z, slope, relaxed = moved, moved_slope, candidate
        recent.append(candidate.value)
    return min(fit.value, best)  # equality is up to rounding


def capped_simplex_projection(values: FloatArray, total: float) -> FloatArray:
    """The nearest point of 0 <= z <= 1 with sum at most ``total``, by bisection of the shift."""
    clipped = np.clip(values, 0.0, 1.0)
    if clipped.sum() <= total:
        return clipped
    low, high = 0.0, float(values.max())
    while (middle := (low + high) / 2) not in (low, high):
        if np.clip(values - middle, 0.0, 1.0).sum() > total:
            low = middle
        else:
            high = middle
    return np.clip(values - high, 0.0, 1.0)


def _dual(problem: Problem, point: Point) -> tuple[float, FloatArray]:
    """D at a point, less what rounding may have added, and -|g_b|^2 / (2 ridge) of every block.

    At a relaxed refit the latter is the gradient of v.
    """
    gradient = problem.gradient(point)
    slope = -problem.blocks.squared_norms(gradient.residual) / (2 * problem.ridge)
    gap = point.weights @ gradient.weights - gradient.weights.min()
    inner = point.values @ gradient.residual[point.entries]
    largest = np.sort(slope)[: problem.budget].sum()
    rounding = _ROUNDING * (gradient.loss + gap + abs(inner) - largest)
    return float(gradient.loss - gap - inner + largest - rounding), slope


def _relaxed_refit(problem: Problem, z: FloatArray, start: Fit) -> Fit:
    support = z.nonzero()[0]
    entries = problem.blocks.entries(support)
    return refit(problem, support, start, problem.ridge / z[problem.blocks.of_entry[entries]])
