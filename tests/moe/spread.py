"""A Gaussian posterior of routing around a router's own logits, in every shape that prediction knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch

from pyro_smat.moe import RouterCall


@dataclass(frozen=True)
class Spread:
    """A posterior N(l + shift, scale^2) of a given shape."""

    scale: float
    shift: float = 0.0
    family: str = "normal"

    def distribution(self, call: RouterCall) -> Any:
        loc = call.logits + self.shift * torch.linspace(-1, 1, call.logits.shape[-1])
        if self.family == "normal":
            return dist.Normal(loc, self.scale).to_event(1)
        if self.family == "full":
            return dist.MultivariateNormal(loc, scale_tril=self.scale * torch.eye(loc.shape[-1]).expand(*loc.shape, -1))
        factor = torch.zeros(*loc.shape, 2)
        return dist.LowRankMultivariateNormal(loc, factor, torch.full_like(loc, self.scale**2))
