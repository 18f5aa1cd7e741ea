"""Baselines: what people would do with the same library instead of routing, one a file, behind one interface.

In: a :class:`ComposedLibrary` and (for some) validation episodes. Out: a function from a batch of episodes to class
probabilities ``(B, Q, W)``. To add one, write one file; it is then named in a config's ``[evaluation]`` or passed to
:func:`pyro_smat.inference.evaluation.evaluate`::

    @register("baseline", "source_average")
    @dataclass(frozen=True)
    class SourceAverage(Baseline):
        composed: ComposedLibrary
        name: str = "average of all sources"

        def __call__(self, batch: EpisodeBatch) -> Tensor:
            return self.composed.source_probabilities(batch).mean(1)
"""

from pyro_smat.inference.evaluation.baselines.aligned_source import AlignedSource
from pyro_smat.inference.evaluation.baselines.baseline import Baseline, ComposedLibrary, ParameterBaseline
from pyro_smat.inference.evaluation.baselines.concatenation import Concatenation
from pyro_smat.inference.evaluation.baselines.hindsight import HindsightMixture, HindsightSource
from pyro_smat.inference.evaluation.baselines.linear_probe import LinearProbe
from pyro_smat.inference.evaluation.baselines.lora import LoRA
from pyro_smat.inference.evaluation.baselines.private_average import PrivateSourceAverage, private_source_average
from pyro_smat.inference.evaluation.baselines.router import RouterBaseline
from pyro_smat.inference.evaluation.baselines.soup import Soup, greedy_soup, uniform_soup
from pyro_smat.inference.evaluation.baselines.source_average import SourceAverage, WeightedSourceAverage
from pyro_smat.inference.evaluation.baselines.sources_alone import (
    BEST_BY_SUPPORT,
    ORACLE,
    BestSource,
    OracleSource,
    SingleSource,
)
from pyro_smat.inference.evaluation.baselines.sparse_residual import SparseResidual
from pyro_smat.inference.evaluation.baselines.subspace_residual import SubspaceResidual
from pyro_smat.inference.evaluation.baselines.support_mixture import SupportMixture
from pyro_smat.inference.evaluation.baselines.support_oracle import SupportOracle
from pyro_smat.inference.evaluation.baselines.task_arithmetic import TaskArithmetic, fit_task_arithmetic
from pyro_smat.inference.evaluation.baselines.validation import lowest_validation_loss, validation_loss

__all__ = [
    "BEST_BY_SUPPORT",
    "ORACLE",
    "AlignedSource",
    "Baseline",
    "BestSource",
    "ComposedLibrary",
    "Concatenation",
    "HindsightMixture",
    "HindsightSource",
    "LinearProbe",
    "LoRA",
    "OracleSource",
    "ParameterBaseline",
    "PrivateSourceAverage",
    "RouterBaseline",
    "SingleSource",
    "Soup",
    "SourceAverage",
    "SparseResidual",
    "SubspaceResidual",
    "SupportMixture",
    "SupportOracle",
    "TaskArithmetic",
    "WeightedSourceAverage",
    "fit_task_arithmetic",
    "greedy_soup",
    "lowest_validation_loss",
    "private_source_average",
    "uniform_soup",
    "validation_loss",
]
