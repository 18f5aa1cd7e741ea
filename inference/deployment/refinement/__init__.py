"""Refinement: what a deployed router does with a task's support beyond routing it, one mode a file."""

from pyro_smat.inference.deployment.refinement.batch import refine_batch, refine_episodes, refined_probabilities
from pyro_smat.inference.deployment.refinement.dirichlet import DirichletRefinement, FacePosterior
from pyro_smat.inference.deployment.refinement.frank_wolfe import FrankWolfe
from pyro_smat.inference.deployment.refinement.gradient import GradientRefinement
from pyro_smat.inference.deployment.refinement.mode import Refinement, RefinementMode
from pyro_smat.inference.deployment.refinement.objective import SupportObjective
from pyro_smat.inference.deployment.refinement.parsing import parse_refinement
from pyro_smat.inference.deployment.refinement.risk_averse import RiskAverse
from pyro_smat.inference.deployment.refinement.worst_case import WorstCaseObjective, worst_weights

__all__ = [
    "DirichletRefinement",
    "FacePosterior",
    "FrankWolfe",
    "GradientRefinement",
    "Refinement",
    "RefinementMode",
    "RiskAverse",
    "SupportObjective",
    "WorstCaseObjective",
    "parse_refinement",
    "refine_batch",
    "refine_episodes",
    "refined_probabilities",
    "worst_weights",
]
