"""Posteriors on their way: a guide announces the one that it samples from, and whoever wants it listens.

guide(batch) -> announce(posterior) -> Heard: a training step logs the posterior of its own trace, at no second pass.
"""

from __future__ import annotations

from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import effectful

from pyro_smat.guides.posterior import RoutingPosterior


class Heard(Messenger):
    """Keeps the posteriors that guides announce inside the block, in their order.

    Attributes:
        posteriors: one of every run of a guide.

    Example:
        >>> import torch
        >>> from pyro_smat.guides import PointPosterior
        >>> with Heard() as heard:
        ...     posterior = announce(PointPosterior(torch.zeros(1, 2), 2))
        >>> heard.posteriors == [posterior]
        True
    """

    def __init__(self) -> None:
        super().__init__()
        self.posteriors: list[RoutingPosterior] = []

    def _pyro_posterior(self, msg: Any) -> None:
        self.posteriors.append(*msg["args"])


def _same(posterior: RoutingPosterior) -> RoutingPosterior:
    return posterior


announce = effectful(_same, type="posterior")
