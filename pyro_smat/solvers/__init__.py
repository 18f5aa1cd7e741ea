"""Solvers: predictions or features of sources and the targets of a task in; the best mixture and its certificate out.

One task (:func:`minimize_on_simplex`, :func:`solve_composition`) or many at once. A residual method is a file in
``residual/``.
"""

from pyro_smat.solvers.active_set import solve_simplex_qp
from pyro_smat.solvers.batched import BatchedSolution, minimize_quadratics_on_simplex
from pyro_smat.solvers.certified import SimplexSolution
from pyro_smat.solvers.composition import CompositionSolution, solve_composition
from pyro_smat.solvers.objectives import CurvedObjective, LogisticObjective, QuadraticObjective, SimplexObjective
from pyro_smat.solvers.simplex import minimize_on_simplex

__all__ = [
    "BatchedSolution",
    "CompositionSolution",
    "CurvedObjective",
    "LogisticObjective",
    "QuadraticObjective",
    "SimplexObjective",
    "SimplexSolution",
    "minimize_on_simplex",
    "minimize_quadratics_on_simplex",
    "solve_composition",
    "solve_simplex_qp",
]
