"""The product ``theta = c B``: coefficients and rows of sources and experts in, task parameters out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_smat.networks.basis import AnyBasis, parts_of
from pyro_smat.networks.memory import HUGE_PAGES_FROM, in_huge_pages
from pyro_smat.networks.parameters import ParameterSpace


def compose(coefficients: Tensor, basis: AnyBasis | Sequence[Tensor], space: ParameterSpace | None = None) -> Tensor:
    """Task parameters ``theta = c B``, one GEMM.

    Args:
        coefficients: ``(*b, C)`` with C = R + M; or ``(*b, L, C)``, one mixture for each of the L blocks of ``space``.
        basis: ``(C, d)``, rows are sources and masked experts; or several matrices whose rows are these one after the
            other, say sources ``(R, d)`` and experts ``(M, d)``, or a :class:`~pyro_smat.networks.basis.Basis`,
            which saves a copy of both.
        space: needed for blockwise coefficients: its blocks are column slices of the basis.

    Returns:
        ``(*b, d)`` in the dtype of ``basis``.

    Raises:
        ValueError: when C or L do not match.

    Example:
        >>> compose(torch.tensor([0.25, 0.75]), torch.tensor([[0.0, 4.0], [4.0, 8.0]]))
        tensor([3., 7.])
    """
    parts = parts_of(basis)
    rows = sum(len(part) for part in parts)
    if coefficients.shape[-1] != rows:
        raise ValueError(
            f"coefficients have {coefficients.shape[-1]} columns and the basis {rows} rows; "
            "expected one coefficient for each source and expert"
        )
    coefficients = coefficients.to(parts[0].dtype)
    if space is None or len(space.block_names) == 1:
        return _product(coefficients, parts)
    blocks = len(space.block_names)
    if coefficients.ndim < 2 or coefficients.shape[-2] != blocks:
        raise ValueError(
            f"coefficients have shape {tuple(coefficients.shape)}; blockwise mixing expects (*b, {blocks}, C), "
            f"one row for each block of {space.block_names}"
        )
    slices = zip(*(part.split(space.block_sizes, dim=-1) for part in parts), strict=True)
    return torch.cat([_product(coefficients[..., i, :], columns) for i, columns in enumerate(slices)], dim=-1)


def _product(coefficients: Tensor, parts: tuple[Tensor, ...]) -> Tensor:
    """``(*b, C) x (C, d)``; the rows of a GPU or of half precision are one matrix, whose sum is rounded once."""
    first = parts[0]
    pays = len(parts) > 1 or first.shape[-1] * coefficients[..., 0].numel() * first.element_size() >= HUGE_PAGES_FROM
    on_cpu = first.device.type == "cpu" and first.dtype in (torch.float32, torch.float64)
    if not (pays and on_cpu) or torch._C._functorch.peek_interpreter_stack() is not None:
        return coefficients @ (first if len(parts) == 1 else torch.cat(parts))
    theta: Tensor = _LargeProduct.apply(coefficients.reshape(-1, coefficients.shape[-1]), *parts)
    return theta.view(*coefficients.shape[:-1], first.shape[-1])


class _LargeProduct(torch.autograd.Function):
    """The same on a CPU, where most of the time would go into fresh memory: none is copied, and it has huge pages."""

    @staticmethod
    def forward(ctx: Any, coefficients: Tensor, *parts: Tensor) -> Tensor:
        ctx.save_for_backward(coefficients, *parts)
        theta = in_huge_pages((len(coefficients), parts[0].shape[-1]), parts[0])
        pieces = coefficients.split([len(part) for part in parts], dim=1)
        torch.mm(pieces[0], parts[0], out=theta)
        for piece, part in zip(pieces[1:], parts[1:], strict=True):
            theta.addmm_(piece, part)
        return theta

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,), (coefficients, *parts) = gradients, ctx.saved_tensors
        pieces = coefficients.split([len(part) for part in parts], dim=1)
        own = torch.cat([g @ part.mT for part in parts], dim=1) if ctx.needs_input_grad[0] else None
        return own, *(
            _outer(piece, g) if needed else None for piece, needed in zip(pieces, ctx.needs_input_grad[1:], strict=True)
        )


def _outer(piece: Tensor, g: Tensor) -> Tensor:
    """``piece' g``."""
    if torch.is_grad_enabled():  # differentiated again
        return piece.mT @ g
    return torch.mm(piece.mT, g, out=in_huge_pages((piece.shape[1], g.shape[1]), g))
