"""Theta cut by tasks, and these into weights, so that on a CPU the gradient of theta is put together once.

Autograd would do it twice, the weights of a chunk of tasks into rows and the rows into the whole, each time in fresh
memory, whose first touch costs more than the copy. Here the gradient of every weight is copied to its place in the
gradient of theta, and that lies in kept memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_smat.networks.kept_memory import large_empty
from pyro_smat.networks.parameters import ParameterSpace


def split_tasks(theta: Tensor, size: int) -> tuple[Tensor, ...]:
    """``(T, d)`` in chunks of ``size`` tasks ``(t, d)``, as views.

    Example:
        >>> theta = torch.ones(2, 3, requires_grad=True)
        >>> space = ParameterSpace.from_module(torch.nn.Linear(2, 1))
        >>> first, second = (unflatten(rows, space) for rows in split_tasks(theta, 1))
        >>> (first["weight"].sum() + 2 * second["bias"].sum()).backward()
        >>> theta.grad
        tensor([[1., 1., 0.],
                [0., 0., 2.]])
    """
    outside = torch._C._functorch.peek_interpreter_stack() is None
    if outside and theta.device.type == "cpu" and theta.requires_grad and torch.is_grad_enabled():
        rows: tuple[Tensor, ...] = _Rows.apply(theta, _Gradient(theta), size)
        return rows
    return theta.split(size)


def unflatten(rows: Tensor, space: ParameterSpace) -> dict[str, Tensor]:
    """``space.unflatten(rows)`` of one of the chunks of :func:`split_tasks`, or of any other theta."""
    if not torch.compiler.is_compiling() and isinstance(rows.grad_fn, _Rows._backward_cls):
        whole, first = rows.grad_fn.whole, rows.output_nr * rows.grad_fn.size
        return space.named(_Weights.apply(rows, whole, first, space.sizes))
    return space.unflatten(rows)


class _Gradient:
    """Where the gradient of theta is written, in one backward pass after the other."""

    def __init__(self, theta: Tensor) -> None:
        self.shape, self._like = theta.shape, theta.new_empty(0)
        self._whole: Tensor | None = None
        self._written: set[int] = set()

    def first_at(self, first: int, count: int) -> Tensor | None:
        """The place of these rows; None where the rows are used several times, and another use has written there."""
        if first in self._written:
            return None
        self._written.add(first)
        return self.at(first, count)

    def at(self, first: int, count: int) -> Tensor:
        """The place of these rows; made by the first that asks."""
        if self._whole is None:
            self._whole = large_empty(tuple(self.shape), self._like)
        return self._whole[first : first + count]

    def take(self) -> Tensor:
        """The gradient, once: a second pass through the same graph writes another one."""
        whole, self._whole = self.at(0, self.shape[0]), None
        self._written.clear()
        return whole


class _Rows(torch.autograd.Function):
    """``theta.split(size)``."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, whole: _Gradient, size: int) -> tuple[Tensor, ...]:
        ctx.whole, ctx.size = whole, size
        ctx.set_materialize_grads(False)
        return theta.split(size)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if all(gradient is None for gradient in gradients):
            return None, None, None
        tasks, dim = ctx.whole.shape
        counts = [min(ctx.size, tasks - first) for first in range(0, tasks, ctx.size)]
        if _several(gradients):
            return torch.cat(_filled(gradients, [(count, dim) for count in counts])), None, None
        for i, (gradient, count) in enumerate(zip(gradients, counts, strict=True)):
            place = ctx.whole.at(i * ctx.size, count)
            if gradient is None:
                place.zero_()
            elif gradient.data_ptr() != place.data_ptr() or gradient.stride() != place.stride():
                place.copy_(gradient)
        return ctx.whole.take(), None, None


class _Weights(torch.autograd.Function):
    """``rows.split(sizes, dim=1)``."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, whole: _Gradient, first: int, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
        ctx.whole, ctx.first, ctx.count, ctx.sizes = whole, first, len(rows), sizes
        ctx.set_materialize_grads(False)
        return rows.split(sizes, dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if all(gradient is None for gradient in gradients):
            return None, None, None, None
        place = None if _several(gradients) else ctx.whole.first_at(ctx.first, ctx.count)
        if place is None:  # several gradients, or further images of the same tasks
            return torch.cat(_filled(gradients, [(ctx.count, size) for size in ctx.sizes]), dim=1), None, None, None
        for gradient, part in zip(gradients, place.split(ctx.sizes, dim=1), strict=True):
            if gradient is None:
                part.zero_()
            else:
                part.copy_(gradient)
        return place, None, None, None


def _several(gradients: Sequence[Tensor | None]) -> bool:
    """Whether the gradient is differentiated again, or is a batch of gradients (``is_grads_batched``)."""
    batched = torch._C._functorch.is_legacy_batchedtensor
    return torch.is_grad_enabled() or any(g is not None and batched(g) for g in gradients)


def _filled(gradients: Sequence[Tensor | None], shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Zeros where there is no gradient; there is one at least."""
    like = next(gradient for gradient in gradients if gradient is not None)
    return [like.new_zeros(s) if g is None else g for g, s in zip(gradients, shapes, strict=True)]
