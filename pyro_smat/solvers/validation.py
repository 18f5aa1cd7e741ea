"""The border of the simplex solvers: numbers that come in become checked float64 arrays and points of a simplex."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_smat.metrics.arrays import FloatArray, Numbers

_TOLERANCE = 1e-6  # of a sum: float32 softmax outputs are points of the simplex
ROUNDING = 1e-9  # of a Gram matrix in float64, relative to its largest entry
ROUNDING_SINGLE = 1e-5  # in float32
ASYMMETRIC = "gram is not symmetric: {found}; expected G = G^T, such as (gram + gram.T) / 2"
INDEFINITE = (
    "gram has a negative eigenvalue{where}, so the function is not convex; expected a positive semidefinite matrix"
)


def finite_array(values: Numbers, what: str) -> FloatArray:
    """``values`` as float64.

    Raises:
        ValueError: when it is empty or holds NaN or infinity.
    """
    raw: Any = values.detach().to("cpu").double().numpy() if isinstance(values, Tensor) else values
    array = np.asarray(raw, dtype=np.float64)
    if array.size == 0:
        raise ValueError(f"{what} has shape {array.shape}; expected at least one example and one source")
    if not np.isfinite(array).all():
        first = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise ValueError(f"{what} is NaN or infinite at index {first}; expected finite numbers")
    return array


def is_single(values: Numbers) -> bool:
    """Whether numbers come with the precision of float32 or less."""
    dtype = getattr(values, "dtype", None)
    return dtype in (torch.float32, torch.float16, torch.bfloat16) or dtype in (np.float32, np.float16)


def check_convex(gram: FloatArray, *, single: bool = False) -> None:
    """Refuse a Gram matrix ``(R, R)`` that is not symmetric positive semidefinite up to rounding.

    Args:
        gram: finite.
        single: whether its entries were rounded to float32.

    Raises:
        ValueError: when an entry differs from its mirror image, or an eigenvalue is negative.
    """
    size = float(np.abs(gram).max())
    if size == 0:
        return
    scaled = gram / size
    rounding = ROUNDING_SINGLE if single else ROUNDING
    asymmetry = np.abs(scaled - scaled.T)
    if asymmetry.max() > rounding:
        i, j = (int(k) for k in np.unravel_index(asymmetry.argmax(), gram.shape))
        raise ValueError(ASYMMETRIC.format(found=f"[{i}, {j}] is {gram[i, j]:.6g} and [{j}, {i}] is {gram[j, i]:.6g}"))
    try:
        np.linalg.cholesky(scaled + rounding * np.eye(len(gram)))
    except np.linalg.LinAlgError:
        raise ValueError(INDEFINITE.format(where="")) from None


def feasible_weights(weights: Numbers, shape: tuple[int, ...], what: str = "start") -> FloatArray:
    """``weights`` as float64, every block scaled to sum to 1 exactly; a copy.

    Args:
        weights: ``(R,)`` in the simplex, or ``(L, R)`` with every row in it.
        shape: the shape they should have.
        what: their name in messages.

    Raises:
        ValueError: for another shape, NaN or infinity, a negative weight, or a sum that is not 1.
    """
    array = finite_array(weights, what)
    if array.shape != shape:
        raise ValueError(f"{what} has shape {array.shape}; expected {shape}, a weight for every source")
    sums = array.sum(-1, keepdims=True)
    wrong = float(sums.flat[np.abs(sums - 1).argmax()])
    if array.min() < 0 or abs(wrong - 1) > _TOLERANCE:
        raise ValueError(
            f"{what} is not in the simplex: smallest weight {array.min():.3g}, sum {wrong:.6g}; "
            "expected weights >= 0 that sum to 1"
        )
    return array / sums
