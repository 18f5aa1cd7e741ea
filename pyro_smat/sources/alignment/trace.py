"""Finds the permutation groups of a network: a symbolic trace, and one rule for every layer and function on the way.

Module and an example input -> ``torch.fx`` graph -> rules (``layers.py``, ``operations.py``) -> PermutationSpec, which
:func:`~pyro_smat.sources.alignment.verify.check_groups` puts to the proof.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from pyro_smat.sources.alignment.layers import MODULES, rule_of
from pyro_smat.sources.alignment.operations import FUNCTIONS, Traced, opaque
from pyro_smat.sources.alignment.spec import PermutationSpec
from pyro_smat.sources.alignment.units import Ledger

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)
_TAKE_KEYWORDS = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)
_ABOUT_SHAPE = ("shape", "ndim", "dtype", "device", "size", "dim")
_SIDES = (16, 24, 28, 32, 40, 48, 56, 64, 96, 128, 160, 224)


def find_groups(module: nn.Module, example: Tensor) -> PermutationSpec:
    """All sets of hidden units that can change places without changing what the network computes.

    Understood are linear layers, convolution (depthwise too), batch, layer and group normalisation, pooling, pointwise
    activations, residual additions, flattening, :class:`torch.nn.MultiheadAttention` (heads move as wholes),
    :class:`torch.nn.TransformerEncoder`, and parameters used directly, such as position tables. Units that reach
    anything else (concatenation along units, unknown functions, control flow on values, layers with hooks) stay in
    place, and the notes say why. Inputs and outputs of the network keep their order.

    Args:
        module: the network; it runs in evaluation mode, and comes back as it was.
        example: an input batch, for its shape; at least 2 examples tell the batch dim from others.

    Raises:
        ValueError: when the network does not run on the example.
    """
    ledger = Ledger(module)
    with _evaluation(module):
        _run(module, example)
        tracer = _Tracer()
        try:
            graph = tracer.trace(module)
            _Walk(module, graph, ledger).run(example.clone())
        except Exception as error:  # any code may stand in a forward: control flow on values, printing, ...
            why = f"{type(module).__name__} cannot be traced ({type(error).__name__}: {error}): give groups by hand"
            return PermutationSpec((), (why,))
    return ledger.spec(_only_normalised(module, graph))


def example_input(module: nn.Module) -> Tensor:
    """Two random inputs that the network runs on, guessed from its first layer: vectors, or square images.

    Raises:
        ValueError: when there is no linear or convolution layer, or none of the usual sides of images fits.
    """
    first = next((m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d)), None)
    shapes: list[tuple[int, ...]] = []
    if isinstance(first, nn.Linear):
        shapes = [(2, first.in_features)]
    elif isinstance(first, nn.Conv2d):
        shapes = [(2, first.in_channels, side, side) for side in _SIDES]
    generator = torch.Generator().manual_seed(0)
    with _evaluation(module):
        for shape in shapes:
            example = torch.rand(shape, generator=generator)
            try:
                _run(module, example)
            except ValueError:
                continue
            return example
    raise ValueError(f"no input for {type(module).__name__} could be guessed (tried shapes {shapes}); give images")


class _Tracer(fx.Tracer):
    """Layers with a rule are leaves, and so are modules that cannot be traced into."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in MODULES or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        known = set(self.graph.nodes)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:  # the module becomes opaque, whatever its forward tripped over
            for node in reversed([node for node in self.graph.nodes if node not in known]):
                self.graph.erase_node(node)
            return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)


