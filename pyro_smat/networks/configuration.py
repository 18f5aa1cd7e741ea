"""The configuration that a network was built from elsewhere, kept with it: a saved router carries it.

A network by name alone may be another one tomorrow: a folder moves or is edited, defaults of a package change. What
such a network was built from is plain JSON; its constructor leaves it here, saving writes it, and loading hands it back
to the same constructor as ``saved_configuration``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

_KEPT = "_pyro_smat_configuration"


def keep_configuration(network: nn.Module, values: Mapping[str, Any]) -> nn.Module:
    """``network``, which from now on knows the plain values that it was built from.

    Example:
        >>> configuration_of(keep_configuration(nn.Identity(), {"layers": 3}))
        {'layers': 3}
    """
    object.__setattr__(network, _KEPT, dict(values))
    return network


def configuration_of(network: nn.Module) -> Mapping[str, Any] | None:
    """What :func:`keep_configuration` left; None for a network whose name and options say all."""
    found: Mapping[str, Any] | None = getattr(network, _KEPT, None)
    return found
