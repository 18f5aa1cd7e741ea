r"""Calibration: whether predicted probabilities are frequencies, in bins of the top-label confidence or of every class.

Plug-in calibration errors are biased upwards: about .05 at n = 500 queries of a perfectly calibrated predictor with
fifteen bins. Read the proper scores (``metrics.py``) first, the debiased error second, and take intervals over
episodes: the queries of an episode share a support and are not independent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pyro_smat.metrics.arrays import FloatArray, IntArray, Numbers, float_array, probability_array, same_length

Binning = Literal["width", "mass"]


@dataclass(frozen=True)
class ReliabilityCurve:
    """Confidence against accuracy in bins; empty bins are left out.

    Attributes:
        confidence: ``(b,)`` mean top-label probability of each bin, ascending.
        accuracy: ``(b,)`` fraction of right answers in each bin.
        count: ``(b,)`` predictions in each bin.
    """

    confidence: FloatArray
    accuracy: FloatArray
    count: IntArray


@dataclass(frozen=True)
class BrierDecomposition:
    r"""Brier score = reliability - resolution + uncertainty, exactly.

    Attributes:
        reliability: squared distance of probabilities and frequencies, 0 when calibrated.
        resolution: how far the frequencies differ between bins, more is better; it includes what varies inside the bins
            (the generalised resolution of Stephenson, Coelho and Jolliffe 2008), which makes the sum exact.
        uncertainty: of the labels alone.
    """

    reliability: float
    resolution: float
    uncertainty: float

    @property
    def score(self) -> float:
        """The Brier score."""
        return self.reliability - self.resolution + self.uncertainty


def expected_calibration_error(
    probabilities: Numbers, labels: Numbers, bins: int = 15, binning: Binning = "width"
) -> float:
    r"""Top-label calibration error :math:`\sum_b \frac{n_b}{n} |\mathrm{acc}_b - \mathrm{conf}_b|` (Guo et al. 2017).

    Args:
        probabilities: ``(n, W)``; pool the queries of many episodes.
        labels: ``(n,)`` integers in [0, W).
        bins: number of bins.
        binning: "width": ((b - 1) / bins, b / bins]; "mass": as many predictions in each, up to ties of the confidence,
            which stay together (the adaptive error of Nixon et al. 2019).

    Raises:
        ValueError: when a row is no distribution, a label is out of range, ``bins`` is below 1 or the binning unknown.
    """
    curve = reliability_curve(probabilities, labels, bins, binning)
    return float((curve.count * np.abs(curve.accuracy - curve.confidence)).sum() / curve.count.sum())


def debiased_calibration_error(
    probabilities: Numbers, labels: Numbers, bins: int = 15, binning: Binning = "mass"
) -> float:
    r"""Root of the debiased squared top-label error (Kumar, Liang and Ma 2019, section 4.2), 0 where that is negative.

    .. math:: \sum_b \frac{n_b}{n} \Bigl( (\mathrm{acc}_b - \mathrm{conf}_b)^2 -
              \frac{\mathrm{acc}_b (1 - \mathrm{acc}_b)}{n_b - 1} \Bigr)

    Bins of a single prediction have no variance to subtract and are left out. Arguments and errors as in
    :func:`expected_calibration_error`.
    """
    curve = reliability_curve(probabilities, labels, bins, binning)
    several = curve.count > 1
    count, accuracy = curve.count[several], curve.accuracy[several]
    squares = np.square(accuracy - curve.confidence[several]) - accuracy * (1 - accuracy) / (count - 1)
    return math.sqrt(max(0.0, float((count * squares).sum() / curve.count.sum())))


def reliability_curve(
    probabilities: Numbers, labels: Numbers, bins: int = 15, binning: Binning = "width"
) -> ReliabilityCurve:
    """Accuracy against confidence, bin by bin. Arguments and errors as in :func:`expected_calibration_error`."""
    confidence, right = _top_label(probabilities, labels)
    index = bin_of(confidence, bins, binning)
    count = np.bincount(index, minlength=bins)
    filled = count > 0
    return ReliabilityCurve(
        confidence=np.bincount(index, confidence, bins)[filled] / count[filled],
        accuracy=np.bincount(index, right, bins)[filled] / count[filled],
        count=count[filled],
    )


def reliability_intervals(
    probabilities: Numbers,
    labels: Numbers,
    episode: Numbers,
    bins: int = 15,
    binning: Binning = "width",
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[FloatArray, FloatArray]:
    """Percentile bootstrap intervals of the accuracies of :func:`reliability_curve`, resampling whole episodes.

    Args:
        probabilities, labels, bins, binning: as there; the bins stay those of all the data.
        episode: ``(n,)`` the episode of every query.
        level: confidence in (0, 1).
        resamples: how many.
        seed: of the resampling.

    Returns:
        Lower and upper ends ``(b,)``, of the bins that are not empty; NaN where no resample reached a bin.

    Raises:
        ValueError: as there, or for another number of episode entries, a level outside (0, 1), or resamples below 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level!r}; expected a confidence in (0, 1), e.g. 0.95")
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; expected at least 1")
    confidence, right = _top_label(probabilities, labels)
    of_query = float_array(episode, "episode")
    same_length(confidence, of_query, "probabilities and episode")
    names, group = np.unique(of_query, return_inverse=True)
    index = bin_of(confidence, bins, binning)
    cell = group * bins + index
    shape = (len(names), bins)
    count = np.bincount(cell, minlength=shape[0] * bins).reshape(shape).astype(np.float64)
    hits = np.bincount(cell, right, shape[0] * bins).reshape(shape)
    generator = np.random.default_rng(seed)
    # How often every episode is drawn: the sums over resamples are then two matrix products.
    drawn = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples).astype(np.float64)
    total = drawn @ count
    with np.errstate(invalid="ignore"):
        accuracy = (drawn @ hits) / total
    reached = total.max(0) > 0
    ends = np.full((2, bins), np.nan)
    ends[:, reached] = np.nanquantile(accuracy[:, reached], (0.5 - level / 2, 0.5 + level / 2), axis=0)
    low, high = ends[:, count.sum(0) > 0]
    return low, high


