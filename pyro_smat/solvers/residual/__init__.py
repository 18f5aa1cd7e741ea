"""Searches over the support of the residual, one method a file behind one signature.

``method(problem, start, seed)`` yields a feasible :class:`~pyro_smat.solvers.refit.Fit` after every iteration, so that
whoever consumes it (composition.py) can stop whenever a budget is spent.
"""

from collections.abc import Callable, Iterator, Mapping

from pyro_smat.solvers.problem import Problem
from pyro_smat.solvers.refit import Fit
from pyro_smat.solvers.residual.greedy import greedy
from pyro_smat.solvers.residual.group_lasso import group_lasso
from pyro_smat.solvers.residual.hard_concrete import hard_concrete_gates
from pyro_smat.solvers.residual.iht import iterative_hard_thresholding
from pyro_smat.solvers.residual.niht import normalised_iht
from pyro_smat.solvers.residual.splicing import splicing
from pyro_smat.solvers.residual.subspace_pursuit import subspace_pursuit

Method = Callable[[Problem, Fit, int], Iterator[Fit]]

METHODS: Mapping[str, Method] = {
    "splicing": splicing,
    "greedy": greedy,
    "subspace_pursuit": subspace_pursuit,
    "niht": normalised_iht,
    "iht": iterative_hard_thresholding,
    "group_lasso": group_lasso,
    "hard_concrete": hard_concrete_gates,
}

__all__ = [
    "METHODS",
    "Method",
    "greedy",
    "group_lasso",
    "hard_concrete_gates",
    "iterative_hard_thresholding",
    "normalised_iht",
    "splicing",
    "subspace_pursuit",
]
