"""The border of the oracle: a task's arrays become a checked problem."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from pyro_smat.metrics.arrays import FloatArray, Numbers
from pyro_smat.solvers.logistic_problem import LogisticProblem
from pyro_smat.solvers.problem import Blocks, Indices, Problem
from pyro_smat.solvers.squared_problem import SquaredProblem
from pyro_smat.solvers.validation import finite_array

Loss = Literal["squared", "logistic"]


def build_problem(
    features: Numbers,
    targets: Numbers,
    sources: Numbers,
    *,
    budget: int,
    loss: Loss = "squared",
    ridge: float = 1e-2,
    blocks: Sequence[Numbers] | None = None,
) -> tuple[Problem, tuple[int, ...]]:
    """The problem of :func:`~pyro_smat.solvers.composition.solve_composition`, whose arguments and errors these are.

    Returns:
        The problem and the shape of its residual, ``(d,)`` or ``(d, K)``.
    """
    if loss not in get_args(Loss):
        raise ValueError(f"loss is {loss!r}; expected 'squared' or 'logistic'")
    if not 0 <= ridge < np.inf:
        raise ValueError(f"ridge is {ridge}; expected a number >= 0")
    x, theta = finite_array(features, "features"), finite_array(sources, "sources")
    y = finite_array(targets, "targets")
    dims = (2,) if loss == "squared" else (2, 3)
    if x.ndim != 2 or theta.ndim not in dims or theta.shape[1] != x.shape[1]:
        raise ValueError(
            f"features have shape {x.shape} and sources {theta.shape}; expected (n, d) and (R, d)"
            + ("" if loss == "squared" else ", or (R, d, K) for K classes")
        )
    if y.shape != x.shape[:1]:
        raise ValueError(f"targets have shape {y.shape}; expected {x.shape[:1]}, one for every example")
    outputs = theta.shape[2] if theta.ndim == 3 else 1
    partition = _partition(blocks, x.shape[1], outputs)
    if not isinstance(budget, int | np.integer) or not 0 <= budget <= len(partition):
        kind = "entries" if blocks is None else "blocks"
        raise ValueError(f"budget is {budget}; expected 0 to {len(partition)}, the number of {kind}, as an integer")
    if loss == "squared":
        return SquaredProblem(x, y, theta, ridge=ridge, budget=budget, blocks=partition), theta.shape[1:]
    labels = _labels(y, outputs)
    three = theta if theta.ndim == 3 else theta[:, :, None]
    return LogisticProblem(x, labels, three, ridge=ridge, budget=budget, blocks=partition), theta.shape[1:]


def _labels(targets: FloatArray, outputs: int) -> Indices:
    classes = np.arange(max(outputs, 2))
    unknown = ~np.isin(targets, classes)
    if unknown.any():
        first = int(unknown.argmax())
        raise ValueError(
            f"target {first} is {targets[first]:g}; expected integers from 0 to {classes[-1]} for sources of "
            f"{outputs} output{'s' if outputs > 1 else ''}"
        )
    missing = np.setdiff1d(classes, targets)
    if len(missing):
        raise ValueError(
            f"class {', '.join(map(str, missing))} missing from the targets; expected at least one example of each "
            f"of the {len(classes)} classes that the sources tell apart"
        )
    return targets.astype(np.intp)


def _partition(blocks: Sequence[Numbers] | None, rows: int, outputs: int) -> Blocks:
    if blocks is None:
        return Blocks(tuple(np.arange(rows * outputs).reshape(-1, 1)))
    members = [finite_array(block, f"block {number}") for number, block in enumerate(blocks)]
    owners = np.zeros(rows, dtype=np.intp)
    for number, own in enumerate(members):
        if own.ndim != 1 or not np.isin(own, np.arange(rows)).all():
            raise ValueError(f"block {number} is {own.tolist()}; expected row numbers from 0 to {rows - 1}")
        np.add.at(owners, own.astype(np.intp), 1)
    if (owners != 1).any():
        row = int((owners != 1).argmax())
        raise ValueError(
            f"blocks hold row {row} {owners[row]} times; expected a partition, every one of {rows} rows exactly once"
        )
    columns = np.arange(outputs)
    return Blocks(tuple((own.astype(np.intp)[:, None] * outputs + columns).ravel() for own in members))
