r"""A threshold of abstention with a guarantee: learn-then-test with a fixed sequence.

Thresholds :math:`\eta_1 < \eta_2 < \dots`, fixed beforehand from validation episodes, are tested in this order on
held-out episodes: is :math:`E[L \mid U \le \eta_g] \le r`? The first test that fails ends the walk; the last threshold
that passed is the answer. Because the order is fixed, no correction for many tests is due, and

.. math:: P\bigl(E[L \mid U \le \hat\eta] > r\bigr) \le \delta.

Minus infinity is the threshold that accepts nothing, a score of minus infinity included; it is never tested. Such a
score is below every other threshold and counts there like any score.

Source: Angelopoulos, Bates, Candes, Jordan and Lei 2021, "Learn then test", section 2.2 (fixed sequence testing).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pyro_smat.certificates.certificate import BoolArray, Certificate, accepted_tasks, check_delta
from pyro_smat.certificates.mean import MeanMethod, mean_p_value, unit_losses
from pyro_smat.metrics.arrays import FloatArray, Numbers, float_array, same_length

GRID = np.arange(1, 41) / 40  # quantiles of the validation scores


@dataclass(frozen=True)
class CertifiedThreshold:
    """Accept a task when its uncertainty score is at most ``threshold``, unless that is -infinity.

    Attributes:
        threshold: eta; -infinity accepts nothing, whatever the score (no threshold could be certified).
        coverage: the share of held-out episodes that it accepts.
        certificate: of the selective risk; None when nothing is accepted.
        tested: ``(T,)`` thresholds that were tested, in order; p_values: ``(T,)``.
    """

    threshold: float
    coverage: float
    certificate: Certificate | None
    tested: FloatArray
    p_values: FloatArray

    def accepts(self, scores: Numbers) -> BoolArray:
        """``(N,)`` bool: which tasks of scores ``(N,)`` the threshold accepts."""
        return accepted_tasks(float_array(scores, "scores", finite=False), self.threshold)


def select_abstention_threshold(
    scores: Numbers,
    losses: Numbers,
    risk: float,
    delta: float = 0.1,
    *,
    validation_scores: Numbers,
    minimum: int | None = None,
    seed: int = 0,
) -> CertifiedThreshold:
    """The largest threshold that a walk from below certifies: the mean loss of accepted tasks is at most ``risk``.

    There is a certificate only of a threshold that passed its test.

    Losses that are all 0 or 1 are tested by the exact binomial tail, others in [0, 1] by betting. Which test is used is
    read off the losses: where other values are possible but none has happened, delta may be exceeded, up to twice.

    Args:
        scores: ``(N,)`` uncertainty of held-out episodes; infinite is allowed.
        losses: ``(N,)`` in [0, 1], of the same episodes, which had no part in training or in any choice.
        risk: r in (0, 1).
        delta: probability with which the guarantee may fail.
        validation_scores: ``(n,)`` scores of *other* episodes; their quantiles 1/40, 2/40, ... are the thresholds.
        minimum: thresholds that accept fewer held-out episodes are skipped (which looks at no loss); default: as many
            as a test without any loss needs to pass, ln(delta) / ln(1 - r), and at least 60 for real-valued losses.
        seed: of the order in which betting plays.

    Raises:
        ValueError: for lengths that differ, losses outside [0, 1], or a risk or delta out of range.
    """
    u, x = float_array(scores, "scores", finite=False), unit_losses(losses)
    same_length(u, x, "scores and losses")
    check_delta(delta)
    if not 0 < risk < 1:
        raise ValueError(f"risk is {risk!r}; expected a mean loss in (0, 1)")
    method: MeanMethod = "clopper-pearson" if np.isin(x, (0.0, 1.0)).all() else "betting"
    if minimum is None:
        minimum = math.ceil(math.log(delta) / math.log1p(-risk))
        minimum = minimum if method == "clopper-pearson" else max(60, minimum)
    others = float_array(validation_scores, "validation scores", finite=False)
    grid = np.unique(np.quantile(others, GRID, method="inverted_cdf"))
    grid = grid[grid > -math.inf]  # which is to accept nothing
    tested, p_values, best = [], [], -math.inf
    for threshold in grid:
        accepted = accepted_tasks(u, threshold)
        if accepted.sum() < minimum:
            continue
        tested.append(float(threshold))
        p_values.append(mean_p_value(x[accepted], risk, method, delta=delta, seed=seed))
        if p_values[-1] > delta:
            break
        best = float(threshold)
    accepted = accepted_tasks(u, best)
    certificate = None
    if best > -math.inf:
        certificate = Certificate(
            bound=risk,
            estimate=float(x[accepted].mean()),
            delta=delta,
            count=int(accepted.sum()),
            quantity="selective risk",
            method=f"learn then test, {'binomial' if method == 'clopper-pearson' else 'betting'}",
        )
    return CertifiedThreshold(best, float(accepted.mean()), certificate, np.array(tested), np.array(p_values))
