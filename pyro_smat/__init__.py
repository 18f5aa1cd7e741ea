"""pyro-smat: Bayesian routing over composed networks.

``from pyro_smat import ...`` gives what a first program needs; the rooms export the rest (:mod:`pyro_smat.models`,
:mod:`pyro_smat.guides`, :mod:`pyro_smat.inference`, :mod:`pyro_smat.episodes`, ...). Names load on first use.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyro_smat.episodes import (
        Episode,
        EpisodeBatch,
        EpisodeSampler,
        Labelled,
        glyph_pool,
        read_csv,
        read_folder,
        write_folder,
    )
    from pyro_smat.guides import (
        CatalogGuide,
        ConcreteGuide,
        DirichletGuide,
        HierarchicalGuide,
        LogisticNormalGuide,
        PointGuide,
        PseudoBMAGuide,
    )
    from pyro_smat.inference import (
        CVaR_ELBO,
        Deployment,
        MetaTrainer,
        RoutedClassifier,
        SourceReference,
        TrainingSettings,
        evaluate,
    )
    from pyro_smat.inference.diagnostics import diagnose
    from pyro_smat.models import RoutedModel
    from pyro_smat.models.priors import (
        CatalogPrior,
        ConcretePrior,
        CostAwareCatalogPrior,
        DirichletPrior,
        HierarchicalPrior,
        LogisticNormalPrior,
        MixturePrior,
        SimplexCostPrior,
    )
    from pyro_smat.networks import ExpertBank, ParameterSpace, TaskNetwork, build_network, compose
    from pyro_smat.networks.features import SourceFeatures
    from pyro_smat.routing import Catalog
    from pyro_smat.sources import SourceLibrary
    from pyro_smat.sources.pretraining import pretrain

__version__ = "0.1.0"
__all__ = [
    "CVaR_ELBO",
    "Catalog",
    "CatalogGuide",
    "CatalogPrior",
    "ConcreteGuide",
    "ConcretePrior",
    "CostAwareCatalogPrior",
    "Deployment",
    "DirichletGuide",
    "DirichletPrior",
    "Episode",
    "EpisodeBatch",
    "EpisodeSampler",
    "ExpertBank",
    "HierarchicalGuide",
    "HierarchicalPrior",
    "Labelled",
    "LogisticNormalGuide",
    "LogisticNormalPrior",
    "MetaTrainer",
    "MixturePrior",
    "ParameterSpace",
    "PointGuide",
    "PseudoBMAGuide",
    "RoutedClassifier",
    "RoutedModel",
    "SimplexCostPrior",
    "SourceFeatures",
    "SourceLibrary",
    "SourceReference",
    "TaskNetwork",
    "TrainingSettings",
    "__version__",
    "build_network",
    "compose",
    "diagnose",
    "evaluate",
    "glyph_pool",
    "pretrain",
    "read_csv",
    "read_folder",
    "write_folder",
]

# In a checkout the rooms that users edit stand beside this folder; an installed package has them inside.
_CHECKOUT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if all(os.path.isfile(os.path.join(_CHECKOUT, *part)) for part in (("pyproject.toml",), ("models", "routed.py"))):
    __path__.append(_CHECKOUT)

_HOMES = {
    "episodes": "Episode EpisodeBatch EpisodeSampler Labelled glyph_pool read_csv read_folder write_folder",
    "guides": (
        "CatalogGuide ConcreteGuide DirichletGuide HierarchicalGuide LogisticNormalGuide PointGuide PseudoBMAGuide"
    ),
    "inference": ("CVaR_ELBO Deployment MetaTrainer RoutedClassifier SourceReference TrainingSettings evaluate"),
    "inference.diagnostics": "diagnose",
    "models": "RoutedModel",
    "models.priors": (
        "CatalogPrior ConcretePrior CostAwareCatalogPrior DirichletPrior HierarchicalPrior LogisticNormalPrior "
        "MixturePrior SimplexCostPrior"
    ),
    "networks": "ExpertBank ParameterSpace TaskNetwork build_network compose",
    "networks.features": "SourceFeatures",
    "routing": "Catalog",
    "sources": "SourceLibrary",
    "sources.pretraining": "pretrain",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """Public names load on first use, so that ``pyro-smat --help`` does not wait for PyTorch."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'pyro_smat' has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"pyro_smat.{_HOME_OF[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
