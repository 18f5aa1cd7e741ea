"""Entropy of the argmax: how often which source and which expert weigh most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_smat.float64 import in_float64
from pyro_smat.inference.decision.rules.rule import check_positive
from pyro_smat.inference.decision.scores.score import UncertaintyScore, mean_over_blocks
from pyro_smat.registry import register

if TYPE_CHECKING:
    from pyro_smat.inference.decision.routed_batch import RoutedBatch


@register("uncertainty_score", "argmax_entropy")
@dataclass(frozen=True)
class ArgmaxEntropy(UncertaintyScore):
    """Entropy, in nats, of the pair of source and expert with the largest weights in a draw; mean over blocks.

    Attributes:
        num_samples: at least 1.

    Raises:
        ValueError: for fewer than one.
    """

    num_samples: int = 64

    def __post_init__(self) -> None:
        check_positive("num_samples", self.num_samples)

    def __call__(self, routed: RoutedBatch) -> Tensor:
        drawn = routed.posterior.sample(self.num_samples, routed.generator)
        count = len(routed.model.source_names)
        sources, experts = drawn[..., :count], drawn[..., count:]
        cell, cells = sources.argmax(-1), count
        if experts.shape[-1]:
            cell, cells = cell * experts.shape[-1] + experts.argmax(-1), cells * experts.shape[-1]
        shares = torch.nn.functional.one_hot(cell, cells).to(drawn.dtype).mean(0)  # (B, [L,] cells)
        return in_float64(mean_over_blocks(torch.special.entr(shares).sum(-1), routed.num_blocks))
