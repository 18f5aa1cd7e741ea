"""Task arithmetic at the factors where it must be another method, and its choice against a loop."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from pyro_smat.inference.evaluation.baselines import (
    ComposedLibrary,
    SingleSource,
    TaskArithmetic,
    fit_task_arithmetic,
    uniform_soup,
    validation_loss,
)
from pyro_smat.networks.composition import TaskNetwork
from pyro_smat.networks.parameters import ParameterSpace
from pyro_smat.sources import SourceLibrary


def test_known_factors(composed: ComposedLibrary, make_library: Callable, make_batch: Callable) -> None:
    """0 is the fallback, 1/R the uniform soup, and with two sources 1 is the other one."""
    batch = make_batch(composed)
    torch.testing.assert_close(TaskArithmetic(composed, 0.0)(batch), SingleSource(composed)(batch))
    torch.testing.assert_close(TaskArithmetic(composed, 0.25)(batch), uniform_soup(composed)(batch))
    pair = make_library(composed.sources[:2])
    torch.testing.assert_close(TaskArithmetic(pair, 1.0).parameters(batch)[0], composed.sources[1])


def test_factor_is_chosen_on_validation(composed: ComposedLibrary, make_batch: Callable) -> None:
    episodes = [make_batch(composed, seed) for seed in (0, 10)]
    factors = [0.0, 0.1, 0.3, 0.7, 1.0]
    losses = [validation_loss(TaskArithmetic(composed, factor), episodes) for factor in factors]
    chosen = fit_task_arithmetic(composed, episodes, factors)
    assert chosen.factor == factors[losses.index(min(losses))]
    assert validation_loss(chosen, episodes) <= validation_loss(SingleSource(composed), episodes)


def test_running_statistics_are_those_of_the_fallback(make_batch: Callable) -> None:
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    space = ParameterSpace.from_module(module)
    generator = torch.Generator().manual_seed(0)
    basis = torch.rand(3, space.dim, generator=generator, dtype=torch.float64)
    composed = ComposedLibrary(TaskNetwork(module, space), SourceLibrary(("a", "b", "c"), basis, space))
    batch = make_batch(composed)
    weights = space.unflatten(TaskArithmetic(composed, -5.0).parameters(batch)[0])
    own = space.unflatten(basis[0])
    for name in ("2.running_mean", "2.running_var"):
        assert torch.equal(weights[name], own[name])
    vector = space.unflatten((basis[1:] - basis[0]).sum(0))
    torch.testing.assert_close(weights["1.weight"], own["1.weight"] - 5 * vector["1.weight"])


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_factor_must_be_finite(factor: float, composed: ComposedLibrary) -> None:
    with pytest.raises(ValueError, match="expected a finite number"):
        TaskArithmetic(composed, factor)


def test_no_factors(composed: ComposedLibrary, make_batch: Callable) -> None:
    with pytest.raises(ValueError, match="got no candidates"):
        fit_task_arithmetic(composed, [make_batch(composed)], [])
