r"""Proper scoring rules of predicted probabilities.

Padded classes and queries must be taken out by the caller: rows are real queries, columns the episode's classes
(a padded class with probability 0 does no harm).
"""

from __future__ import annotations

import numpy as np

from pyro_smat.metrics.arrays import FloatArray, Numbers, probability_array


def brier_score(probabilities: Numbers, labels: Numbers) -> float:
    r"""Multiclass Brier score :math:`\frac1n \sum_i \sum_k (p_{ik} - 1\{y_i = k\})^2`, in [0, 2].

    Half of it lies in [0, 1]; for two classes that half is the usual binary Brier score.

    Args:
        probabilities: ``(n, W)``.
        labels: ``(n,)`` integers in [0, W).

    Raises:
        ValueError: when a row is no distribution or a label is out of range.
    """
    return float(brier_scores(probabilities, labels).mean())


def brier_scores(probabilities: Numbers, labels: Numbers) -> FloatArray:
    """The Brier score of each prediction ``(n,)``, in [0, 2]; arguments and errors as in :func:`brier_score`."""
    p, y = probability_array(probabilities, labels)
    return np.asarray(np.square(p - np.eye(p.shape[1])[y]).sum(1))


def negative_log_likelihood(probabilities: Numbers, labels: Numbers, clip: float = 1e-12) -> float:
    r"""Mean of :math:`-\ln \max(p_{i y_i}, \text{clip})`, in nats.

    Args:
        probabilities: ``(n, W)``.
        labels: ``(n,)`` integers in [0, W).
        clip: the floor of a probability; one answer costs at most -ln(clip), 27.6 nats by default.

    Raises:
        ValueError: as in :func:`brier_score`, and when ``clip`` is outside (0, 1).
    """
    return float(negative_log_likelihoods(probabilities, labels, clip).mean())


def negative_log_likelihoods(probabilities: Numbers, labels: Numbers, clip: float = 1e-12) -> FloatArray:
    """That of each label ``(n,)``, in nats; arguments and errors as in :func:`negative_log_likelihood`."""
    if not 0 < clip < 1:
        raise ValueError(f"clip is {clip!r}; expected a small probability in (0, 1)")
    p, y = probability_array(probabilities, labels)
    return np.asarray(-np.log(np.maximum(p[np.arange(len(y)), y], clip)))
