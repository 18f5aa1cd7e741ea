r"""Quadratic programs over the simplex for a batch of tasks, in PyTorch, all in step.

A round has three parts, each the same few tensor operations for every task that is not done: pairwise Frank-Wolfe
steps, which bring in most of the face of the solution; solves on the face, between which all sources with a negative
weight leave and all of smaller gradient enter (face_guess.py says why); and an exact line search to the result, so that
the value never rises. Which tasks are done is asked once a round. What many rounds do not finish, mostly tasks with
infinitely many solutions, goes to the exact method one at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_smat.solvers.active_set import solve_convex_qp
from pyro_smat.solvers.validation import ASYMMETRIC, INDEFINITE, ROUNDING, ROUNDING_SINGLE

_FIRST_STEPS, _STEPS = 32, 16  # pairwise, in the first round and in the others
_PIVOTS = 2  # of a round, but none in the first, which is enough for many tasks
_RIDGES = {torch.float64: 1e-10, torch.float32: 1e-6}  # relative to the largest diagonal entry
_WIDTH = 8  # faces are padded to a multiple of this
_TASKS_AT_A_TIME = {"cpu": 512, "cuda": 2**14}  # few enough for the memory, enough to spread the cost of a call
_FACES_AT_A_TIME = {"cpu": 128, "cuda": 2**14}  # their Gram matrices should stay in the cache


@dataclass(frozen=True)
class BatchedSolution:
    """Solutions of B tasks, where the problems were.

    Attributes:
        weights: ``(B, R)`` in the simplex, in the dtype of the problems.
        value: ``(B,)`` the quadratics there, in float64.
        gap: ``(B,)`` their Frank-Wolfe gaps, which bound value minus minimum, in float64.
        converged: ``(B,)`` whether the gap is within the tolerance.
    """

    weights: Tensor
    value: Tensor
    gap: Tensor
    converged: Tensor


@torch.no_grad()
def minimize_quadratics_on_simplex(
    gram: Tensor, linear: Tensor, *, tolerance: float = 1e-8, max_rounds: int = 8, mask: Tensor | None = None
) -> BatchedSolution:
    r"""Minimise :math:`\tfrac12 w^\top G_b w - b_b^\top w` over the simplex for every task b.

    Args:
        gram: G ``(B, R, R)`` float32 or float64, symmetric positive semidefinite; they may be singular.
        linear: b ``(B, R)``.
        tolerance: gap at which a task is done. Float32 weights resolve about 1e-6 of the size of the gradient.
        max_rounds: rounds before the tasks that are not done go to the exact method, on the CPU.
        mask: ``(B, R)`` bool, the sources that a task has; None: all.

    Raises:
        ValueError: for shapes, dtypes or devices that do not fit, no source, NaN or infinity, a task without sources,
            budgets that allow nothing, or a Gram matrix that is not symmetric or has a negative eigenvalue (beyond the
            rounding of its dtype); names the task. Sources that a task lacks are not looked at.

    Example:
        >>> gram = torch.tensor([[[2.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 4.0]]])
        >>> minimize_quadratics_on_simplex(gram, torch.zeros(2, 2)).weights
        tensor([[0.3333, 0.6667],
                [0.8000, 0.2000]])
    """
    _check(gram, linear, tolerance, max_rounds, mask)
    if mask is None:
        mask = torch.ones_like(linear, dtype=torch.bool)
    size = _TASKS_AT_A_TIME.get(linear.device.type, 2**14)
    _check_convex(gram, mask, size)
    parts = [
        _solve(*part, tolerance, max_rounds)
        for part in zip(gram.split(size), linear.split(size), mask.split(size), strict=True)
    ]
    weights, value, gap = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return BatchedSolution(weights, value, gap, gap <= tolerance)


class _Tasks(NamedTuple):
    """B tasks of a chunk.

    Attributes:
        rows: rows of the Gram matrices of all tasks of the chunk.
        first: ``(B,)`` where those of each task begin.
        linear: ``(B, R)``.
        unit: ``(B, 1)`` largest diagonal entry.
    """

    rows: Tensor
    first: Tensor
    linear: Tensor
    unit: Tensor

    def at(self, index: Tensor | slice) -> _Tasks:
        return self._replace(first=self.first[index], linear=self.linear[index], unit=self.unit[index])


def _solve(
    gram: Tensor, linear: Tensor, mask: Tensor, tolerance: float, max_rounds: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, values and gaps of a chunk."""
    count, sources = linear.shape
    diagonal = gram.diagonal(dim1=1, dim2=2)
    limits = torch.finfo(linear.dtype)
    lowered = linear.masked_fill(~mask, -limits.max / 8)  # a gradient so large that the source never enters
    start = (diagonal / 2 - lowered).argmin(1, keepdim=True)
    weights = torch.zeros_like(linear).scatter_(1, start, 1.0)
    tasks = _Tasks(
        gram.reshape(count * sources, sources),
        torch.arange(count, device=linear.device) * sources,
        lowered,
        (diagonal * mask).amax(1, keepdim=True).clamp_min(limits.tiny**0.5),
    )
    gradient = tasks.rows.index_select(0, start.squeeze(1) + tasks.first) - lowered
    rounding = 16 * limits.eps * (tasks.unit + linear.abs().masked_fill(~mask, 0.0).amax(1, keepdim=True))
    enough = rounding.clamp_min(tolerance).squeeze(1)

    left = torch.arange(count, device=linear.device)
    x = weights.clone()
    for number in range(max_rounds):
        if not len(left):
            break
        _pairwise(tasks, x, gradient, _STEPS if number else _FIRST_STEPS)
        order = (x > 0).sum(1).argsort()
        tasks, x, gradient, left = tasks.at(order), x[order], gradient[order], left[order]
        x, gradient = _to_faces(tasks, x, gradient, _PIVOTS if number else 0)
        done = (x * gradient).sum(1) - gradient.amin(1) <= enough[left]
        weights[left] = x
        kept = (~done).nonzero().squeeze(1)
        tasks, x, gradient, left = tasks.at(kept), x[kept], gradient[kept], left[kept]
    if len(left) and linear.dtype == torch.float32:
        # Rounding to float32 has left a singular matrix with negative eigenvalues; the ridge is of their size.
        definite = gram[left].double() + torch.diag_embed((_RIDGES[torch.float32] * tasks.unit.double()).expand_as(x))
        weights[left] = _solve(definite, linear[left].double(), mask[left], tolerance, max_rounds)[0].float()
    elif len(left):
        weights[left] = _one_at_a_time(gram[left].cpu(), linear[left].cpu(), mask[left].cpu()).to(weights.device)
    weights /= weights.sum(1, keepdim=True)
    w, b = weights.double(), linear.double().masked_fill(~mask, 0.0)
    product = torch.bmm(w.unsqueeze(1), gram.double()).squeeze(1)
    slopes = (product - b).masked_fill(~mask, torch.inf)
    gap = ((w * (product - b)).sum(1) - slopes.amin(1)).clamp_min(0.0)
    return weights, (w * (product / 2 - b)).sum(1), gap


