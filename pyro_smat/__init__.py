"""pyro-smat: Bayesian routing over composed networks."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyro_smat.episodes import Episode, EpisodeBatch
    from pyro_smat.inference import RoutedClassifier
    from pyro_smat.inference.diagnostics import diagnose
    from pyro_smat.networks.parameters import ParameterSpace
    from pyro_smat.sources import SourceLibrary

__version__ = "0.1.0"
__all__ = ["Episode", "EpisodeBatch", "ParameterSpace", "RoutedClassifier", "SourceLibrary", "__version__", "diagnose"]

# In a checkout the rooms that users edit stand beside this folder; an installed package has them inside.
_CHECKOUT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if all(os.path.isfile(os.path.join(_CHECKOUT, *part)) for part in (("pyproject.toml",), ("models", "routed.py"))):
    __path__.append(_CHECKOUT)

_HOMES = {
    "Episode": "pyro_smat.episodes",
    "EpisodeBatch": "pyro_smat.episodes",
    "ParameterSpace": "pyro_smat.networks",
    "RoutedClassifier": "pyro_smat.inference",
    "SourceLibrary": "pyro_smat.sources",
    "diagnose": "pyro_smat.inference.diagnostics",
}


def __getattr__(name: str) -> Any:
    """Public names load on first use, so that ``pyro-smat --help`` does not wait for PyTorch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'pyro_smat' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
