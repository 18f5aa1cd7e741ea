r"""Conformal statements: true on average over calibration and new episodes together, not with high probability.

**Risk control** (Angelopoulos, Bates, Fisch, Lei and Schuster 2022) chooses an abstention threshold that controls the
*joint* risk, to be accepted and to lose:

.. math:: \hat\eta = \sup\Bigl\{\eta : \frac{1}{N + 1} \Bigl(\sum_i L_i 1\{U_i < \eta\} + 1\Bigr) \le a\Bigr\},
          \qquad E\bigl[L\, 1\{U < \hat\eta\}\bigr] \le a.

Minus infinity is the threshold that accepts nothing, a score of minus infinity included.

Over calibration sets its risk exceeds a often, a third of the time or more; and the *selective* risk
:math:`E[L \mid U \le \eta]` is not monotone and not controlled:
:func:`~pyro_smat.certificates.select_abstention_threshold` is for that.

**Label sets** hold the true label of a query with probability at least the coverage, marginally over episodes and
queries. The queries of an episode share a support and are not exchangeable with those of a new one, so the episode is
the unit (Lee, Barber and Willett 2023, hierarchical conformal prediction): with K episodes of :math:`n_k` queries

.. math:: \hat t = \text{the coverage quantile of } \sum_k \sum_i \frac{1}{(K + 1)\, n_k} \delta_{1 - p(y_{ki})} +
          \frac{1}{K + 1} \delta_{\infty}.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pyro_smat.certificates.certificate import BoolArray, accepted_tasks
from pyro_smat.certificates.mean import unit_losses
from pyro_smat.metrics.arrays import FloatArray, Numbers, float_array, probability_array, same_length

_TOLERANCE = 1e-9  # of sums of fractions that should be whole


@dataclass(frozen=True)
class RiskControlledThreshold:
    """Accept a task when its score is at most ``threshold``: then E[loss x accepted] <= ``risk``, in expectation only.

    Attributes:
        threshold: eta; infinity accepts everything, minus infinity nothing, whatever the score.
        coverage: the share of calibration episodes that it accepts.
        estimate: their mean of loss x accepted.
        risk: a.
        count: N.
        population: what new episodes have to be draws from.
    """

    threshold: float
    coverage: float
    estimate: float
    risk: float
    count: int
    population: str = "new episodes drawn as these were"

    def accepts(self, scores: Numbers) -> BoolArray:
        """``(N,)`` bool: which tasks of scores ``(N,)`` the threshold accepts."""
        return accepted_tasks(float_array(scores, "scores", finite=False), self.threshold)

    def __str__(self) -> str:
        return (
            f"loss x accepted is at most {self.risk:g} in expectation over calibration and new episodes together, not "
            f"with high probability (conformal risk control, N = {self.count}, estimate {self.estimate:.4f}, coverage "
            f"{100 * self.coverage:.0f}%); about {self.population}"
        )


def risk_controlled_threshold(scores: Numbers, losses: Numbers, risk: float) -> RiskControlledThreshold:
    """The largest threshold that controls the joint risk of being accepted and losing, see the first lines.

    Args:
        scores: ``(N,)`` uncertainty of calibration episodes; infinite is allowed.
        losses: ``(N,)`` in [0, 1], of the same episodes, which had no part in training or in choosing the score.
        risk: a in (0, 1).

    Raises:
        ValueError: for lengths that differ, losses outside [0, 1], NaN, or a risk out of range.
    """
    u, x = float_array(scores, "scores", finite=False), unit_losses(losses)
    same_length(u, x, "scores and losses")
    if not 0 < risk < 1:
        raise ValueError(f"risk is {risk!r}; expected a mean loss in (0, 1)")
    values, group = np.unique(u, return_inverse=True)
    below = np.cumsum(np.bincount(group, x))  # of all episodes up to and with this score
    budget = risk * (len(x) + 1) - 1 + _TOLERANCE
    if budget < 0:
        threshold = -math.inf
    else:
        broken = np.flatnonzero(below > budget)
        threshold = math.nextafter(float(values[broken[0]]), -math.inf) if len(broken) else math.inf
    kept = accepted_tasks(u, threshold)
    return RiskControlledThreshold(threshold, float(kept.mean()), float((x * kept).mean()), risk, len(x))


@dataclass(frozen=True)
class LabelSetThreshold:
    """A class is in the set of a query when its probability is at least 1 - ``threshold``.

    Attributes:
        threshold: in [0, 1], or infinity: every class is in every set (too few episodes for this coverage).
        coverage: the true label is in the set with at least this probability, marginally over calibration episodes,
            new episodes and their queries; not for each task, class or support.
        episodes, queries: of the calibration.
        population: what new episodes have to be draws from.
    """

    threshold: float
    coverage: float
    episodes: int
    queries: int
    population: str = "new episodes drawn as these were"

    def sets(self, probabilities: Numbers) -> BoolArray:
        """``(n, W)`` bool from probabilities ``(n, W)``; a set may be empty, or hold all classes."""
        p = float_array(probabilities, "probabilities", ndim=2)
        return 1.0 - p <= self.threshold

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; an infinite threshold is None."""
        return {**asdict(self), "threshold": None if math.isinf(self.threshold) else self.threshold}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LabelSetThreshold:
        """What :meth:`to_dict` wrote."""
        return cls(**{**data, "threshold": math.inf if data["threshold"] is None else data["threshold"]})

    def __str__(self) -> str:
        return (
            f"label sets hold the true label with probability at least {100 * self.coverage:g}%, marginally over "
            f"episodes and their queries (split conformal, {self.episodes} episodes, {self.queries} queries); about "
            f"{self.population}"
        )


def label_set_threshold(
    probabilities: Numbers, labels: Numbers, coverage: float = 0.9, *, episode: Numbers | None = None
) -> LabelSetThreshold:
    """The threshold of label sets that hold the true label as often as said.

    Args:
        probabilities: ``(n, W)`` of calibration queries, which had no part in training or in any choice.
        labels: ``(n,)`` their true labels.
        coverage: in (0, 1).
        episode: ``(n,)`` which episode a query is of; None: every query is of its own.

    Raises:
        ValueError: for rows that are no distributions, labels out of range, lengths that differ, or a coverage outside
            (0, 1).

    Example:
        >>> label_set_threshold([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7]], [0, 0, 1], 0.5).threshold.__round__(3)
        0.3
    """
    if not 0 < coverage < 1:
        raise ValueError(f"coverage is {coverage!r}; expected a probability in (0, 1), e.g. 0.9")
    p, y = probability_array(probabilities, labels)
    owner: FloatArray = np.arange(len(y), dtype=np.float64) if episode is None else float_array(episode, "episode")
    same_length(owner, y.astype(np.float64), "episode and labels")
    _, group, size = np.unique(owner, return_inverse=True, return_counts=True)
    misfit = 1.0 - p[np.arange(len(y)), y]
    order = np.argsort(misfit, kind="stable")
    mass = np.cumsum(1.0 / ((len(size) + 1) * size[group[order]]))
    enough = np.flatnonzero(mass >= coverage - _TOLERANCE)
    threshold = float(misfit[order[enough[0]]]) if len(enough) else math.inf
    return LabelSetThreshold(threshold, coverage, len(size), len(y))
