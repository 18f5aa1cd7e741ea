r"""Composition weights with a certificate: one entry to all methods for a function on a simplex.

Callers choose an objective (objectives.py) and budgets; what comes back is always feasible and says how far from the
optimum it can be at most (certified.py).
"""

from __future__ import annotations

import time
from typing import Literal, get_args

import numpy as np

from pyro_smat.metrics.arrays import FloatArray, Numbers
from pyro_smat.solvers.certified import Budget, SimplexSolution
from pyro_smat.solvers.corrective import minimize_by_newton
from pyro_smat.solvers.frank_wolfe import (
    Backtracking,
    Exact,
    OpenLoop,
    Rule,
    Step,
    away,
    blended,
    frank_wolfe,
    pairwise,
    vanilla,
)
from pyro_smat.solvers.objectives import CurvedObjective, QuadraticObjective, SimplexObjective
from pyro_smat.solvers.validation import feasible_weights

Method = Literal["corrective", "vanilla", "open-loop", "away", "pairwise", "blended"]

_RULES: dict[str, Rule] = {
    "vanilla": vanilla,
    "open-loop": vanilla,
    "away": away,
    "pairwise": pairwise,
    "blended": blended,
}


def minimize_on_simplex(
    objective: SimplexObjective,
    *,
    method: Method | None = None,
    start: Numbers | None = None,
    tolerance: float = 1e-8,
    max_iterations: int = 10_000,
    max_active: int | None = None,
    seconds: float | None = None,
) -> SimplexSolution:
    r"""Minimise a function of composition weights over :math:`\{w_l \ge 0, \sum_r w_{lr} = 1\}`.

    Args:
        objective: what to minimise.
        method: "corrective", Newton steps that are exact quadratic programs (one step is all for a quadratic); or a
            Frank-Wolfe method: "vanilla", "away", "pairwise" and "blended" with line search, "open-loop" with steps
            2 / (t + 2). None takes "corrective" for an objective with a Hessian, else "pairwise".
        start: ``(R,)`` or ``(L, R)`` feasible weights, such as a router's. None starts at the best single source, for
            which the value of each is computed, but from nowhere in particular for Newton steps without max_active.
        tolerance: gap at which to stop, in the unit of the objective.
        max_iterations: most gradients to take.
        max_active: most sources with weight, in every block; of a start the heaviest are kept.
        seconds: time after which to stop; an iteration that has begun is finished.

    Returns:
        The best iterate with its certificate.

    Raises:
        ValueError: for a method that is unknown or needs a Hessian that there is none of, budgets that allow nothing,
            or a start that is not feasible.

    Example:
        >>> objective = QuadraticObjective.from_predictions([[0.0, 1.0], [2.0, 0.0]], [0.5, 1.0])
        >>> minimize_on_simplex(objective).weights
        array([0.5, 0.5])
    """
    began = time.perf_counter()
    _check(method, tolerance, max_iterations, max_active, seconds)
    budget = Budget(tolerance, max_iterations, max_active, None if seconds is None else began + seconds)
    given = None if start is None else _heaviest(feasible_weights(start, objective.shape), max_active)
    if isinstance(objective, CurvedObjective) and method in (None, "corrective"):
        if given is None and max_active is None:
            given = np.full(objective.shape, 1 / objective.shape[-1])
        return minimize_by_newton(objective, _best_source(objective) if given is None else given, budget)
    if method == "corrective":
        raise ValueError(
            f"method is 'corrective' and {type(objective).__name__} has no hessian; expected 'pairwise' or another "
            "Frank-Wolfe method"
        )
    method = method or "pairwise"
    return frank_wolfe(
        objective, _best_source(objective) if given is None else given, budget, _RULES[method], _step(objective, method)
    )


def _step(objective: SimplexObjective, method: Method) -> Step:
    if method == "open-loop":
        return OpenLoop()
    return Exact(objective.gram) if isinstance(objective, QuadraticObjective) else Backtracking()


def _best_source(objective: SimplexObjective) -> FloatArray:
    """All weight, in every block, on the single source of lowest value."""
    vertices = [np.broadcast_to(vertex, objective.shape).copy() for vertex in np.eye(objective.shape[-1])]
    return min(vertices, key=objective.value)


def _heaviest(weights: FloatArray, most: int | None) -> FloatArray:
    """The ``most`` largest weights of every block, renormalised."""
    if most is None or most >= weights.shape[-1]:
        return weights
    order = np.argsort(-weights, axis=-1, kind="stable")
    kept = weights.copy()
    np.put_along_axis(kept, order[..., most:], 0.0, axis=-1)
    return kept / kept.sum(-1, keepdims=True)


def _check(
    method: str | None, tolerance: float, max_iterations: int, max_active: int | None, seconds: float | None
) -> None:
    if method is not None and method not in get_args(Method):
        raise ValueError(f"method is {method!r}; expected one of {', '.join(map(repr, get_args(Method)))}")
    if not tolerance >= 0:
        raise ValueError(f"tolerance is {tolerance!r}; expected a gap >= 0")
    if max_iterations < 1:
        raise ValueError(f"max_iterations is {max_iterations!r}; expected at least 1, the gap of the start costs one")
    if max_active is not None and max_active < 1:
        raise ValueError(f"max_active is {max_active!r}; expected at least 1 source, or None for no limit")
    if seconds is not None and not seconds > 0:
        raise ValueError(f"seconds is {seconds!r}; expected a time > 0, or None for no limit")
