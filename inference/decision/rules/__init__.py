"""Decision rules: from a posterior over routings to the networks of a task and their weights, one rule a file.

In: a posterior (and its batch, for rules that look at it). Out: a :class:`~pyro_smat.inference.decision.Mixture`.
To add one, write a frozen dataclass in a file of this folder (or in one of your own, "file.py:Name")::

    @register("decision_rule", "tempered")
    @dataclass(frozen=True)
    class Tempered(DecisionRule):
        k: int = 4

        def __call__(self, posterior, batch=None, *, generator=None) -> Mixture: ...
"""

from pyro_smat.inference.decision.rules.fallback import Fallback
from pyro_smat.inference.decision.rules.gibbs import Gibbs
from pyro_smat.inference.decision.rules.map import Map
from pyro_smat.inference.decision.rules.mean import Mean
from pyro_smat.inference.decision.rules.posterior_predictive import PosteriorPredictive
from pyro_smat.inference.decision.rules.rule import DecisionRule
from pyro_smat.inference.decision.rules.top_k import TopK
from pyro_smat.inference.decision.rules.uniform_mixing import UniformMixing

__all__ = ["DecisionRule", "Fallback", "Gibbs", "Map", "Mean", "PosteriorPredictive", "TopK", "UniformMixing"]
