r"""Subspace pursuit with joint refit: k blocks join by their gradient, all are refitted, k stay by their size.

Dai and Milenkovic, IEEE Transactions on Information Theory 55, 2009, with the weights refitted along with the residual.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pyro_smat.solvers.problem import Problem
from pyro_smat.solvers.refit import Fit, refit


def subspace_pursuit(problem: Problem, start: Fit, seed: int = 0) -> Iterator[Fit]:
    """Widen, refit, prune, refit, as long as the value falls.

    Args:
        problem: the task.
        start: a refit, usually of the empty support.
        seed: not used; the method is deterministic.

    Yields:
        The refits of supports within the budget, each better than the one before.

    Raises:
        ValueError: at a ridge of 0, when the refit of twice the budget is singular.
    """
    fit = start
    while True:
        gradient = problem.gradient(fit.point).residual
        gradient[fit.point.entries] = 0.0
        joining = problem.blocks.largest(gradient, problem.budget)
        wide = refit(problem, np.concatenate([fit.support, joining]), fit)
        kept = problem.blocks.largest(wide.point.residual(problem.size), problem.budget)
        narrow = refit(problem, kept, wide)
        if not narrow.value < fit.value:
            return
        fit = narrow
        yield fit
