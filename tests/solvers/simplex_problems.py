"""Random problems for the simplex solvers, and references that share no code with them."""

from __future__ import annotations

import warnings

import clarabel
import cvxpy as cp
import numpy as np
from scipy import sparse

from pyro_smat.metrics.arrays import FloatArray


def regression(
    rng: np.random.Generator, examples: int, sources: int, correlation: float, noise: float = 0.5
) -> tuple[FloatArray, FloatArray]:
    """Predictions ``(n, R)`` of sources with a common part, and targets ``(n,)`` near a mixture of few of them."""
    common = rng.normal(size=(examples, 1))
    own = rng.normal(size=(examples, sources))
    predictions = np.sqrt(correlation) * common + np.sqrt(1 - correlation) * own
    weights = rng.dirichlet(np.full(sources, 0.2))
    return predictions, predictions @ weights + noise * np.sqrt(1 - correlation) * rng.normal(size=examples)


def squared_loss(predictions: FloatArray, targets: FloatArray, weights: FloatArray) -> float:
    errors = predictions.reshape(len(targets), -1) @ weights.ravel() - targets
    return float(errors @ errors) / (2 * len(targets))


def cross_entropy(predictions: FloatArray, labels: FloatArray, weights: FloatArray) -> float:
    """Of mixed logits ``(n, R, K)``, by the definition."""
    logits = np.einsum("nrk,r->nk", predictions, weights)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return float(-np.log(probabilities[np.arange(len(labels)), labels]).mean())


def frank_wolfe_gap(gradient: FloatArray, weights: FloatArray) -> float:
    """Largest inner product of the gradient with the way from a vertex, by enumeration, summed over blocks."""
    gradient, weights = np.atleast_2d(gradient), np.atleast_2d(weights)
    vertices = np.eye(weights.shape[1])
    return sum(max(g @ (w - vertex) for vertex in vertices) for g, w in zip(gradient, weights, strict=True))


def clarabel_weights(gram: FloatArray, linear: FloatArray, blocks: int = 1) -> FloatArray:
    """The quadratic program by an interior point method, at the tightest tolerance it reaches."""
    count = len(linear)
    sums = np.kron(np.eye(blocks), np.ones(count // blocks))
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-12
    solver = clarabel.DefaultSolver(
        sparse.csc_matrix(np.triu(gram)),
        -linear,
        sparse.csc_matrix(np.vstack([sums, -np.eye(count)])),
        np.concatenate([np.ones(blocks), np.zeros(count)]),
        [clarabel.ZeroConeT(blocks), clarabel.NonnegativeConeT(count)],
        settings,
    )
    weights = np.maximum(np.array(solver.solve().x), 0.0).reshape(blocks, -1)
    return (weights / weights.sum(1, keepdims=True)).ravel()


def cvxpy_squared_loss(predictions: FloatArray, targets: FloatArray) -> float:
    """Smallest squared loss of mixtures, ``(n, R)`` or blockwise ``(n, L, R)``."""
    blocks = predictions.shape[1] if predictions.ndim == 3 else 1
    weights = cp.Variable((blocks, predictions.shape[-1]), nonneg=True)
    mixed = sum(predictions.reshape(len(targets), blocks, -1)[:, block] @ weights[block] for block in range(blocks))
    loss = cp.sum_squares(mixed - targets) / (2 * len(targets))
    return _solve(loss, [cp.sum(weights, axis=1) == 1])


def cvxpy_cross_entropy(predictions: FloatArray, labels: FloatArray) -> float:
    """Smallest cross-entropy of mixed logits ``(n, R, K)``."""
    examples, sources, classes = predictions.shape
    weights = cp.Variable(sources, nonneg=True)
    logits = cp.vstack([predictions[:, :, k] @ weights for k in range(classes)])
    chosen = predictions[np.arange(examples), :, labels] @ weights
    return _solve(cp.sum(cp.log_sum_exp(logits, axis=0) - chosen) / examples, [cp.sum(weights) == 1])


def _solve(loss: cp.Expression, constraints: list[cp.Constraint]) -> float:
    return cvxpy_minimum(loss, constraints, 1e-12)


def cvxpy_minimum(loss: cp.Expression, constraints: list[cp.Constraint], tolerance: float) -> float:
    """The minimum by Clarabel, at the first tolerance that it reaches: which one depends on the machine's rounding."""
    for tried in (tolerance, 10 * tolerance, 100 * tolerance, 1000 * tolerance):
        problem = cp.Problem(cp.Minimize(loss), constraints)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Solution may be inaccurate")
            value = problem.solve(solver="CLARABEL", **dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), tried))
        if problem.status == cp.OPTIMAL:
            return float(value)
    raise AssertionError(f"Clarabel ends with {problem.status} at {tried:g}")