def brier_decomposition(
    probabilities: Numbers, labels: Numbers, bins: int = 15, binning: Binning = "width"
) -> BrierDecomposition:
    """The multiclass Brier score taken apart, summed over the classes (each class binned by its own probability).

    Arguments and errors as in :func:`expected_calibration_error`. Source: Murphy 1973; Stephenson et al. 2008.
    """
    p, y = probability_array(probabilities, labels)
    reliability = resolution = uncertainty = 0.0
    for k in range(p.shape[1]):
        predicted, happened = p[:, k], (y == k).astype(np.float64)
        index = bin_of(predicted, bins, binning)
        count = np.maximum(np.bincount(index, minlength=bins), 1)
        mean_p = np.bincount(index, predicted, bins) / count
        mean_y = np.bincount(index, happened, bins) / count
        share = np.bincount(index, minlength=bins) / len(y)
        base = happened.mean()
        inside_p, inside_y = predicted - mean_p[index], happened - mean_y[index]
        reliability += (share * np.square(mean_p - mean_y)).sum()
        resolution += (share * np.square(mean_y - base)).sum()
        resolution += 2 * (inside_p * inside_y).mean() - np.square(inside_p).mean()
        uncertainty += base * (1 - base)
    return BrierDecomposition(float(reliability), float(resolution), float(uncertainty))


def bin_of(values: FloatArray, bins: int, binning: Binning) -> IntArray:
    """The bin 0..bins - 1 of every value: of equal width on [0, 1], or of equal mass with ties kept together.

    Args:
        values: ``(n,)``.
        bins, binning: as in :func:`expected_calibration_error`.

    Raises:
        ValueError: as there.
    """
    if bins < 1:
        raise ValueError(f"bins is {bins}; expected at least 1")
    if binning == "width":
        edges = np.linspace(0, 1, bins + 1)[1:-1]
    elif binning == "mass":
        edges = np.unique(np.quantile(values, np.arange(1, bins) / bins, method="inverted_cdf"))
    else:
        raise ValueError(f"binning is {binning!r}; expected 'width' or 'mass'")
    # Bins are open below and closed above, so that a confidence of exactly 1 belongs to the last one.
    return np.searchsorted(edges, values, side="left").astype(np.int64)


def _top_label(probabilities: Numbers, labels: Numbers) -> tuple[FloatArray, FloatArray]:
    p, y = probability_array(probabilities, labels)
    return p.max(1), (p.argmax(1) == y).astype(np.float64)
