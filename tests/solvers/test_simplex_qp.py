"""The active-set method against Clarabel, on random, near-collinear, singular and badly scaled problems."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simplex_problems import clarabel_weights, frank_wolfe_gap, regression

from pyro_smat.metrics.arrays import FloatArray
from pyro_smat.solvers.active_set import solve_convex_qp, solve_simplex_qp


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


@pytest.mark.parametrize("ratio", [1e-6, 1e-9, 1e-11, 1e-13, 1e-15, 1e-18, 1e-300])
@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("blocks", [1, 3])
def test_a_hessian_far_below_the_slopes_leaves_a_point_of_the_simplex(ratio: float, started: bool, blocks: int) -> None:
    """What is left of a saturated logistic loss; its minimum is the vertex of the largest linear term, or beside it."""
    rng = np.random.default_rng(int(-np.log10(ratio)))
    for sources in (2, 4, 9):
        for rank in (1, 2, sources):
            root = rng.normal(size=(blocks * sources, rank)) * 10.0 ** rng.uniform(-4, 0, size=rank)
            gram, linear = ratio * root @ root.T, 1e2 * rng.normal(size=blocks * sources)
            start = rng.dirichlet(np.ones(sources), size=blocks).ravel() if started else None
            weights, gap, _ = solve_simplex_qp(gram, linear, start, blocks=blocks)
            assert weights.min() >= 0
            np.testing.assert_allclose(weights.reshape(blocks, -1).sum(1), 1, atol=1e-13)
            vertices = linear.reshape(blocks, -1).max(1).sum()
            assert value(gram, linear, weights) <= -vertices + gram.max() * blocks**2 + 1e-12 * scale(gram, linear)
            assert gap <= 1e-12 * scale(gram, linear)


def test_the_step_that_lost_all_its_weights() -> None:
    """Rank one up to rounding, 1e-11 of the slopes: an update once drove the last source of the face out."""
    gram = [
        [2.49684362e-09, 3.97213819e-09, -1.95628227e-09, -1.20415663e-10],
        [3.97213819e-09, 6.31926525e-09, -3.11220326e-09, -1.91595595e-10],
        [-1.95628227e-09, -3.11220326e-09, 1.53275580e-09, 9.43515373e-11],
        [-1.20415663e-10, -1.91595595e-10, 9.43515373e-11, 5.81431039e-12],
    ]
    linear = [-21.50996189, 107.60197734, -145.95650041, -119.61416845]
    for start in (None, [0.12304688, 0.12304688, 0.41210936, 0.34179688]):
        np.testing.assert_array_equal(solve_simplex_qp(gram, linear, start)[0], [0, 1, 0, 0])


@pytest.mark.parametrize("size", [1e-300, 1e-150, 1e150, 1e300])
def test_the_size_of_the_numbers_does_not_matter(size: float) -> None:
    gram, linear = np.array([[2.0, 0.0], [0.0, 1.0]]), np.zeros(2)
    weights, gap, _ = solve_simplex_qp(size * gram, linear)
    np.testing.assert_allclose(weights, [1 / 3, 2 / 3], rtol=1e-13)
    assert gap <= 1e-14 * size


@pytest.mark.parametrize("noise", [1e-12, -1e-12])
def test_noise_of_a_part_in_a_million_million_moves_the_value_as_little(noise: float) -> None:
    rng = np.random.default_rng(4)
    for kind in KINDS:
        gram, linear = nasty(kind, rng, 7)
        bent = rng.normal(size=gram.shape)
        bent, shift = gram + noise * np.abs(gram).max() * (bent + bent.T), linear * (1 + noise * rng.normal(size=7))
        one, two = solve_simplex_qp(gram, linear)[0], solve_simplex_qp(bent, shift)[0]
        assert abs(value(gram, linear, one) - value(gram, linear, two)) <= 1e-10 * scale(gram, linear)


@pytest.mark.parametrize("single", [False, True])
def test_a_gram_that_is_not_convex_is_refused(single: bool) -> None:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(20, 5))
    dtype = np.float32 if single else np.float64
    gram = (matrix.T @ matrix).astype(dtype)
    linear = np.ones(5, dtype)
    solve_simplex_qp(gram, linear)
    crooked = gram.copy()
    crooked[1, 3] += 0.5
    with pytest.raises(ValueError, match=r"gram is not symmetric: \[1, 3\] is .* and \[3, 1\] is"):
        solve_simplex_qp(crooked, linear)
    with pytest.raises(ValueError, match="gram has a negative eigenvalue"):
        solve_simplex_qp(gram - 40 * np.eye(5, dtype=dtype), linear)


def test_a_problem_that_overflows_is_refused_inside() -> None:
    with pytest.raises(ValueError, match="gram reaches inf"):
        solve_convex_qp(np.full((2, 2), np.inf), np.zeros(2), None)
    with pytest.raises(ValueError, match="linear nan"):
        solve_convex_qp(np.eye(2), np.array([0.0, np.nan]), None)
