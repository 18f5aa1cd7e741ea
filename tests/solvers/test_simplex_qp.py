"""The active-set method against Clarabel, on random, near-collinear, singular and badly scaled problems."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simplex_problems import clarabel_weights, frank_wolfe_gap, regression

from pyro_smat.metrics.arrays import FloatArray
from pyro_smat.solvers.active_set import solve_simplex_qp


def value(gram: FloatArray, linear: FloatArray, weights: FloatArray) -> float:
    return float(weights @ (gram @ weights / 2 - linear))


def scale(gram: FloatArray, linear: FloatArray) -> float:
    return float(np.abs(gram).max() + np.abs(linear).max())


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9, 0.99])
def test_value_is_that_of_clarabel(correlation: float) -> None:
    rng = np.random.default_rng(int(100 * correlation))
    for _ in range(50):
        examples, sources = int(rng.choice([5, 25, 60, 200])), int(rng.integers(2, 65))
        predictions, targets = regression(rng, examples, sources, correlation)
        gram, linear = predictions.T @ predictions / examples, predictions.T @ targets / examples
        half = float(targets @ targets) / (2 * examples)
        weights, gap, _ = solve_simplex_qp(gram, linear)
        reference = value(gram, linear, clarabel_weights(gram, linear)) + half
        assert value(gram, linear, weights) + half == pytest.approx(reference, rel=1e-8, abs=1e-11)
        assert weights.min() >= 0
        assert weights.sum() == pytest.approx(1, abs=1e-13)
        assert frank_wolfe_gap(gram @ weights - linear, weights) <= 1e-13 * scale(gram, linear)
        assert gap <= 1e-13 * scale(gram, linear)


def nasty(kind: str, rng: np.random.Generator, sources: int) -> tuple[FloatArray, FloatArray]:
    """A Gram matrix and a linear part on which solvers stumble."""
    matrix = rng.normal(size=(25, sources))
    if kind == "duplicates":
        matrix = matrix[:, rng.integers(0, max(1, sources // 3), size=sources)]
    elif kind == "rank one":
        matrix = np.outer(matrix[:, 0], rng.normal(size=sources))
    elif kind == "integers":
        matrix = np.round(matrix)
    elif kind == "zeros":
        matrix[:, rng.random(sources) < 0.5] = 0
    elif kind == "common offset":
        matrix = matrix * 1e-3 + 1e2
    elif kind == "tiny":
        matrix *= 1e-9
    elif kind == "huge":
        matrix *= 1e9
    elif kind == "nothing curves":
        matrix *= 0
    targets = matrix @ rng.dirichlet(np.ones(sources)) + (kind != "in the hull") * rng.normal(size=25) * matrix.std()
    linear = matrix.T @ targets if kind != "nothing curves" else rng.normal(size=sources)
    return matrix.T @ matrix, linear


KINDS = [
    "in the hull",
    "duplicates",
    "rank one",
    "integers",
    "zeros",
    "common offset",
    "tiny",
    "huge",
    "nothing curves",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("blocks", [1, 3])
def test_nasty_problems_are_solved_to_precision(kind: str, started: bool, blocks: int) -> None:
    rng = np.random.default_rng(len(kind))
    for sources in (1, 2, 7, 40):
        for _ in range(3):
            gram, linear = nasty(kind, rng, blocks * sources)
            start = rng.dirichlet(np.full(sources, 0.3), size=blocks).ravel() if started else None
            weights, gap, _ = solve_simplex_qp(gram, linear, start, blocks=blocks)
            assert weights.min() >= 0
            np.testing.assert_allclose(weights.reshape(blocks, -1).sum(1), 1, atol=1e-13)
            split = weights.reshape(blocks, -1), (gram @ weights - linear).reshape(blocks, -1)
            true_gap = frank_wolfe_gap(split[1], split[0])
            assert true_gap <= 1e-12 * scale(gram, linear)
            assert gap == pytest.approx(true_gap, abs=1e-14 * scale(gram, linear))


def test_blocks_are_those_of_clarabel() -> None:
    rng = np.random.default_rng(0)
    for blocks, sources in [(2, 5), (4, 8), (12, 3)]:
        matrix = rng.normal(size=(60, blocks * sources))
        gram, linear = matrix.T @ matrix / 60, rng.normal(size=blocks * sources)
        weights, _, _ = solve_simplex_qp(gram, linear, blocks=blocks)
        np.testing.assert_allclose(weights, clarabel_weights(gram, linear, blocks), atol=1e-7)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 20), st.integers(0, 10_000))
def test_order_of_sources_does_not_matter(sources: int, examples: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    predictions, targets = regression(rng, examples, sources, 0.5)
    gram = predictions.T @ predictions / examples + 0.1 * np.eye(sources)  # one solution
    linear = predictions.T @ targets / examples
    order = rng.permutation(sources)
    weights, gap, _ = solve_simplex_qp(gram, linear)
    permuted, _, _ = solve_simplex_qp(gram[np.ix_(order, order)], linear[order])
    np.testing.assert_allclose(permuted, weights[order], atol=1e-10)
    assert weights.min() >= 0
    assert gap >= 0


def test_rounding_a_gram_to_float32_leaves_it_solvable() -> None:
    """Its smallest eigenvalues are then negative."""
    rng = np.random.default_rng(0)
    predictions, targets = regression(rng, 10, 50, 0.9)
    gram, linear = predictions.T @ predictions / 10, predictions.T @ targets / 10
    weights, gap, _ = solve_simplex_qp(gram.astype(np.float32), linear.astype(np.float32))
    assert gap < 1e-6
    assert value(gram, linear, weights) <= value(gram, linear, solve_simplex_qp(gram, linear)[0]) + 1e-6


@pytest.mark.parametrize(
    ("gram", "linear", "keywords", "message"),
    [
        (np.eye(3), np.ones(2), {}, r"gram has shape \(3, 3\) and linear \(2,\)"),
        (np.eye(2)[None], np.ones(2), {}, "gram has shape"),
        (np.empty((0, 0)), np.empty(0), {}, "gram has shape"),
        (np.eye(2), [1.0, np.nan], {}, "linear is NaN or infinite at index"),
        ([[np.inf, 0], [0, 1]], [1.0, 1.0], {}, "gram is NaN or infinite at index"),
        (np.eye(2), np.ones(2), {"start": [0.5, 0.6]}, "sum 1.1"),
        (np.eye(2), np.ones(2), {"start": [1.5, -0.5]}, "smallest weight -0.5"),
        (np.eye(2), np.ones(2), {"start": [1.0]}, "start has shape"),
        (np.eye(3), np.ones(3), {"blocks": 2}, "3 weights do not divide into 2 blocks"),
    ],
)
def test_bad_input_is_named(gram: FloatArray, linear: FloatArray, keywords: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solve_simplex_qp(gram, linear, **keywords)  # type: ignore[arg-type]
