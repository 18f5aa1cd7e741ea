r"""Greedy forward selection with joint refit: the block of the largest gain joins, then everything is refitted.

Orthogonal least squares with the weights among the regressors: the gain of a block is what it is worth after the
weights and the blocks already there have readjusted (gains.py), so that sources which explain an effect are not
outbid by entries that are correlated with it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pyro_smat.solvers.problem import Problem
from pyro_smat.solvers.refit import Fit, refit
from pyro_smat.solvers.residual.gains import addition_gains


def greedy(problem: Problem, start: Fit, seed: int = 0) -> Iterator[Fit]:
    """Add one block an iteration to the start until the budget is used or no block gains anything.

    Args:
        problem: the task.
        start: a refit, usually of the empty support.
        seed: not used; the method is deterministic.

    Yields:
        The refit after every addition.
    """
    return grow(problem, start, problem.budget)


def grow(problem: Problem, fit: Fit, size: int) -> Iterator[Fit]:
    """Greedy additions up to a support of ``size`` blocks."""
    while len(fit.support) < size:
        gains = addition_gains(problem, fit)
        best = int(gains.argmax())
        if not gains[best] > 0:
            return
        fit = refit(problem, np.append(fit.support, best), fit)
        yield fit