class _Walk(fx.Interpreter):
    """Runs the graph on the example and calls the rules along the way."""

    def __init__(self, module: nn.Module, graph: fx.Graph, ledger: Ledger) -> None:
        super().__init__(fx.GraphModule(module, graph))
        self._template, self._ledger = module, ledger
        self._traced: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        args = fx.node.map_arg(n.args, lambda node: self._traced[node])
        keywords = fx.node.map_arg(n.kwargs, lambda node: self._traced[node])
        self._ledger.where = str(n.target) if n.op == "call_module" else n.name
        self._traced[n] = self._follow(n, args, keywords, value)
        return value

    def _follow(self, node: fx.Node, args: Any, keywords: Any, value: Any) -> Any:
        match node.op:
            case "placeholder":
                return _fixed(value)
            case "output":
                return opaque(self._ledger, args, why="")
            case "get_attr":
                return self._parameter(str(node.target), value)
            case "call_module":
                return self._layer(self._template.get_submodule(str(node.target)), args, keywords, value)
        if node.target is operator.getitem and not isinstance(args[0], Traced):
            return args[0][args[1]]
        about = args[1] if node.target is getattr else node.target
        if about in _ABOUT_SHAPE and not isinstance(value, Tensor):
            return _fixed(value)
        rule = FUNCTIONS.get(node.target)
        if rule is None or not isinstance(value, Tensor) or not args or _holds_tensors(keywords):
            opaque(self._ledger, (args, keywords), f"{getattr(about, '__name__', about)} is not understood")
            return _fixed(value)
        return self._checked(rule(self._ledger, None, args, keywords, tuple(value.shape)), args, value)

    def _layer(self, module: nn.Module, args: Any, keywords: Any, value: Any) -> Any:
        rule = rule_of(module)
        first = value[0] if isinstance(module, nn.MultiheadAttention) else value
        takes = isinstance(module, _TAKE_KEYWORDS) or (args and not _holds_tensors(keywords))
        if rule is None or not takes or not isinstance(first, Tensor):
            opaque(self._ledger, (args, keywords), f"{type(module).__name__} is not understood")
            for tensor in module.state_dict(keep_vars=True).values():
                for dim in range(tensor.ndim):  # another layer may share it
                    self._ledger.attach(tensor, dim, None)
            return _fixed(value)
        traced = self._checked(rule(self._ledger, module, args, keywords, tuple(first.shape)), args, first)
        return (traced, *(_fixed(rest) for rest in value[1:])) if first is not value else traced

    def _checked(self, axes: Any, args: Any, value: Tensor) -> Traced:
        """Axes that do not fit the tensor mean a rule was misled: nothing that went in may move."""
        sizes = [
            n if axis is None else axis.units.size * axis.block for n, axis in zip(value.shape, axes, strict=False)
        ]
        if len(axes) == value.ndim and sizes == list(value.shape):
            return Traced(tuple(value.shape), axes)
        opaque(self._ledger, args, "shapes are not understood")
        opaque(self._ledger, Traced((), tuple(axes)), "shapes are not understood")
        return Traced(tuple(value.shape), (None,) * value.ndim)

    def _parameter(self, name: str, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return _fixed(value)
        axes = []
        for dim, size in enumerate(value.shape):
            axes.append(self._ledger.new(size, f"{name}[{dim}]", hidden=False))
            self._ledger.attach(value, dim, axes[-1])
        return Traced(tuple(value.shape), tuple(axes))


def _holds_tensors(keywords: dict[str, Any]) -> bool:
    return any(isinstance(value, Traced | tuple | list) and not _is_plain(value) for value in keywords.values())


def _is_plain(value: Any) -> bool:
    return all(map(_is_plain, value)) if isinstance(value, tuple | list) else not isinstance(value, Traced)


def _fixed(value: Any) -> Any:
    """Tensors whose dims all keep their order, in whatever they are packed; other values as they are."""
    if isinstance(value, Tensor):
        return Traced(tuple(value.shape), (None,) * value.ndim)
    if isinstance(value, tuple | list):
        return tuple(_fixed(part) for part in value)
    if isinstance(value, dict):
        return {name: _fixed(part) for name, part in value.items()}
    return value


def _only_normalised(module: nn.Module, graph: fx.Graph) -> set[str]:
    """Layers whose output goes to normalisations alone: what comes out of those is the better thing to observe."""
    found = set()
    for node in graph.nodes:
        users = [u for u in node.users if u.op == "call_module" and isinstance(module.get_submodule(u.target), _NORMS)]
        if node.op == "call_module" and users and len(users) == len(node.users):
            found.add(str(node.target))
    return found


@contextmanager
def _evaluation(module: nn.Module) -> Iterator[None]:
    training = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in training:
            part.training = mode


def _run(module: nn.Module, example: Tensor) -> None:
    try:
        module(example.clone())
    except Exception as error:
        raise ValueError(
            f"{type(module).__name__} does not run on inputs of shape {tuple(example.shape)}: {error}"
        ) from error
