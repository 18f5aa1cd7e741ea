r"""Misrouting: does the uncertainty of a task say how much its routing loses against the best of J candidates?

The best of J noisy losses looks better than it is (the winner's curse), so a routing that is as good as any would seem
to lose something, most where the queries are few or noisy. Here one half of a task's queries names the best candidate
and the other half measures it: what is measured is then unbiased for the candidate that was named.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pyro_smat.metrics.arrays import FloatArray, IntArray, Numbers, float_array, same_length
from pyro_smat.metrics.calibration import bin_of
from pyro_smat.metrics.selective import auroc


@dataclass(frozen=True)
class MisroutingDetection:
    """How a score goes along with the excess loss.

    Attributes:
        auroc: probability that a misrouted task (excess above the margin) outscores another; NaN if all or none are.
        share: of misrouted tasks; noise of the queries raises it, which a margin has to be larger than.
        score: ``(b,)`` mean score of each bin, ascending.
        excess: ``(b,)`` mean excess loss of each bin. A score in the unit of the loss is calibrated if they are equal.
        standard_error: ``(b,)`` of ``excess``, over tasks; NaN in a bin of one.
        count: ``(b,)`` tasks in each bin.
    """

    auroc: float
    share: float
    score: FloatArray
    excess: FloatArray
    standard_error: FloatArray
    count: IntArray


def excess_loss(first: Numbers, second: Numbers, chosen: Numbers) -> FloatArray:
    r"""What every task's routing loses against the best candidate, :math:`\frac12 (B_c - B_{j(A)} + A_c - A_{j(B)})`.

    :math:`j(A) = \arg\min_j A_j` is the best candidate by the first half of the queries, c the chosen one. It can be
    negative; its expectation is at most the true excess (half of the queries may name the wrong candidate), and equal
    to it where they name the right one.

    Args:
        first: ``(N, J)`` A, mean losses of the J candidate routings on one half of each task's queries.
        second: ``(N, J)`` B, on the other half.
        chosen: ``(N,)`` integers in [0, J): the routing that was used. Neither it nor the candidates may have been
            chosen by these queries; a mixture that is no candidate becomes one as a column of its own.

    Returns:
        ``(N,)`` in the unit of the losses.

    Raises:
        ValueError: when shapes differ, a loss is not finite, or a choice is no candidate.
    """
    a, b = float_array(first, "losses of the first half", ndim=2), float_array(second, "losses of the second", ndim=2)
    c = float_array(chosen, "chosen")
    if a.shape != b.shape:
        raise ValueError(f"the halves have shapes {a.shape} and {b.shape}; expected (N, J) twice")
    same_length(a, c, "losses and chosen")
    wrong = (c < 0) | (c >= a.shape[1]) | (c != np.floor(c))
    if wrong.any():
        bad = int(np.argmax(wrong))
        raise ValueError(f"task {bad} chose {c[bad]:g}; expected an integer in [0, {a.shape[1]})")
    task, index = np.arange(len(c)), c.astype(np.int64)
    return 0.5 * (b[task, index] - b[task, a.argmin(1)] + a[task, index] - a[task, b.argmin(1)])


def misrouting_detection(
    scores: Numbers, first: Numbers, second: Numbers, chosen: Numbers, *, margin: float = 0.0, bins: int = 10
) -> MisroutingDetection:
    """AUROC of a score for an excess above ``margin``, and the mean excess against the score in bins of equal mass.

    Args:
        scores: ``(N,)`` finite; uncertainty U(S) of every task.
        first, second, chosen: see :func:`excess_loss`.
        margin: at least 0, in the unit of the loss; an excess above it is called misrouting.
        bins: at most so many; tasks of equal score stay together.

    Raises:
        ValueError: as in :func:`excess_loss`, for scores of another length, a negative margin, or bins below 1.
    """
    u, excess = float_array(scores, "scores"), excess_loss(first, second, chosen)
    same_length(u, excess, "scores and tasks")
    if not margin >= 0:
        raise ValueError(f"margin is {margin!r}; expected a loss of at least 0")
    index = bin_of(u, bins, "mass")
    count = np.bincount(index, minlength=bins)
    filled = count > 0
    count = count[filled]
    mean = np.bincount(index, excess, bins)[filled] / count
    squares = np.bincount(index, np.square(excess), bins)[filled] / count - np.square(mean)
    error = np.full(len(count), np.nan)
    several = count > 1
    error[several] = np.sqrt(np.maximum(squares[several], 0.0) / (count[several] - 1))
    return MisroutingDetection(
        auroc=auroc(u, excess > margin),
        share=float((excess > margin).mean()),
        score=np.bincount(index, u, bins)[filled] / count,
        excess=mean,
        standard_error=error,
        count=count,
    )
