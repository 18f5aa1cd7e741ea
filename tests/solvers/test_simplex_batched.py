"""Batched quadratic programs: every task as the exact method and Clarabel solve it alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from simplex_problems import clarabel_weights, frank_wolfe_gap, regression
from torch import Tensor

from pyro_smat.solvers.active_set import solve_simplex_qp
from pyro_smat.solvers.batched import minimize_quadratics_on_simplex


def tasks(count: int, examples: int, sources: int, correlation: float, noise: float = 0.5) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(examples + sources)
    made = [regression(rng, examples, sources, correlation, noise) for _ in range(count)]
    gram = np.stack([a.T @ a / examples for a, _ in made])
    return torch.from_numpy(gram), torch.from_numpy(np.stack([a.T @ y / examples for a, y in made]))


def values(gram: Tensor, linear: Tensor, weights: Tensor) -> Tensor:
    return torch.einsum("bi,bij,bj->b", weights, gram, weights) / 2 - (linear * weights).sum(1)


@pytest.mark.parametrize("sources", [1, 2, 13, 64])
@pytest.mark.parametrize(("examples", "correlation"), [(5, 0.0), (25, 0.99), (200, 0.5), (200, 0.99)])
def test_every_task_is_solved_as_alone(sources: int, examples: int, correlation: float) -> None:
    gram, linear = tasks(40, examples, sources, correlation)
    solution = minimize_quadratics_on_simplex(gram, linear, tolerance=1e-9)
    assert solution.converged.all()
    assert solution.weights.min() >= 0
    torch.testing.assert_close(solution.weights.sum(1), torch.ones(40, dtype=torch.float64), atol=1e-14, rtol=0)
    torch.testing.assert_close(solution.value, values(gram, linear, solution.weights), atol=1e-13, rtol=0)
    for g, b, w, value, gap in zip(
        *(t.numpy() for t in (gram, linear)),
        *(t.numpy() for t in (solution.weights, solution.value, solution.gap)),
        strict=True,
    ):
        assert gap == pytest.approx(frank_wolfe_gap(g @ w - b, w), abs=1e-13)
        exact, _, _ = solve_simplex_qp(g, b)
        assert -1e-13 <= value - exact @ (g @ exact / 2 - b) <= 1e-9


def test_clarabel_agrees() -> None:
    gram, linear = tasks(10, 25, 30, 0.9)
    solution = minimize_quadratics_on_simplex(gram, linear, tolerance=1e-12)
    for g, b, value in zip(gram.numpy(), linear.numpy(), solution.value.tolist(), strict=True):
        reference = clarabel_weights(g, b)
        assert value == pytest.approx(reference @ (g @ reference / 2 - b), abs=1e-11)


def test_tasks_with_many_solutions_are_solved() -> None:
    """Five examples, forty sources, targets inside the hull: the exact method has to finish some."""
    gram, linear = tasks(60, 5, 40, 0.0, noise=0.0)
    for rounds in (1, 8):
        solution = minimize_quadratics_on_simplex(gram, linear, tolerance=1e-11, max_rounds=rounds)
        assert solution.converged.all()


@pytest.mark.parametrize("shift", [-6, 6])
def test_scale_does_not_matter(shift: int) -> None:
    gram, linear = tasks(20, 25, 16, 0.5)
    one = minimize_quadratics_on_simplex(gram, linear, tolerance=1e-10)
    two = minimize_quadratics_on_simplex(gram * 10.0**shift, linear * 10.0**shift, tolerance=1e-10 * 10.0**shift)
    torch.testing.assert_close(two.weights, one.weights, atol=1e-4, rtol=0)
    assert two.converged.all()


def test_float32_problems_are_solved_to_their_precision() -> None:
    gram, linear = tasks(40, 25, 32, 0.9)
    solution = minimize_quadratics_on_simplex(gram.float(), linear.float(), tolerance=1e-5)
    assert solution.weights.dtype == torch.float32
    assert solution.gap.dtype == torch.float64
    assert solution.converged.all()
    best = minimize_quadratics_on_simplex(gram, linear)
    assert (values(gram, linear, solution.weights.double()) - best.value).max() < 1e-5
    # Asked for more than the format holds, it says what it got.
    fine = minimize_quadratics_on_simplex(gram.float(), linear.float(), tolerance=1e-12)
    assert torch.equal(fine.converged, fine.gap <= 1e-12)
    assert fine.gap.max() < 1e-5


def test_a_mask_removes_sources() -> None:
    gram, linear = tasks(30, 25, 12, 0.5)
    mask = torch.rand(30, 12, generator=torch.Generator().manual_seed(0)) < 0.5
    mask[:, 3] = True
    mask[0] = torch.arange(12) == 3
    solution = minimize_quadratics_on_simplex(gram, linear, mask=mask)
    assert (solution.weights[~mask] == 0).all()
    assert solution.converged.all()
    for g, b, w, kept in zip(gram.numpy(), linear.numpy(), solution.weights.numpy(), mask.numpy(), strict=True):
        exact, _, _ = solve_simplex_qp(g[np.ix_(kept, kept)], b[kept])
        np.testing.assert_allclose(w[kept], exact, atol=1e-3)
    spoiled = torch.where(mask, linear, 1e6)  # what a masked source holds does not matter
    torch.testing.assert_close(minimize_quadratics_on_simplex(gram, spoiled, mask=mask).weights, solution.weights)


def test_tasks_do_not_mix() -> None:
    gram, linear = tasks(700, 25, 6, 0.5)  # more than a chunk
    order = torch.randperm(700, generator=torch.Generator().manual_seed(0))
    one, two = (minimize_quadratics_on_simplex(g, b) for g, b in ((gram, linear), (gram[order], linear[order])))
    torch.testing.assert_close(two.weights, one.weights[order], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g, b: {"gram": g[:, :2]}, r"gram has shape \(4, 2, 3\) and linear \(4, 3\)"),
        (lambda g, b: {"gram": g[0], "linear": b[0]}, r"gram has shape \(3, 3\)"),
        (lambda g, b: {"gram": g[:, :0, :0], "linear": b[:, :0]}, "at least one source"),
        (lambda g, b: {"gram": g.float()}, "gram is torch.float32 on cpu and linear torch.float64"),
        (lambda g, b: {"gram": g.half(), "linear": b.half()}, "gram is torch.float16"),
        (lambda g, b: {"linear": b.clone().index_fill_(0, torch.tensor(1), torch.nan)}, "NaN or infinite"),
        (lambda g, b: {"mask": torch.ones(4, 2, dtype=torch.bool)}, r"mask is torch.bool of shape \(4, 2\)"),
        (lambda g, b: {"mask": torch.ones(4, 3)}, "mask is torch.float32"),
        (lambda g, b: {"mask": torch.arange(4)[:, None].expand(4, 3) != 2}, "task 2 has no source"),
        (lambda g, b: {"tolerance": 0.0}, "tolerance is 0.0"),
        (lambda g, b: {"max_rounds": 0}, "max_rounds is 0"),
    ],
)
def test_bad_input_is_named(change, message: str) -> None:
    gram, linear = tasks(4, 10, 3, 0.0)
    with pytest.raises(ValueError, match=message):
        minimize_quadratics_on_simplex(**{"gram": gram, "linear": linear, **change(gram, linear)})


def test_no_tasks_have_no_solutions() -> None:
    solution = minimize_quadratics_on_simplex(torch.zeros(0, 3, 3), torch.zeros(0, 3))
    assert solution.weights.shape == (0, 3)
    assert solution.gap.shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda g: g[0, 1].add_(0.3), "gram is not symmetric: in task 603"),
        (lambda g: g.diagonal().sub_(2.0), "negative eigenvalue in task 603"),
    ],
)
def test_a_task_that_is_not_convex_is_named(dtype: torch.dtype, spoil, message: str) -> None:
    gram, linear = (t.to(dtype) for t in tasks(700, 10, 5, 0.0))
    minimize_quadratics_on_simplex(gram, linear, tolerance=1e-3)
    spoil(gram[603])
    with pytest.raises(ValueError, match=message):
        minimize_quadratics_on_simplex(gram, linear)
    kept = torch.ones(700, 5, dtype=torch.bool)
    kept[603] = torch.arange(5) == 3  # among the one source that it has, a task with the odd entry is sound
    if "symmetric" in message:
        assert minimize_quadratics_on_simplex(gram, linear, mask=kept, tolerance=1e-3).converged.all()
