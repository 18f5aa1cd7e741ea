r"""The oracle of one task: weights over the sources and a sparse residual, with certificates.

Frozen features, targets and source parameters come in; a search over supports (residual/) runs until it ends or a
budget is spent; the best fit leaves with its Frank-Wolfe gap, the residual of its optimality conditions and a lower
bound on what any support could achieve.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pyro_smat.metrics.arrays import FloatArray, Numbers
from pyro_smat.solvers.few_sources import search_few_sources
from pyro_smat.solvers.lower_bound import lower_bound
from pyro_smat.solvers.problem import Indices, Problem
from pyro_smat.solvers.problem_from_data import Loss, build_problem
from pyro_smat.solvers.refit import Fit, refit
from pyro_smat.solvers.residual import METHODS, Method

Status = Literal["finished", "iterations", "seconds", "active sources"]


@dataclass(frozen=True, eq=False)
class CompositionSolution:
    """A composition of one task and what is known about it.

    Attributes:
        weights: ``(R,)``, w in the simplex.
        residual: Delta, ``(d,)`` or ``(d, K)``, zero outside the support.
        support: ``(m,)`` blocks that are not zero, m <= budget: entries in row-major order where no partition is given.
        value: the objective, mean loss plus half the ridge times the squared norm of the residual.
        lower_bound: no weights and residual within the budget have a lower objective, whatever their support.
        simplex_gap: Frank-Wolfe gap of the weights among all sources: with this residual no weights are better by more.
        kkt_residual: of the joint refit of weights and residual on the support: the larger one of the Frank-Wolfe gap
            among the sources that ``max_active`` left (simplex_gap when it left all) and the largest absolute
            derivative in the residual.
        active: ``(a,)`` sources with weight.
        iterations: of the method.
        status: what ended the search: "finished" the method itself, "iterations" or "seconds" a budget, "active
            sources" the method itself, among fewer sources than the optimum would use.
        method: name of the method.
    """

    weights: FloatArray
    residual: FloatArray
    support: Indices
    value: float
    lower_bound: float
    simplex_gap: float
    kkt_residual: float
    active: Indices
    iterations: int
    status: Status
    method: str

    @property
    def certified_gap(self) -> float:
        """Value minus lower bound: how far from the best support the solution can be."""
        return self.value - self.lower_bound


def solve_composition(
    features: Numbers,
    targets: Numbers,
    sources: Numbers,
    *,
    budget: int,
    loss: Loss = "squared",
    ridge: float = 1e-2,
    blocks: Sequence[Numbers] | None = None,
    method: str = "splicing",
    start: CompositionSolution | None = None,
    max_iterations: int | None = None,
    max_active: int | None = None,
    seconds: float | None = None,
    bound_iterations: int = 200,
    seed: int = 0,
) -> CompositionSolution:
    r"""Compose a task's parameters from sources and a residual of at most k nonzeros, or k blocks.

    .. math:: \min_{w \in \Delta_R,\; \|\Delta\|_0 \le k}\;
              \frac1n \sum_i \phi_i\big(x_i^\top (\Theta w + \Delta)\big) + \tfrac{\mathrm{ridge}}{2} \|\Delta\|^2

    (equation 4 of the multi-source paper), phi being half the squared error or the cross-entropy. The search begins
    at the best weights without a residual. Squared loss: after O(n d R) for the statistics and O(n d) for each entry
    that is ever tried, an iteration does not touch the n examples (squared_problem.py). There is no intercept: give the
    features a column of ones for one, and the sources their own. How tight the lower bound is depends on the ridge
    (benchmarks/residual.py): for features of variance 1 usually within a few percent from 1e-2 on, loose where features
    outnumber examples by far, and without a ridge it says little (lower_bound.py).

    Args:
        features: X ``(n, d)``.
        targets: ``(n,)`` numbers for the squared loss; labels 0 and 1, or 0 to K - 1, for the logistic loss.
        sources: Theta ``(R, d)``, or ``(R, d, K)`` for the logistic loss with K classes.
        budget: k >= 0, how many entries of the residual, or blocks, may be nonzero. An entry is one of d K numbers.
        loss: "squared" or "logistic".
        ridge: >= 0, weight of half the squared norm of the residual.
        blocks: a partition of the d rows into sequences of row numbers; of K columns, a block holds whole rows.
        method: a name in ``residual.METHODS``.
        start: an earlier solution of such a task; the search begins from its support.
        max_iterations: iterations of the method, >= 0.
        max_active: largest number of sources with weight, >= 1. Which ones is a local search (few_sources.py), not
            always the best subset; the lower bound is of the problem without this cap.
        seconds: wall-clock seconds, > 0, for search and bound together, looked at between iterations; the first and
            the last refit happen in any case.
        bound_iterations: of the lower bound's improvement, which takes the seconds that the search left; 0 takes the
            bound that the solution itself implies.
        seed: of the methods that draw random numbers.

    Returns:
        A feasible solution with its certificates, whatever budget ended the search.

    Raises:
        ValueError: for shapes that do not match, no examples, NaN, labels that are none or a class without example, a
            budget that is negative or more than there are blocks, blocks that do not partition the rows, a negative
            ridge or one of 0 where a refit is singular, an unknown loss or method, and budgets that allow nothing.

    Example:
        >>> features, sources = np.eye(4), np.array([[1.0, 0, 0, 0], [0, 1, 0, 0]])
        >>> solution = solve_composition(features, [0.5, 0.5, 0, 2.0], sources, budget=1, ridge=0.0)
        >>> solution.weights, solution.support
        (array([0.5, 0.5]), array([3]))
    """
    began = time.monotonic()
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; expected one of {', '.join(METHODS)}")
    if (max_iterations is not None and max_iterations < 0) or bound_iterations < 0:
        raise ValueError(
            f"max_iterations is {max_iterations} and bound_iterations {bound_iterations}; expected numbers >= 0"
        )
    if max_active is not None and max_active < 1:
        raise ValueError(f"max_active is {max_active}; expected at least 1 source, for weights sum to 1")
    if seconds is not None and not seconds > 0:
        raise ValueError(f"seconds is {seconds}; expected a time > 0, or None for no limit")
    problem, shape = build_problem(features, targets, sources, budget=budget, loss=loss, ridge=ridge, blocks=blocks)
    support = np.empty(0, dtype=np.intp) if start is None else start.support
    if len(support) > budget or (len(support) and support.max() >= len(problem.blocks)):
        raise ValueError(
            f"start has {len(support)} blocks on, the last one {int(support.max())}; expected at most {budget} of the "
            f"{len(problem.blocks)} blocks of this task"
        )

    clock = _Clock(max_iterations, None if seconds is None else began + seconds)
    search = _Search(METHODS[method], seed, clock)
    if max_active is None or max_active >= problem.sources:
        fit = search(problem, refit(problem, support))
    else:
        fit = search_few_sources(problem, refit(problem, support), max_active, search, clock.spent)
    return _solution(problem, fit, shape, method, clock, bound_iterations)


@dataclass
class _Clock:
    """What is left of the budgets, and which one ended the search."""

    iterations_left: int | None
    deadline: float | None
    iterations: int = 0
    status: Status = "finished"

    def spent(self) -> bool:
        if self.iterations_left is not None and self.iterations >= self.iterations_left:
            self.status = "iterations"
        elif self.deadline is not None and time.monotonic() >= self.deadline:
            self.status = "seconds"
        return self.status != "finished"


@dataclass(frozen=True)
class _Search:
    """Run a method under the budgets and refit the best it came across."""

    method: Method
    seed: int
    clock: _Clock

    def __call__(self, problem: Problem, start: Fit) -> Fit:
        best, steps = start, iter(self.method(problem, start, self.seed))
        while not self.clock.spent() and (fit := next(steps, None)) is not None:
            self.clock.iterations += 1
            if fit.value < best.value:
                best = fit
        return refit(problem, best.support, best)


def _solution(
    problem: Problem, fit: Fit, shape: tuple[int, ...], method: str, clock: _Clock, bound_iterations: int
) -> CompositionSolution:
    gradient = problem.gradient(fit.point)
    gap = max(0.0, float(fit.point.weights @ gradient.weights - gradient.weights.min()))
    status = clock.status
    if status == "finished" and gap > max(1e-9 * problem.scale, 2 * fit.kkt_residual):
        status = "active sources"
    residual = fit.point.residual(problem.size)
    return CompositionSolution(
        weights=fit.point.weights,
        residual=residual.reshape(shape),
        support=problem.blocks.squared_norms(residual).nonzero()[0],
        value=fit.value,
        lower_bound=lower_bound(problem, fit, iterations=bound_iterations, deadline=clock.deadline),
        simplex_gap=gap,
        kkt_residual=fit.kkt_residual,
        active=fit.point.weights.nonzero()[0],
        iterations=clock.iterations,
        status=status,
        method=method,
    )
