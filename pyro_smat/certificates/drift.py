r"""Drift: has a stream of scores left the distribution of a reference? A test that may be looked at all the time.

Every new score gets its rank among the reference and all earlier scores; if all are exchangeable, these p-values are
independent and uniform (Vovk, Gammerman and Shafer 2005, theorem 8.2). A gambler bets on p-values that are too small or
too large; under exchangeability the wealth ever reaches :math:`1/\alpha` with probability at most :math:`\alpha`
(Ville). The bets are those of the "simple jumper" (Vovk et al. 2021, "Retrain or not retrain", section 3).
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pyro_smat.metrics.arrays import Numbers, float_array

_BETS = np.array([-1.0, 0.0, 1.0])  # small p-values, none, large p-values
_JUMP = 0.01  # how much of the wealth is spread over the bets anew at every step


@dataclass
class ConformalMartingale:
    """Wealth of a gambler who bets that new scores are not like the earlier ones.

    Attributes:
        seed: of the ranks of ties.
        seen: reference and stream, ascending.
        steps: scores of the stream so far.
        shares: ``(3,)`` how the wealth is spread over the bets.
        log_wealth, highest: ln of the wealth now, and its maximum so far.
    """

    seen: list[float]
    seed: int = 0
    steps: int = 0
    shares: list[float] = field(default_factory=lambda: [1 / 3] * 3)
    log_wealth: float = 0.0
    highest: float = 0.0

    def __post_init__(self) -> None:
        if not self.seen or any(math.isnan(x) for x in self.seen) or self.seen != sorted(self.seen):
            raise ValueError("seen is empty, unsorted or holds NaN; expected reference scores in ascending order")
        if self.seed < 0 or self.steps < 0:
            raise ValueError(f"seed is {self.seed} and steps is {self.steps}; expected whole numbers from 0")
        if len(self.shares) != 3 or not all(x >= 0 for x in self.shares) or not 0.999 < sum(self.shares) < 1.001:
            raise ValueError(f"shares are {self.shares}; expected three shares of the wealth, which sum to 1")
        if not self.log_wealth <= self.highest or not math.isfinite(self.highest):
            raise ValueError(
                f"log_wealth is {self.log_wealth} and highest {self.highest}; expected numbers, highest the larger one"
            )

    @classmethod
    def from_reference(cls, scores: Numbers, seed: int = 0) -> ConformalMartingale:
        """Start from reference scores ``(n,)``, those of validation episodes.

        Raises:
            ValueError: for none, or NaN.
        """
        return cls(sorted(float_array(scores, "reference scores", finite=False).tolist()), seed)

    def update(self, score: float) -> float:
        """Bet on one score; returns ln of the wealth.

        Raises:
            ValueError: for NaN.
        """
        if math.isnan(score):
            raise ValueError("the score is NaN; expected a number")
        below, equal = bisect_left(self.seen, score), bisect_right(self.seen, score) - bisect_left(self.seen, score)
        above = len(self.seen) - below - equal
        tie = np.random.default_rng([self.seed, self.steps]).random()
        p = (above + tie * (equal + 1)) / (len(self.seen) + 1)
        spread = (1 - _JUMP) * np.array(self.shares) + _JUMP / len(_BETS)
        spread = spread * (1 + _BETS * (p - 0.5))
        growth = float(spread.sum())
        self.log_wealth += math.log(growth)
        self.highest = max(self.highest, self.log_wealth)
        self.shares = (spread / growth).tolist()
        insort(self.seen, score)
        self.steps += 1
        return self.log_wealth

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; ``ConformalMartingale(**data)`` goes on where it stopped."""
        return dict(vars(self))
