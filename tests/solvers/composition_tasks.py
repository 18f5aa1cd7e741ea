"""Composition tasks with a known truth, and the same problems stated to cvxpy."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np
from simplex_problems import cvxpy_minimum

from pyro_smat.metrics.arrays import FloatArray
from pyro_smat.solvers.problem import Problem
from pyro_smat.solvers.problem_from_data import build_problem
from pyro_smat.solvers.refit import Fit, refit

EMPTY = np.empty(0, dtype=np.intp)


@dataclass(frozen=True)
class Task:
    """Arrays of a task and the residual's true support; ``(R, d)`` or ``(R, d, K)`` sources."""

    features: FloatArray
    targets: FloatArray
    sources: FloatArray
    support: FloatArray

    def problem(self, budget: int, **options: Any) -> Problem:
        return build_problem(self.features, self.targets, self.sources, budget=budget, **options)[0]

    def best_weights(self, budget: int, **options: Any) -> tuple[Problem, Fit]:
        """The problem and the fit without a residual, where every search begins."""
        problem = self.problem(budget, **options)
        return problem, refit(problem, EMPTY)


def make_task(
    n: int, d: int, sources: int, k: int, *, seed: int, correlation: float = 0.5, noise: float = 0.1, classes: int = 0
) -> Task:
    """Features share a factor; k entries (rows, with classes) of the residual are 1 to 2 in size.

    ``classes`` 0 gives a regression, 1 binary labels, K > 1 labels of K classes.
    """
    rng = np.random.default_rng(seed)
    shared, own = rng.normal(size=(n, 1)), rng.normal(size=(n, d))
    features = np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own
    outputs = max(classes, 1)
    theta = rng.normal(size=(sources, d, outputs))
    support = np.sort(rng.choice(d, k, replace=False))
    residual = np.zeros((d, outputs))
    residual[support] = rng.choice([-1.0, 1.0], (k, outputs)) * rng.uniform(1, 2, (k, outputs))
    predictions = features @ (np.tensordot(rng.dirichlet(np.ones(sources)), theta, 1) + residual)
    predictions += noise * rng.normal(size=(n, outputs))
    if classes > 1:
        return Task(features, predictions.argmax(1).astype(float), theta, support)
    targets = predictions[:, 0]
    return Task(features, (targets > np.median(targets)).astype(float) if classes else targets, theta[..., 0], support)


def brute_force(problem: Problem) -> Fit:
    """The best refit over all supports of the budget's size."""
    supports = itertools.combinations(range(len(problem.blocks)), problem.budget)
    return min((refit(problem, np.array(s, dtype=np.intp)) for s in supports), key=lambda fit: fit.value)


def cvxpy_loss(task: Task, weights: cp.Expression, residual: cp.Expression, loss: str) -> cp.Expression:
    """The mean loss of ``(R,)`` weights and a ``(d,)`` or ``(d, K)`` residual."""
    n = len(task.targets)
    if task.sources.ndim == 2:
        logits = (task.features @ task.sources.T) @ weights + task.features @ residual
        if loss == "squared":
            return cp.sum_squares(logits - task.targets) / (2 * n)
        return cp.sum(cp.logistic(logits) - cp.multiply(task.targets, logits)) / n
    mixed = sum(weights[r] * (task.features @ theta) for r, theta in enumerate(task.sources))
    logits = mixed + task.features @ residual
    picked = np.eye(task.sources.shape[2])[task.targets.astype(int)]
    return (cp.sum(cp.log_sum_exp(logits, axis=1)) - cp.sum(cp.multiply(picked, logits))) / n


def simplex(size: int) -> tuple[cp.Variable, list[cp.Constraint]]:
    weights = cp.Variable(size, nonneg=True)
    return weights, [cp.sum(weights) == 1]


def solve(objective: cp.Expression, constraints: list[cp.Constraint]) -> float:
    return cvxpy_minimum(objective, constraints, 1e-9)
