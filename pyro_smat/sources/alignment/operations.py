"""What functions do to units: elementwise ties, reshapes, reductions; the table that ``trace.py`` looks them up in.

A rule takes the ledger, the module (None for a function), the arguments with every tensor as :class:`Traced`, the
keywords, and the shape of the result; it returns the axes of the result. Layers are in ``layers.py``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch.nn import functional as F

from pyro_smat.sources.alignment.units import Axes, Axis, Ledger

Shape = tuple[int, ...]
Arguments = tuple[Any, ...]
Keywords = Mapping[str, Any]
Rule = Callable[[Ledger, Any, Arguments, Keywords, Shape], Axes]


@dataclass(frozen=True)
class Traced:
    """A tensor on its way through the network: its shape, and what its dims carry."""

    shape: Shape
    axes: Axes


def opaque(ledger: Ledger, values: Any, why: str = "not understood") -> None:
    """Everything that goes into something unknown stays in place."""
    if isinstance(values, Traced):
        for axis in values.axes:
            ledger.fix(axis, why)
    elif isinstance(values, Mapping | list | tuple):
        for value in values.values() if isinstance(values, Mapping) else values:
            opaque(ledger, value, why)


def meet(ledger: Ledger, parts: list[Traced], shape: Shape) -> Axes:
    """Dims that meet, counted from the last, move together; dims of size 1 that are repeated meet nothing."""
    axes: list[Axis | None] = []
    for back in range(1, len(shape) + 1):
        meeting = [p.axes[-back] for p in parts if len(p.shape) >= back and p.shape[-back] == shape[-back]]
        axis = meeting[0] if meeting else None
        for other in meeting[1:]:
            axis = ledger.unite(axis, other, "joins units that stay")
        axes.append(axis)
    return tuple(reversed(axes))


def same(_: Ledger, __: Any, args: Arguments, ___: Keywords, shape: Shape) -> Axes:
    """Elementwise, or equivariant along every dim, like softmax."""
    axes: Axes = args[0].axes
    return axes


def pool(dims: int) -> Rule:
    """Windows over the last ``dims`` dims."""

    def rule(ledger: Ledger, _: Any, args: Arguments, __: Keywords, shape: Shape) -> Axes:
        for axis in args[0].axes[-dims:]:
            ledger.fix(axis, "pooling along units")
        return (*args[0].axes[:-dims], *(None for _ in range(dims)))

    return rule


def reshape(ledger: Ledger, _: Any, args: Arguments, __: Keywords, shape: Shape) -> Axes:
    """Flatten, view, squeeze: units become blocks when positions are merged into them, and come apart again."""
    x = args[0]
    result: list[Axis | None] = [None] * len(shape)
    old = [(n, axis) for n, axis in zip(x.shape, x.axes, strict=True) if n != 1]
    new = [dim for dim, n in enumerate(shape) if n != 1]
    while old and new:
        taken, dims = [old.pop(0)], [new.pop(0)]
        while (have := prod(n for n, _ in taken)) != (want := prod(shape[d] for d in dims)):
            if have < want:
                taken.append(old.pop(0))
            else:
                dims.append(new.pop(0))
        axis = taken[0][1]
        later = [a for _, a in taken[1:] if a is not None]
        first = shape[dims[0]]
        if later or (axis is not None and first % axis.units.size):
            for a in (axis, *later):
                ledger.fix(a, f"a reshape of {x.shape} to {tuple(shape)} cuts through units")
        elif axis is not None:
            result[dims[0]] = Axis(axis.units, first // axis.units.size)
    return tuple(result)


def _elementwise(ledger: Ledger, _: Any, args: Arguments, __: Keywords, shape: Shape) -> Axes:
    """Sums, products: a residual addition ties two layers."""
    return meet(ledger, [x for x in args if isinstance(x, Traced)], shape)


def _permute(_: Ledger, __: Any, args: Arguments, ___: Keywords, shape: Shape) -> Axes:
    order = args[1] if isinstance(args[1], tuple | list) else args[1:]
    return tuple(args[0].axes[d] for d in order)


def _transpose(_: Ledger, __: Any, args: Arguments, ___: Keywords, shape: Shape) -> Axes:
    axes = list(args[0].axes)
    first, second = args[1:]
    axes[first], axes[second] = axes[second], axes[first]
    return tuple(axes)


def _expand(ledger: Ledger, _: Any, args: Arguments, __: Keywords, shape: Shape) -> Axes:
    return meet(ledger, [args[0]], shape)


def _reduce(_: Ledger, __: Any, args: Arguments, keywords: Keywords, shape: Shape) -> Axes:
    """Means and sums do not see the order of what they add up."""
    x = args[0]
    dims = args[1] if len(args) > 1 else keywords.get("dim")
    if dims is None:
        return (None,) * len(shape)
    gone = {d % len(x.shape) for d in (dims if isinstance(dims, tuple | list) else (dims,))}
    if len(shape) == len(x.shape):
        return tuple(None if d in gone else axis for d, axis in enumerate(x.axes))
    return tuple(axis for d, axis in enumerate(x.axes) if d not in gone)


def _concatenate(ledger: Ledger, _: Any, args: Arguments, keywords: Keywords, shape: Shape) -> Axes:
    """Units that are concatenated stay in place; the other dims of all parts move together."""
    dim = (args[1] if len(args) > 1 else keywords.get("dim", 0)) % len(shape)
    for part in args[0]:
        ledger.fix(part.axes[dim], "concatenation along units")
    rest = [Traced((*p.shape[:dim], 0, *p.shape[dim + 1 :]), p.axes) for p in args[0]]
    return meet(ledger, rest, shape)


def _select(ledger: Ledger, _: Any, args: Arguments, __: Keywords, shape: Shape) -> Axes:
    """Indexing with whole slices, numbers, None and one ellipsis; a partial slice fixes its dim."""
    x, index = args
    index = index if isinstance(index, tuple) else (index,)
    if not all(i is None or i is Ellipsis or isinstance(i, int | slice) for i in index):
        opaque(ledger, x, "units picked by a tensor")
        return (None,) * len(shape)
    if Ellipsis in index:
        at = index.index(Ellipsis)
        missing = len(x.shape) - sum(i is not None and i is not Ellipsis for i in index)
        index = (*index[:at], *(slice(None),) * missing, *index[at + 1 :])
    result: list[Axis | None] = []
    axes = list(x.axes)
    for i in index:
        axis = None if i is None else axes.pop(0)
        if i is not None and i != slice(None):
            ledger.fix(axis, "units picked by their number")
            axis = None
        if not isinstance(i, int):
            result.append(axis)
    return (*result, *axes)


_POINTWISE = (
    *(F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.gelu, F.silu, F.mish, F.hardswish, F.hardsigmoid, F.hardtanh),
    *(F.softplus, F.softmax, F.log_softmax, F.dropout, F.dropout2d, F.sigmoid, F.tanh, torch.relu, torch.sigmoid),
    *(torch.tanh, torch.softmax, torch.exp, torch.sqrt, torch.square, torch.abs, operator.neg),
    *("relu", "relu_", "sigmoid", "tanh", "softmax", "exp", "sqrt", "square", "abs", "contiguous", "clone", "float"),
)

FUNCTIONS: dict[Any, Rule] = {
    **dict.fromkeys(_POINTWISE, same),
    **dict.fromkeys((F.max_pool1d, F.avg_pool1d, F.adaptive_avg_pool1d), pool(1)),
    **dict.fromkeys((F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d), pool(2)),
    **dict.fromkeys((operator.add, operator.iadd, operator.sub, operator.mul, operator.imul), _elementwise),
    **dict.fromkeys((operator.truediv, torch.add, torch.sub, torch.mul, torch.div), _elementwise),
    **dict.fromkeys(("add", "add_", "sub", "mul", "mul_", "div"), _elementwise),
    **dict.fromkeys((torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze), reshape),
    **dict.fromkeys(("flatten", "reshape", "view", "squeeze", "unsqueeze"), reshape),
    **dict.fromkeys((torch.permute, "permute"), _permute),
    **dict.fromkeys((torch.transpose, "transpose"), _transpose),
    **dict.fromkeys((torch.mean, torch.sum, "mean", "sum"), _reduce),
    **dict.fromkeys((torch.cat, torch.concat), _concatenate),
    "expand": _expand,
    operator.getitem: _select,
}
