"""Sources: checkpoint files in; a library of parameter vectors out, opened lazily, checked, mixed and compressed.

A form of storage is one file in ``codecs/``; what permutes hidden units is in ``alignment/``.
"""

from pyro_smat.sources.checkpoint import Checkpoint
from pyro_smat.sources.compatibility import CompatibilityReport, check_compatibility
from pyro_smat.sources.compression import CompressionResult, compress
from pyro_smat.sources.library import SourceLibrary
from pyro_smat.sources.opening import load_weights, open_checkpoint, without_wrappers
from pyro_smat.sources.subspace import FeatureSubspace, fit_subspace, load_subspace, save_subspace

__all__ = [
    "Checkpoint",
    "CompatibilityReport",
    "CompressionResult",
    "FeatureSubspace",
    "SourceLibrary",
    "check_compatibility",
    "compress",
    "fit_subspace",
    "load_subspace",
    "load_weights",
    "open_checkpoint",
    "save_subspace",
    "without_wrappers",
]
