"""Baselines: what people would do with the same library instead of routing, one a file, behind one interface.

Library and (for some) validation episodes -> a function from a batch of episodes to class probabilities, which is what
:func:`pyro_smat.inference.evaluation.evaluation.evaluate` takes as ``baselines``.
"""

from pyro_smat.inference.evaluation.baselines.baseline import Baseline, ComposedLibrary, ParameterBaseline
from pyro_smat.inference.evaluation.baselines.hindsight import HindsightMixture, HindsightSource
from pyro_smat.inference.evaluation.baselines.linear_probe import LinearProbe
from pyro_smat.inference.evaluation.baselines.lora import LoRA
from pyro_smat.inference.evaluation.baselines.mixture import Mixture
from pyro_smat.inference.evaluation.baselines.single_source import BestSource, Fallback
from pyro_smat.inference.evaluation.baselines.soup import Soup, greedy_soup, uniform_soup
from pyro_smat.inference.evaluation.baselines.sparse_residual import SparseResidual
from pyro_smat.inference.evaluation.baselines.support_oracle import SupportOracle
from pyro_smat.inference.evaluation.baselines.task_arithmetic import TaskArithmetic, fit_task_arithmetic
from pyro_smat.inference.evaluation.baselines.validation import lowest_validation_loss, validation_loss

__all__ = [
    "Baseline",
    "BestSource",
    "ComposedLibrary",
    "Fallback",
    "HindsightMixture",
    "HindsightSource",
    "LinearProbe",
    "LoRA",
    "Mixture",
    "ParameterBaseline",
    "Soup",
    "SparseResidual",
    "SupportOracle",
    "TaskArithmetic",
    "fit_task_arithmetic",
    "greedy_soup",
    "lowest_validation_loss",
    "uniform_soup",
    "validation_loss",
]
