"""Cost: a router and a machine in; prices of sources and experts out, and routings that keep within a budget.

Prices by the block (:class:`CostModel`, :func:`calibrate`), enforced by prior (:meth:`CostModel.source_prices`), by
projection (:func:`project_to_budget`) or by a Lagrangian (:func:`solve_weight`).
"""

from pyro_smat.cost.active import compose_active
from pyro_smat.cost.calibration import Calibration, calibrate
from pyro_smat.cost.front import non_dominated
from pyro_smat.cost.lagrangian import BudgetedChoice, penalised_choice, satisfaction, solve_weight, within_budget
from pyro_smat.cost.model import CostModel, open_entries_of
from pyro_smat.cost.projection import project_to_budget

__all__ = [
    "BudgetedChoice",
    "Calibration",
    "CostModel",
    "calibrate",
    "compose_active",
    "non_dominated",
    "open_entries_of",
    "penalised_choice",
    "project_to_budget",
    "satisfaction",
    "solve_weight",
    "within_budget",
]