def _one_at_a_time(gram: Tensor, linear: Tensor, mask: Tensor) -> Tensor:
    weights = torch.zeros_like(linear)
    for task, kept in enumerate(mask):
        exact, _, _ = solve_convex_qp(gram[task][kept][:, kept].numpy(), linear[task, kept].numpy(), None)
        weights[task, kept] = torch.from_numpy(exact)
    return weights


def _pairwise(tasks: _Tasks, x: Tensor, gradient: Tensor, steps: int) -> None:
    """Pairwise Frank-Wolfe steps with exact line search, in place."""
    limits = torch.finfo(x.dtype)
    barred = (x <= 0).to(x.dtype).mul_(-limits.max / 2)  # added to a gradient, leaves the active sources
    scores = torch.empty_like(x)
    for _ in range(steps):
        lowest, entering = gradient.min(1, keepdim=True)
        torch.add(gradient, barred, out=scores)
        highest, leaving = scores.max(1, keepdim=True)
        change = tasks.rows.index_select(0, entering.squeeze(1) + tasks.first)
        change.sub_(tasks.rows.index_select(0, leaving.squeeze(1) + tasks.first))
        curvature = (change.gather(1, entering) - change.gather(1, leaving)).clamp_min_(limits.tiny)
        weight = x.gather(1, leaving)
        step = torch.minimum((highest - lowest) / curvature, weight)
        rest = weight - step
        x.scatter_(1, leaving, rest).scatter_add_(1, entering, step)
        barred.scatter_(1, leaving, (rest <= 0).to(x.dtype).mul_(-limits.max / 2)).scatter_(1, entering, 0.0)
        gradient.addcmul_(step, change)


