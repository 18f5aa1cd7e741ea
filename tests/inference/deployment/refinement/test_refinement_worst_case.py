"""The worst case of a linear loss against a linear program; the worst case of curved ones by finite differences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import linprog

from pyro_smat.inference.deployment.refinement import WorstCaseObjective, worst_weights

Array = NDArray[np.float64]
RADII = [0.0, 0.1, 0.5, 1.0, 1.7, 2.0]


def by_linear_program(losses: Array, weights: Array, radius: float) -> float:
    """max <g, w'>: variables w' and t >= |w' - w|, sum t <= radius."""
    size = len(losses)
    eye = np.eye(size)
    apart = np.block([[eye, -eye], [-eye, -eye], [np.zeros(size), np.ones(size)]])
    limits = np.concatenate([weights, -weights, [radius]])
    total = np.concatenate([np.ones(size), np.zeros(size)])[None]
    result = linprog(np.concatenate([-losses, np.zeros(size)]), apart, limits, total, [1.0], bounds=(0, None))
    assert result.success, result.message
    return float(-result.fun)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 6), st.sampled_from(RADII), st.booleans(), st.booleans())
def test_against_a_linear_program(seed: int, size: int, radius: float, sparse: bool, tied: bool) -> None:
    generator = np.random.default_rng(seed)
    losses = generator.integers(0, 3, size).astype(float) if tied else generator.normal(size=size)
    weights = generator.dirichlet(np.full(size, 0.2 if sparse else 1.0))
    if sparse:
        weights[weights < 0.1] = 0.0
        weights /= weights.sum()
    worst = worst_weights(losses, weights, radius)
    assert worst.min() >= 0
    assert worst.sum() == pytest.approx(1)
    assert np.abs(worst - weights).sum() <= radius + 1e-12
    assert losses @ worst == pytest.approx(by_linear_program(losses, weights, radius), abs=1e-8)


def test_blocks_are_apart() -> None:
    generator = np.random.default_rng(0)
    losses, weights = generator.normal(size=(3, 4)), generator.dirichlet(np.ones(4), 3)
    together = worst_weights(losses, weights, 0.6)
    for row, one, mixture in zip(together, losses, weights, strict=True):
        np.testing.assert_array_equal(row, worst_weights(one, mixture, 0.6))


@dataclass(frozen=True)
class Quadratic:
    """f(w) = g.w + w' H w / 2, H of either sign."""

    slope: Array
    hessian: Array
    convex: ClassVar[bool] = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.slope.shape

    def value(self, weights: Array) -> float:
        w = weights.ravel()
        return float(self.slope.ravel() @ w + w @ self.hessian @ w / 2)

    def gradient(self, weights: Array) -> Array:
        return self.slope + (self.hessian @ weights.ravel()).reshape(self.shape)


def random_quadratic(shape: tuple[int, ...], seed: int, curvature: float = 1.0) -> Quadratic:
    generator = np.random.default_rng(seed)
    size = int(np.prod(shape))
    root = generator.normal(size=(size, size))
    return Quadratic(generator.normal(size=shape), curvature * (root + root.T) / 2)


@pytest.mark.parametrize("radius", RADII)
def test_a_linear_loss_has_its_own_worst_case(radius: float) -> None:
    flat = random_quadratic((5,), 1, curvature=0.0)
    for seed in range(10):
        weights = np.random.default_rng(seed).dirichlet(np.ones(5))
        expected = by_linear_program(flat.slope, weights, radius)
        assert WorstCaseObjective(flat, radius).value(weights) == pytest.approx(expected, abs=1e-8)


def test_the_best_source_is_the_answer_of_the_linear_surrogate() -> None:
    """min over w of max over w': no mixture beats the vertex of least loss, at any radius."""
    generator = np.random.default_rng(3)
    for radius in RADII:
        losses = generator.normal(size=4)
        vertex = losses @ worst_weights(losses, np.eye(4)[losses.argmin()], radius)
        others = [losses @ worst_weights(losses, w, radius) for w in generator.dirichlet(np.full(4, 0.5), 500)]
        assert vertex <= min(others) + 1e-12


@pytest.mark.parametrize("shape", [(5,), (2, 4)])
@pytest.mark.parametrize("radius", [0.0, 0.3, 0.9, 1.9])
def test_gradient_against_finite_differences(shape: tuple[int, ...], radius: float) -> None:
    for seed in range(8):
        robust = WorstCaseObjective(random_quadratic(shape, seed), radius)
        weights = np.random.default_rng(seed).dirichlet(np.ones(shape[-1]), shape[:-1])
        gradient = robust.gradient(weights)
        for index in np.ndindex(*shape):
            step = np.zeros(shape)
            step[index] = 1e-6
            slope = (robust.value(weights + step) - robust.value(weights - step)) / 2e-6
            assert gradient[index] == pytest.approx(slope, rel=1e-5, abs=1e-6)


def test_the_mixture_of_losses_bounds_linear_models() -> None:
    """Logistic loss of averaged linear models: no mixture in the ball is above the surrogate's worst case."""
    generator = np.random.default_rng(7)
    margins = generator.normal(size=(30, 5))  # of 30 examples under 5 linear models

    def loss(weights: Array) -> Array:
        return np.log1p(np.exp(-weights @ margins.T)).mean(-1)

    centre = generator.dirichlet(np.ones(5))
    mixtures = generator.dirichlet(np.full(5, 0.5), 20000)
    near = mixtures[np.abs(mixtures - centre).sum(1) <= 0.5]
    assert len(near) > 100
    surrogate = loss(np.eye(5))
    assert loss(near).max() <= surrogate @ worst_weights(surrogate, centre, 0.5)
