"""Products of T tasks at once: the rows of every task times its own matrix, with its own bias."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class TaskProduct(torch.autograd.Function):
    """``y_t = x_t W_t' + b_t``: x ``(T, rows, i)``, W ``(T, o, i)``, b ``(T, o)`` or None.

    y lies in memory as x does, tasks first or between rows and columns; the gradient of W is ``(T, o, i)``, contiguous
    (autograd's own is its transpose, which the composed weights would have to copy).
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _product(x, weight.mT, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), (g,) = ctx.saved_tensors, gradients
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            _product(g, weight, None) if for_x else None,
            torch.bmm(g.mT, x) if for_weight else None,
            g.sum(1) if for_bias else None,
        )


def recording_a_graph(x: Tensor) -> bool:
    """Whether a CUDA graph is being recorded: a kernel more then costs no launch."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def one_by_one(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same, T products that add the bias on their way out, without a gradient.

    The batched product reads and writes y once more for it; but this launches T kernels, so it is for CUDA graphs.
    """
    y = x.new_empty(*x.shape[:2], weight.shape[1])
    for own, rows, matrix, row in zip(y, x, weight, bias, strict=True):
        torch.addmm(row, rows, matrix.mT, out=own)
    return y


def _product(x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    if x.is_contiguous() or torch.is_grad_enabled() or torch._C._functorch.is_functorch_wrapped_tensor(x):
        return torch.bmm(x, matrix) if bias is None else torch.baddbmm(bias.unsqueeze(1), x, matrix)
    tasks, rows, _ = x.shape
    columns = matrix.shape[-1]
    y = x.new_empty_strided(
        (tasks, rows, columns), (columns, tasks * columns, 1)
    )  # no view: it may be changed in place
    if bias is None:
        return torch.bmm(x, matrix, out=y)
    return torch.baddbmm(bias.unsqueeze(1), x, matrix, out=y)