def _to_faces(tasks: _Tasks, x: Tensor, gradient: Tensor, pivots: int) -> tuple[Tensor, Tensor]:
    """Each task to the minimum over its face, as far as its value falls; the new points and gradients."""
    size = _FACES_AT_A_TIME.get(x.device.type, 2**14)
    parts = [
        _to_face(tasks.at(slice(first, first + size)), x[first : first + size], gradient[first : first + size], pivots)
        for first in range(0, len(x), size)
    ]
    points, gradients = zip(*parts, strict=True)
    return torch.cat(points), torch.cat(gradients)


def _to_face(tasks: _Tasks, x: Tensor, gradient: Tensor, pivots: int) -> tuple[Tensor, Tensor]:
    face = x > 0
    ridge = _RIDGES[x.dtype] * tasks.unit
    for _ in range(pivots):
        solution = _minimum(tasks, x, face, ridge)
        w = solution.scattered(solution.weights, x)
        slopes = solution.times_gram(solution.weights) - tasks.linear + ridge * (w - x)
        face = face ^ torch.where(face, w < 0, slopes < solution.level - 1e-12 * tasks.unit)
    solution = _minimum(tasks, x, face, ridge)
    positive = solution.weights.clamp_min(0.0)
    positive /= positive.sum(1, keepdim=True)
    target = solution.scattered(positive, x)
    change, bend = target - x, solution.times_gram(positive) - tasks.linear - gradient
    slope, curvature = (gradient * change).sum(1, keepdim=True), (bend * change).sum(1, keepdim=True)
    step = torch.where(curvature <= -slope, 1.0, -slope / curvature).clamp(0.0, 1.0)
    # A face that could not be factorised has no solution; such a task stays where it is.
    sound = positive.isfinite().all(1, keepdim=True)
    moved = torch.where(step == 1, target, x + step * change)
    return torch.where(sound, moved, x), torch.where(sound, gradient + step * bend, gradient)


class _Minimum(NamedTuple):
    """Of the quadratics on the affine hulls of faces, padded to a width F.

    Attributes:
        weights: ``(B, F)``, zero in the padding.
        sources: ``(B, F)`` whose weights they are.
        rows: ``(B, F, R)`` the rows of these sources of the Gram matrices.
        level: ``(B, 1)`` the gradient of the sources of the face.
    """

    weights: Tensor
    sources: Tensor
    rows: Tensor
    level: Tensor

    def scattered(self, weights: Tensor, like: Tensor) -> Tensor:
        return torch.zeros_like(like).scatter_(1, self.sources, weights)

    def times_gram(self, weights: Tensor) -> Tensor:
        return torch.bmm(weights.unsqueeze(1), self.rows).squeeze(1)


