"""The product ``theta = c B``: coefficients and rows of sources and experts in, task parameters out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_smat.networks.basis import AnyBasis, parts_of
from pyro_smat.networks.kept_memory import LARGE, large_empty
from pyro_smat.networks.parameters import ParameterSpace

COLUMNS = 2**16  # of the product at a time: some megabytes of all rows


def compose(coefficients: Tensor, basis: AnyBasis | Sequence[Tensor], space: ParameterSpace | None = None) -> Tensor:
    """Task parameters ``theta = c B``, one GEMM.

    Args:
        coefficients: ``(*b, C)`` with C = R + M; or ``(*b, L, C)``, one mixture for each of the L blocks of ``space``.
        basis: ``(C, d)``, rows are sources and masked experts; or several matrices whose rows are these one after the
            other, say sources ``(R, d)`` and experts ``(M, d)``, or a :class:`~pyro_smat.networks.basis.Basis`,
            which saves a copy of both.
        space: needed for blockwise coefficients: its blocks are column slices of the basis.

    Returns:
        ``(*b, d)`` in the dtype of ``basis``. In 16 bits, sums are float32 and theta is rounded once; on a CPU the
        coefficients keep their float32 too, elsewhere they are rounded first. Their gradient is float32 everywhere.

    Raises:
        ValueError: when C or L do not match, or the parts of the basis differ in d or dtype.

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
    if len({(part.shape[-1], part.dtype) for part in parts}) > 1:
        found = " and ".join(f"{tuple(part.shape)} {part.dtype}" for part in parts)
        raise ValueError(f"the parts of the basis are {found}; expected rows of one length and one dtype")
    coefficients = coefficients.to(torch.promote_types(parts[0].dtype, torch.float32))
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
    """``(*b, C) x (C, d)``."""
    first, flat = parts[0], coefficients.reshape(-1, coefficients.shape[-1])
    large = len(parts) > 1 or first.shape[-1] * len(flat) * first.element_size() >= LARGE
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return coefficients.to(first.dtype) @ _matrix(parts)
    theta: Tensor
    if first.dtype in (torch.bfloat16, torch.float16):
        theta = _HalfProduct.apply(flat, *parts)
    elif first.device.type == "cpu" and large:
        theta = _LargeProduct.apply(flat, *parts)
    else:
        return coefficients @ _matrix(parts)
    return theta.view(*coefficients.shape[:-1], first.shape[-1])


class _LargeProduct(torch.autograd.Function):
    """The same on a CPU, where most of the time would go into memory: nothing is copied, all is read or written once.

    Some columns of all matrices at a time, so that what one product leaves in the cache the next one finds there.
    """

    @staticmethod
    def forward(ctx: Any, coefficients: Tensor, *parts: Tensor) -> Tensor:
        ctx.save_for_backward(coefficients, *parts)
        theta = large_empty((len(coefficients), parts[0].shape[-1]), parts[0])
        first, *others = coefficients.split([len(part) for part in parts], dim=1)
        for own, rows, *more in _columns(theta, *parts):
            torch.mm(first, rows, out=own)
            for piece, further in zip(others, more, strict=True):
                own.addmm_(piece, further)
        return theta

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,), (coefficients, *parts) = gradients, ctx.saved_tensors
        pieces = coefficients.split([len(part) for part in parts], dim=1)
        for_coefficients, *for_parts = ctx.needs_input_grad
        if torch.is_grad_enabled() or torch._C._functorch.is_legacy_batchedtensor(g):  # again, or a batch of them
            own = torch.cat([g @ part.mT for part in parts], dim=1) if for_coefficients else None
            return own, *(piece.mT @ g if needed else None for piece, needed in zip(pieces, for_parts, strict=True))
        of_parts, wanted = _unwritten(pieces, parts, for_parts, g)
        of_coefficients = torch.zeros_like(coefficients, dtype=torch.float64)
        for slope, *columns in _columns(g, *parts, *(of for _, of in wanted)):
            rows, of_rows = columns[: len(parts)], columns[len(parts) :]
            if for_coefficients:
                of_coefficients += torch.cat([slope @ part.mT for part in rows], dim=1)
            for (piece, _), own in zip(wanted, of_rows, strict=True):
                torch.mm(piece, slope, out=own)
        return of_coefficients.to(g.dtype) if for_coefficients else None, *of_parts


class _HalfProduct(torch.autograd.Function):
    """The same in 16 bits, with coefficients, sums and the gradient of coefficients in float32.

    That gradient is a sum over all d weights. In float16 it would soon be infinite (the loss is scaled), and in 16 bits
    what it says about one source beside another would be lost in what it says about all of them.
    """

    @staticmethod
    def forward(ctx: Any, coefficients: Tensor, *parts: Tensor) -> Tensor:
        ctx.save_for_backward(coefficients, *parts)
        first = parts[0]
        if first.device.type != "cpu":
            return coefficients.to(first.dtype) @ _matrix(parts)
        theta = large_empty((len(coefficients), first.shape[-1]), first)
        for own, *rows in _columns(theta, *parts):
            own.copy_(coefficients @ _matrix([part.float() for part in rows]))
        return theta

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,), (coefficients, *parts) = gradients, ctx.saved_tensors
        pieces = coefficients.split([len(part) for part in parts], dim=1)
        for_coefficients, *for_parts = ctx.needs_input_grad
        again = torch.is_grad_enabled() or torch._C._functorch.is_legacy_batchedtensor(g)  # or a batch of them
        if again or not g.is_cpu:
            own = torch.cat([g.float() @ part.float().mT for part in parts], dim=1) if for_coefficients else None
            pairs = zip(pieces, for_parts, strict=True)
            return own, *(piece.to(g.dtype).mT @ g if needed else None for piece, needed in pairs)
        of_coefficients = torch.zeros_like(coefficients) if for_coefficients else None
        of_parts, wanted = _unwritten(pieces, parts, for_parts, g)
        for slope, *columns in _columns(g, *parts, *(of for _, of in wanted)):
            slope, rows, of_rows = slope.float(), columns[: len(parts)], columns[len(parts) :]
            if of_coefficients is not None:
                of_coefficients += slope @ _matrix([part.float() for part in rows]).mT
            for (piece, _), own in zip(wanted, of_rows, strict=True):
                own.copy_(piece @ slope)
        return of_coefficients, *of_parts


def _unwritten(
    pieces: Sequence[Tensor], parts: Sequence[Tensor], needed: Sequence[bool], g: Tensor
) -> tuple[list[Tensor | None], list[tuple[Tensor, Tensor]]]:
    """Memory for the gradient of each part that needs one, and with its coefficients, transposed, those that do."""
    of_parts = [large_empty(part.shape, g) if own else None for part, own in zip(parts, needed, strict=True)]
    return of_parts, [(piece.mT, of) for piece, of in zip(pieces, of_parts, strict=True) if of is not None]


def _matrix(parts: Sequence[Tensor]) -> Tensor:
    """All rows as one tensor."""
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts))


def _columns(*matrices: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same columns of all matrices, some at a time."""
    return zip(*(matrix.split(COLUMNS, dim=1) for matrix in matrices), strict=True)
