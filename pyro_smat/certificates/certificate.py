"""Certificate: an upper bound together with everything it is a statement about.

Losses of held-out episodes -> a bound that fails with probability at most delta. The population is part of the result,
because it is the part that is easily forgotten: episodes drawn from a pool of images certify new episodes *from this
pool*, and say nothing of new classes, images or domains.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pyro_smat.metrics.arrays import FloatArray

BoolArray = npt.NDArray[np.bool_]
Quantity = Literal["mean", "CVaR", "selective risk"]
UNINFORMATIVE = 0.95  # of the range of the loss: a bound from here up says next to nothing


@dataclass(frozen=True)
class Certificate:
    """With probability at least 1 - delta over the held-out episodes, the quantity is at most ``bound``.

    Attributes:
        bound: in units of the loss, at most ``loss_range[1]``.
        estimate: the plain empirical value, for comparison; it certifies nothing.
        delta: probability that the bound fails.
        count: N, independent episodes.
        quantity: "mean", "CVaR" or "selective risk".
        rho: tail fraction of a CVaR, else None.
        method: how the bound was computed.
        loss: what was measured, e.g. "error".
        loss_range: its smallest and largest possible value.
        population: what new episodes have to be draws from for the bound to speak of them.
        note: a remark on how the bound has to be read, empty if there is none.
    """

    bound: float
    estimate: float
    delta: float
    count: int
    quantity: Quantity
    method: str
    rho: float | None = None
    loss: str = "loss"
    loss_range: tuple[float, float] = (0.0, 1.0)
    population: str = "new episodes drawn as these were"
    note: str = ""

    @property
    def level(self) -> float:
        """1 - delta."""
        return 1.0 - self.delta

    @property
    def informative(self) -> bool:
        """Whether the bound excludes a noticeable part of the range of the loss."""
        low, high = self.loss_range
        return self.bound < low + UNINFORMATIVE * (high - low)

    def about(self, loss: str, population: str) -> Certificate:
        """The same certificate with the loss and the population named."""
        return replace(self, loss=loss, population=population)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with "level" and "informative"."""
        return {
            **asdict(self),
            "loss_range": list(self.loss_range),
            "level": self.level,
            "informative": self.informative,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Certificate:
        """What :meth:`to_dict` wrote."""
        values = {k: v for k, v in data.items() if k not in ("level", "informative")}
        return cls(**{**values, "loss_range": tuple(values["loss_range"])})

    def __str__(self) -> str:
        name = self.quantity if self.rho is None else f"{self.quantity} (worst {100 * self.rho:g}%)"
        value = f"<= {self.bound:.4f}" if self.informative else "uninformative"
        text = (
            f"{name} of {self.loss} {value} with probability {100 * self.level:g}% "
            f"({self.method}, N = {self.count}, estimate {self.estimate:.4f}); about {self.population}"
        )
        return f"{text}; {self.note}" if self.note else text


def check_delta(delta: float) -> None:
    """Refuse a failure probability outside (0, 1).

    Raises:
        ValueError: when ``delta`` is not in (0, 1).
    """
    if not 0 < delta < 1 or math.isnan(delta):
        raise ValueError(f"delta is {delta!r}; expected a failure probability in (0, 1), e.g. 0.05")


def accepted_tasks(scores: FloatArray, threshold: float) -> BoolArray:
    """``(N,)`` bool: scores ``(N,)`` of at most the threshold; a threshold of minus infinity accepts no score at all.

    "Accept nothing" is thereby no statement about tasks whose score is minus infinity.

    Example:
        >>> accepted_tasks(np.array([-np.inf, 1.0]), -np.inf).any()
        np.False_
    """
    return (scores <= threshold) & (threshold > -math.inf)