def _minimum(tasks: _Tasks, x: Tensor, face: Tensor, ridge: Tensor) -> _Minimum:
    """The minimum with a ridge around ``x``, so that a singular face has one and a solution is not moved by it."""
    count, sources = x.shape
    width = min(sources, -(-max(1, int(face.sum(1).max())) // _WIDTH) * _WIDTH)
    inside, index = face.to(x.dtype).topk(width, 1, sorted=False)
    rows = tasks.rows.index_select(0, (index + tasks.first.unsqueeze(1)).flatten()).view(count, width, sources)
    # A multiple of 11^T changes nothing where the weights sum to 1, and makes the face's matrix definite.
    matrix = rows.gather(2, index.unsqueeze(1).expand(-1, width, -1)).add_(tasks.unit.unsqueeze(2))
    matrix.mul_(inside.unsqueeze(2)).mul_(inside.unsqueeze(1))
    matrix.diagonal(dim1=1, dim2=2).add_((1 - inside) * tasks.unit + ridge)
    factor = torch.linalg.cholesky_ex(matrix).L
    sides = torch.stack([(tasks.linear + ridge * x).gather(1, index) * inside, inside], 2)
    sides = torch.linalg.solve_triangular(factor, sides, upper=False)
    first, second = torch.linalg.solve_triangular(factor.mT, sides, upper=True).unbind(2)
    level = (1 - first.sum(1, keepdim=True)) / second.sum(1, keepdim=True)
    return _Minimum(first + level * second, index, rows, level - tasks.unit)


def _check(gram: Tensor, linear: Tensor, tolerance: float, max_rounds: int, mask: Tensor | None) -> None:
    if linear.ndim != 2 or gram.shape != (*linear.shape, linear.shape[-1]) or linear.shape[1] == 0:
        raise ValueError(
            f"gram has shape {tuple(gram.shape)} and linear {tuple(linear.shape)}; expected (B, R, R) and (B, R) with "
            "at least one source"
        )
    if linear.dtype not in _RIDGES or gram.dtype != linear.dtype or gram.device != linear.device:
        raise ValueError(
            f"gram is {gram.dtype} on {gram.device} and linear {linear.dtype} on {linear.device}; expected both "
            "float32 or both float64, on one device"
        )
    if not (gram.isfinite().all() and linear.isfinite().all()):
        raise ValueError("gram or linear has NaN or infinite entries; expected finite numbers")
    if mask is not None:
        if mask.shape != linear.shape or mask.dtype != torch.bool or mask.device != linear.device:
            raise ValueError(
                f"mask is {mask.dtype} of shape {tuple(mask.shape)} on {mask.device}; expected bool of shape "
                f"{tuple(linear.shape)} on {linear.device}"
            )
        if not mask.any(1).all():
            raise ValueError(
                f"task {int((~mask.any(1)).nonzero()[0])} has no source; expected at least one in its mask"
            )
    if not tolerance > 0:
        raise ValueError(f"tolerance is {tolerance!r}; expected a gap > 0")
    if max_rounds < 1:
        raise ValueError(f"max_rounds is {max_rounds!r}; expected at least 1")


def _check_convex(gram: Tensor, mask: Tensor, tasks_at_a_time: int) -> None:
    """Refuse tasks whose function is not convex among their sources; the device is asked once a chunk."""
    rounding = ROUNDING_SINGLE if gram.dtype == torch.float32 else ROUNDING
    for number, (matrix, kept) in enumerate(zip(gram.split(tasks_at_a_time), mask.split(tasks_at_a_time), strict=True)):
        both = kept.unsqueeze(2) & kept.unsqueeze(1)
        scaled = torch.where(both, matrix, 0.0)
        scaled = scaled / scaled.abs().amax((1, 2), keepdim=True).clamp_min(torch.finfo(gram.dtype).tiny)
        asymmetry = (scaled - scaled.mT).abs().amax((1, 2))
        scaled.diagonal(dim1=1, dim2=2).add_(rounding + (~kept).to(gram.dtype))
        wrong = torch.stack([asymmetry > rounding, torch.linalg.cholesky_ex(scaled).info > 0]).cpu()
        if wrong.any():
            task = int(wrong.any(0).nonzero()[0])
            where = f" in task {number * tasks_at_a_time + task}"
            raise ValueError((ASYMMETRIC if wrong[0, task] else INDEFINITE).format(found=where[1:], where=where))
