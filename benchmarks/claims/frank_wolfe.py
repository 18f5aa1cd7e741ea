r"""Frank-Wolfe against the exact optimum: the theorem for the open-loop step of equation 6 of the multi-source paper.

For :math:`f(w) = \tfrac12 \|\Theta w - b\|^2` the curvature constant C is at most the squared diameter of the sources,
:math:`C \le \max_{r,s} \|\theta_r - \theta_s\|^2` (Jaggi 2013). The open loop runs here, on many problems at once, so
that every iterate can be looked at; the package's methods return their best iterate, with its certificate.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np
import pandas as pd

from pyro_smat.metrics.arrays import FloatArray
from pyro_smat.solvers import QuadraticObjective, minimize_on_simplex

from .finding import Finding
from .simplex import least_squares_by_faces

_SHOWN, _PACKAGE_STEPS, _PACKAGE_PROBLEMS = (1, 10, 100, 1000), (10, 100), 30
_PackageMethod = Literal["vanilla", "pairwise"]


def random_problems(
    count: int, dim: int, sources: int, correlation: float, outside: float, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """Sources ``(count, R, d)`` with a common part, and targets ``(count, d)``: a mixture plus ``outside`` noise."""
    common = rng.standard_normal((count, 1, dim))
    own = rng.standard_normal((count, sources, dim))
    theta = np.sqrt(correlation) * common + np.sqrt(1 - correlation) * own
    weights = rng.dirichlet(np.ones(sources), count)
    return theta, (weights[:, None] @ theta)[:, 0] + outside * rng.standard_normal((count, dim))


def iterates(theta: FloatArray, target: FloatArray, steps: int) -> Iterator[tuple[FloatArray, FloatArray, FloatArray]]:
    """Weights ``(count, R)``, values and gaps ``(count,)`` of steps 0, 1, ..., from the first source."""
    weights = np.zeros(theta.shape[:2])
    weights[:, 0] = 1
    for t in range(steps + 1):
        error = (weights[:, None] @ theta)[:, 0] - target
        gradient = (theta @ error[..., None])[..., 0]
        yield weights, np.sum(error**2, axis=1) / 2, np.sum(weights * gradient, axis=1) - gradient.min(axis=1)
        vertex = np.eye(theta.shape[1])[gradient.argmin(axis=1)]
        weights = weights + 2 / (t + 2) * (vertex - weights)


def package_iterates(
    theta: FloatArray, target: FloatArray, steps: int, method: _PackageMethod
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """The same three of ``minimize_on_simplex`` after some steps from its own vertex."""
    found = []
    for sources, goal in zip(theta, target, strict=True):
        objective = QuadraticObjective(sources @ sources.T, sources @ goal, float(goal @ goal) / 2)
        found.append(minimize_on_simplex(objective, method=method, tolerance=0.0, max_iterations=steps + 1))
    return (
        np.stack([solution.weights for solution in found]),
        np.array([solution.value for solution in found]),
        np.array([solution.gap for solution in found]),
    )


def frank_wolfe(problems: int = 200, steps: int = 1000, seed: int = 0) -> Finding:
    """f(w_t) - f* <= 2 C / (t+2), f(w_t) - f* <= gap, at most t + 1 sources: every problem, every step."""
    rng = np.random.default_rng(seed)
    rows, checked, broken = [], 0, {"bound": 0, "certificate": 0, "sources": 0}
    for name, correlation, outside in (
        ("optimum inside", 0.0, 0.0),
        ("optimum on a face", 0.0, 1.0),
        ("sources correlated .99", 0.99, 0.3),
    ):
        theta, target = random_problems(problems, 20, 8, correlation, outside, rng)
        linear = (theta @ target[..., None])[..., 0]
        scale = np.sum(target**2, axis=1) / 2
        optimum = least_squares_by_faces(theta @ theta.mT, linear[..., None])[1][:, 0] + scale
        diameter = np.max(np.sum((theta[:, :, None] - theta[:, None]) ** 2, axis=-1), axis=(1, 2))
        few = slice(min(problems, _PACKAGE_PROBLEMS))
        runs = [("open loop", t, slice(None), iterate) for t, iterate in enumerate(iterates(theta, target, steps))]
        runs += [
            (f"package, {method}", t, few, package_iterates(theta[few], target[few], t, method))
            for method in get_args(_PackageMethod)
            for t in _PACKAGE_STEPS
        ]
        for method, t, part, (weights, values, gaps) in runs:
            error, bound, rounding = values - optimum[part], 2 * diameter[part] / (t + 2), 1e-12 * scale[part]
            active = np.count_nonzero(weights, axis=1)
            checked += len(values)
            if t > 0 and "pairwise" not in method:  # the theorem is about steps to a vertex
                broken["bound"] += int(np.count_nonzero(error > bound + rounding))
            broken["certificate"] += int(np.count_nonzero(error > gaps + rounding))
            broken["sources"] += int(np.count_nonzero(active > t + 1))
            if t in _SHOWN:
                rows.append(
                    {
                        "problems": name,
                        "method": method,
                        "t": t,
                        "largest error / bound": float(np.max(error / bound)),
                        "median error / C": float(np.median(error / diameter[part])),
                        "median gap / C": float(np.median(gaps / diameter[part])),
                        "most sources": int(active.max()),
                    }
                )
    return Finding(
        "Frank-Wolfe: error at most 2 C / (t+2) with steps to a vertex; at most the gap, and t + 1 sources, always.",
        pd.DataFrame(rows),
        {
            "iterates checked": checked,
            "error above 2 C / (t+2)": broken["bound"],
            "error above the gap": broken["certificate"],
            "more than t + 1 sources": broken["sources"],
        },
        seed,
        {"problems": problems, "R": 8, "d": 20, "steps": steps},
    )
