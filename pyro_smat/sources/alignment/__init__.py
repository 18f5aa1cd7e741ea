"""Alignment: rearrange the hidden units of checkpoints so that they can be mixed.

``find_groups`` says which units can change places, ``check_groups`` proves it, ``align_weights`` and
``align_activations`` choose the places, ``loss_along`` measures the barrier between two networks, and
``recompute_statistics`` repairs batch normalisation after mixing.
"""

from pyro_smat.sources.alignment.activations import align_activations
from pyro_smat.sources.alignment.barrier import Segment, interpolate, loss_along
from pyro_smat.sources.alignment.few_shot import FewShotLoss, FewShotScore
from pyro_smat.sources.alignment.files import align_files
from pyro_smat.sources.alignment.result import Alignment, GroupAlignment, align_all
from pyro_smat.sources.alignment.spec import (
    Observation,
    PermutationGroup,
    PermutationSpec,
    Slot,
    permute,
    random_permutations,
)
from pyro_smat.sources.alignment.statistics import recompute_statistics
from pyro_smat.sources.alignment.trace import example_input, find_groups
from pyro_smat.sources.alignment.verify import check_groups
from pyro_smat.sources.alignment.weights import align_weights

__all__ = [
    "Alignment",
    "FewShotLoss",
    "FewShotScore",
    "GroupAlignment",
    "Observation",
    "PermutationGroup",
    "PermutationSpec",
    "Segment",
    "Slot",
    "align_activations",
    "align_all",
    "align_files",
    "align_weights",
    "check_groups",
    "example_input",
    "find_groups",
    "interpolate",
    "loss_along",
    "permute",
    "random_permutations",
    "recompute_statistics",
]
