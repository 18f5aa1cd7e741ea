"""RoutingMonitor: are the tasks that arrive still like those of validation?

Follows two numbers of every routed task, the KL of its posterior to the prior and its entropy, and raises an alarm that
is false with probability at most alpha over the whole life of the monitor, however long that is and however often it
is asked. Its state is a JSON file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, TypeAdapter
from torch import Tensor

from pyro_smat.certificates.drift import ConformalMartingale
from pyro_smat.files import read_record, write_record
from pyro_smat.guides.posterior import RoutingPosterior
from pyro_smat.metrics.arrays import Numbers
from pyro_smat.models.priors import RoutingPrior

FORMAT = 2  # format 1 had no digest


@dataclass(frozen=True)
class MonitorReading:
    """What the monitor says after a task.

    Attributes:
        steps: tasks so far.
        alarm: whether it has ever been raised.
        evidence: score -> wealth of the gambler now; the alarm is raised when one reaches ``needed``.
        needed: number of scores / alpha.
    """

    steps: int
    alarm: bool
    evidence: dict[str, float]
    needed: float

    def __str__(self) -> str:
        values = ", ".join(f"{name} {value:.3g}" for name, value in self.evidence.items())
        state = "DRIFT: tasks are no longer like those of validation" if self.alarm else "no alarm"
        return f"task {self.steps}: {state} (evidence {values}; alarm at {self.needed:g})"


class RoutingMonitor:
    """An anytime-valid test that routing scores are exchangeable with those of validation episodes.

    Each score has its own betting martingale (:class:`~pyro_smat.certificates.drift.ConformalMartingale`); they share
    alpha.

    Args:
        martingales: score -> its martingale.
        alpha: probability of ever raising a false alarm.

    Raises:
        ValueError: for an alpha outside (0, 1), or no score to follow.
    """

    def __init__(self, martingales: dict[str, ConformalMartingale], alpha: float = 0.01) -> None:
        if not 0 < alpha < 1:
            raise ValueError(f"alpha is {alpha!r}; expected a false-alarm probability in (0, 1)")
        if not martingales:
            raise ValueError("got no score to follow; expected at least one")
        self.martingales, self.alpha = martingales, alpha

    @classmethod
    def from_validation(cls, scores: dict[str, Numbers], alpha: float = 0.01, seed: int = 0) -> RoutingMonitor:
        """Start from the scores of validation episodes, each ``(n,)``."""
        return cls(
            {k: ConformalMartingale.from_reference(v, seed + i) for i, (k, v) in enumerate(scores.items())}, alpha
        )

    def update(self, scores: dict[str, float]) -> MonitorReading:
        """Follow one more task.

        Raises:
            ValueError: when a score that is followed is missing or NaN.
        """
        missing = [name for name in self.martingales if name not in scores]
        if missing:
            raise ValueError(
                f"scores hold {sorted(scores)}; expected {', '.join(self.martingales)} (missing {missing})"
            )
        for name, martingale in self.martingales.items():
            martingale.update(float(scores[name]))
        return self.reading

    @property
    def reading(self) -> MonitorReading:
        """What it says now."""
        needed = len(self.martingales) / self.alpha
        return MonitorReading(
            steps=next(iter(self.martingales.values())).steps,
            alarm=any(m.highest >= math.log(needed) for m in self.martingales.values()),
            evidence={name: math.exp(m.log_wealth) for name, m in self.martingales.items()},
            needed=needed,
        )

    def save(self, path: str | Path) -> None:
        """Write the state as JSON, with a digest."""
        martingales = {name: martingale.to_dict() for name, martingale in self.martingales.items()}
        write_record(Path(path), {"format": FORMAT, "alpha": self.alpha, "martingales": martingales})

    @classmethod
    def load(cls, path: str | Path) -> RoutingMonitor:
        """What :meth:`save` wrote; goes on exactly where that stopped.

        Raises:
            ValueError: for a missing, damaged or foreign file.
        """
        where = Path(path)
        saved = read_record(where, _SAVED, format=FORMAT, writer="RoutingMonitor.save", undigested=1)
        try:
            return cls(saved.martingales, saved.alpha)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error


class _Saved(BaseModel):
    model_config = ConfigDict(extra="forbid")

    alpha: float
    martingales: dict[str, ConformalMartingale]


_SAVED = TypeAdapter(_Saved)


@torch.no_grad()
def routing_scores(posterior: RoutingPosterior, prior: RoutingPrior) -> dict[str, Tensor]:
    """KL to the prior and entropy of every episode, each ``(B,)`` in nats: what the monitor follows."""
    return {"kl": posterior.kl(prior), "entropy": posterior.entropy()}
