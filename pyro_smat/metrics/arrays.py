"""The border of the metrics: numbers from tensors, arrays or lists become checked float64 arrays.

Metrics are computed in float64 numpy, whatever the network ran in, so that a report does not depend on the device.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Numbers = Tensor | npt.ArrayLike  # a tensor on any device, an array, or nested lists


def float_array(values: Numbers, what: str, *, ndim: int = 1, finite: bool = True) -> FloatArray:
    """``values`` as float64 with ``ndim`` dimensions and at least one entry.

    Raises:
        ValueError: when the number of dimensions differs, it is empty, or it holds NaN (or, with ``finite``, infinity).
    """
    raw: Any = values.detach().to("cpu", torch.float64).numpy() if isinstance(values, Tensor) else values
    array = np.asarray(raw, dtype=np.float64)
    if array.ndim != ndim or array.size == 0:
        raise ValueError(f"{what} have shape {array.shape}; expected {ndim} dimension(s) and at least one entry")
    bad = ~np.isfinite(array) if finite else np.isnan(array)
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"{what} hold {int(bad.sum())} NaN{' or infinite' if finite else ''} value(s), the first at index {first}; "
            "leave those episodes or queries out first"
        )
    return array


def same_length(first: FloatArray, second: FloatArray, what: str) -> None:
    """Refuse two arrays of different length; ``what`` names both.

    Raises:
        ValueError: when the lengths differ.
    """
    if len(first) != len(second):
        raise ValueError(f"{what} have {len(first)} and {len(second)} entries; expected one of each per item")


def probability_array(probabilities: Numbers, labels: Numbers, tolerance: float = 1e-3) -> tuple[FloatArray, IntArray]:
    """Predicted distributions ``(n, W)`` and their labels ``(n,)`` in [0, W).

    Raises:
        ValueError: when a row is no distribution (within ``tolerance``) or a label is no column of it.
    """
    p = float_array(probabilities, "probabilities", ndim=2)
    y = float_array(labels, "labels")
    same_length(p, y, "probabilities and labels")
    off = (p < 0).any(1) | (np.abs(p.sum(1) - 1) > tolerance)
    if off.any():
        row = int(np.argmax(off))
        raise ValueError(
            f"probabilities of row {row} are {p[row].tolist()}, sum {p[row].sum():.6g}; expected non-negative numbers "
            "that sum to 1 (take the softmax of logits first)"
        )
    wrong = (y < 0) | (y >= p.shape[1]) | (y != np.floor(y))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(f"label of row {row} is {y[row]:g}; expected an integer in [0, {p.shape[1]})")
    return p, y.astype(np.int64)
