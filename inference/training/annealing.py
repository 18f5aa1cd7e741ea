"""How the weight of the KL grows in training, so that a posterior is not pressed into the prior before it has learned.

Warm-up: from 0 to 1 over the first steps (Bowman et al. 2016). Cyclical: the same again in every cycle (Fu et al.
2019).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class KLSchedule:
    """The share of ``kl_weight`` that counts at a step.

    Attributes:
        warmup: steps of linear growth from 0 to 1, in every cycle; 0 is constant.
        cycles: how often training starts again at 0; the last cycle ends with training.
    """

    warmup: int = 0
    cycles: int = 1

    def __post_init__(self) -> None:
        if self.warmup < 0 or self.cycles < 1:
            raise ValueError(f"warmup is {self.warmup} and cycles {self.cycles}; expected >= 0 and >= 1")

    def factor(self, step: int, steps: int) -> float:
        """Factor in [0, 1] at ``step`` of ``steps``.

        Example:
            >>> [round(KLSchedule(warmup=2, cycles=2).factor(s, 8), 1) for s in range(8)]
            [0.0, 0.5, 1.0, 1.0, 0.0, 0.5, 1.0, 1.0]
        """
        cycle = step * self.cycles // max(1, steps)
        start = -(-cycle * steps // self.cycles)
        return min(1.0, (step - start) / self.warmup) if self.warmup else 1.0
