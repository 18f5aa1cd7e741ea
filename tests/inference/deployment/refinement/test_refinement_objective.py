"""SupportObjective: the loss that candidates report, finite differences, and what it never allocates or touches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_smat.inference.deployment.refinement import SupportObjective
from pyro_smat.inference.objective.candidates import as_deployed, support_candidate_losses
from pyro_smat.networks.composition import compose


def objective_of(router: Any, i: int = 1) -> tuple[SupportObjective, Tensor]:
    """Objective of an episode of the padded batch, the experts' coefficients the posterior's mean, and the basis."""
    with as_deployed(router.model, router.guide):
        basis, mean = router.model.basis(), router.guide.posterior(router.batch).mean
    return SupportObjective(router.model, basis, router.batch[i : i + 1], mean[i]), basis


def random_weights(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(shape[-1]), shape[:-1])


CASES = [(1, 0, "cosine"), (1, 2, "cosine"), (2, 2, "cosine"), (1, 2, "euclidean")]


@pytest.mark.parametrize(("blocks", "experts", "metric"), CASES)
def test_value_and_gradient(make_router: Callable[..., Any], blocks: int, experts: int, metric: str) -> None:
    router = make_router("logistic_normal", 4, experts, blocks=blocks, model_options={"metric": metric})
    objective, basis = objective_of(router)
    assert objective.shape == ((4,) if blocks == 1 else (2, 4))
    assert objective.shots == int(router.batch.support.mask[1].sum()) < router.batch.support.labels.shape[1]
    weights = random_weights(objective.shape)
    coefficients = objective.coefficients(weights).unsqueeze(0)
    expected = support_candidate_losses(router.model, router.batch, coefficients, basis=basis)[0, 1]
    assert objective.value(weights) == pytest.approx(float(expected), rel=1e-12)

    gradient = objective.gradient(weights)
    assert objective.value(weights) == pytest.approx(float(expected), rel=1e-12)
    differences = np.zeros(objective.shape)
    for index in np.ndindex(*objective.shape):
        step = np.zeros(objective.shape)
        step[index] = 1e-5
        differences[index] = (objective.value(weights + step) - objective.value(weights - step)) / 2e-5
    np.testing.assert_allclose(gradient, differences, rtol=1e-6, atol=1e-8)
    assert np.abs(gradient).max() > 1e-2


def test_many_values_at_once(make_router: Callable[..., Any]) -> None:
    objective, _ = objective_of(make_router("logistic_normal", 3, 2, blocks=2))
    weights = np.stack([random_weights(objective.shape, seed) for seed in range(5)])
    together = objective.values(torch.from_numpy(weights))
    np.testing.assert_allclose(together, [objective.value(w) for w in weights], rtol=1e-10)


def memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class NewTensors(TorchDispatchMode):
    """Remembers the shape of every tensor that an operation made, forward or backward."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[torch.Size] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {memory(value) for value in args if isinstance(value, Tensor)}
        for made in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(made, Tensor) and memory(made) not in given:  # no view of an argument
                self.shapes.add(made.shape)
        return result


def test_no_gradient_of_the_size_of_the_sources(make_router: Callable[..., Any]) -> None:
    router = make_router("logistic_normal", 40, 0)
    objective, basis = objective_of(router)
    weights = random_weights(objective.shape)
    with NewTensors() as seen:
        objective.gradient(weights)
    assert 25 in {shape.numel() for shape in seen.shapes}  # the gradient in theta: the backward pass was seen
    assert max(shape.numel() for shape in seen.shapes) < 40 * 25

    basis.sources.requires_grad_()  # the control: through the sources, and the instrument notices
    with NewTensors() as seen:
        loss = objective.loss(compose(torch.from_numpy(weights), basis))
        torch.autograd.grad(loss, basis.sources)
    assert torch.Size([40, 25]) in seen.shapes


def test_nothing_gets_a_gradient(make_router: Callable[..., Any]) -> None:
    router = make_router("logistic_normal", 3, 2)
    objective, basis = objective_of(router)
    for part in basis.parts:
        part.requires_grad_()
    objective.gradient(objective.start)
    assert all(part.grad is None for part in basis.parts)
    assert all(parameter.grad is None for parameter in router.parameters())


def test_under_inference_mode(make_router: Callable[..., Any]) -> None:
    router = make_router("logistic_normal", 3, 2)
    objective, basis = objective_of(router)
    with torch.inference_mode():
        images = router.batch[1:2]
        again = SupportObjective(router.model, basis, images, objective.coefficients(objective.start))
        found = again.gradient(objective.start)
    np.testing.assert_array_equal(found, objective.gradient(objective.start))


def test_bad_input(make_router: Callable[..., Any]) -> None:
    router = make_router("logistic_normal", 3, 2)
    basis = router.model.basis()
    with pytest.raises(ValueError, match="4 episodes; expected one"):
        SupportObjective(router.model, basis, router.batch, torch.ones(5) / 5)
    with pytest.raises(ValueError, match=r"shape \(3,\); expected \(5,\)"):
        SupportObjective(router.model, basis, router.batch[:1], torch.ones(3) / 3)
