"""KL to the prior, negated: a posterior that has left its prior has seen something."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from pyro_smat.float64 import in_float64
from pyro_smat.inference.decision.scores.score import UncertaintyScore
from pyro_smat.networks.initial_weights import DrawsFrom
from pyro_smat.registry import register

if TYPE_CHECKING:
    from pyro_smat.inference.decision.routed_batch import RoutedBatch


@register("uncertainty_score", "kl_to_prior")
@dataclass(frozen=True)
class KLToPrior(UncertaintyScore):
    """-KL(q || prior) in nats; a Monte Carlo estimate where there is no closed form."""

    label: ClassVar[str] = "KL to the prior"

    def __call__(self, routed: RoutedBatch) -> Tensor:
        with DrawsFrom(routed.fresh_generator()):  # a Monte Carlo KL draws from the global generator
            return -in_float64(routed.posterior.kl(routed.model.prior))
