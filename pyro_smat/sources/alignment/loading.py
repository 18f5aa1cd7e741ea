"""A copy of a network with given weights, for running state dicts without touching the template."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import Tensor, nn

from pyro_smat.networks.parameters import ParameterSpace


def loaded[M: nn.Module](module: M, state: Mapping[str, Tensor]) -> M:
    """A copy of ``module`` in evaluation mode that holds ``state``; integer buffers may be missing from it.

    Raises:
        ValueError: when the state does not fit; every missing, extra, misshapen or non-finite tensor is listed.
    """
    problems = ParameterSpace.from_module(module).differences(state)
    if problems:
        raise ValueError(f"weights do not fit {type(module).__name__}:\n  " + "\n  ".join(problems))
    network = copy.deepcopy(module)
    network.load_state_dict(dict(state), strict=False)
    return network.eval().requires_grad_(False)
