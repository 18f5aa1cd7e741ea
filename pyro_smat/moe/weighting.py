"""How a router weighs the experts it chose, found out from its own rule by a few made-up logits.

Choosing experts otherwise than by the largest logits (sampling without replacement) needs the weights of *given*
experts. Families differ: softmax over all or over the chosen, sigmoid with or without normalisation, a constant scale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: x.softmax(-1),
    "sigmoid": torch.sigmoid,
    "sqrtsoftplus": lambda x: F.softplus(x).sqrt(),
}


@dataclass(frozen=True)
class Weighting:
    """Weights of chosen experts.

    Attributes:
        score: "softmax", "sigmoid" or "sqrtsoftplus", of all logits.
        normalised: whether the weights of the chosen are divided by their sum.
        scale: a constant factor.
    """

    score: str
    normalised: bool
    scale: float

    def __call__(self, logits: Tensor, index: Tensor) -> Tensor:
        """The weights ``(..., k)`` of experts ``index (..., k)`` with logits ``(..., E)``."""
        chosen = _SCORES[self.score](logits).gather(-1, index)
        if self.normalised:
            chosen = chosen / chosen.sum(-1, keepdim=True)
        return chosen * self.scale


def weighting_of(
    rule: Callable[[Tensor], tuple], num_experts: int, device: torch.device, name: str = "router"
) -> Weighting:
    """The weighting of a rule ``logits (n, E) -> (logits, weights (n, k), index (n, k))``.

    Raises:
        NotImplementedError: when none of the known ones fits.
    """
    probe = torch.randn(16, num_experts, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.no_grad():
        outputs = rule(probe)
    if len(outputs) == 3 and outputs[1].shape == outputs[2].shape and not outputs[2].is_floating_point():
        weights, index = outputs[1].float(), outputs[2]
        for score in _SCORES:
            for normalised in (True, False):
                ratio = weights / Weighting(score, normalised, 1.0)(probe, index)
                scale = ratio.mean()
                if (ratio / scale - 1).abs().max() < 1e-4:
                    return Weighting(score, normalised, float(scale))
    raise NotImplementedError(
        f"router {name!r} weighs experts by a rule that is not known (softmax, sigmoid or square root of softplus, "
        "normalised or not, times a constant); experts can be chosen for it only by its own rule: return logits"
    )
