r"""Folding: normalisation by running statistics goes into the weights of the convolution before it.

.. math:: \frac{W * x + b - \mu}{\sqrt{\sigma^2 + \epsilon}} \gamma + \beta
          = (s W) * x + s (b - \mu) + \beta, \quad s = \gamma / \sqrt{\sigma^2 + \epsilon}

Each task has its own weights and statistics, so this is done for T small kernels instead of T batches of images, and
autograd takes the gradient through it to all of W, b, mu, sigma^2, gamma and beta. A pair is folded only where a run of
the network shows that the output of the convolution goes into the normalisation and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pyro_smat.networks.running_statistics import EvaluationBatchNorm, replaceable

FOLDED = "_normalised_by"

Pairs = tuple[tuple[str, str], ...]


class FoldedNorm(EvaluationBatchNorm):
    """What is left of a normalisation in its place: nothing; the convolution before it asks for its numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return x

    def folded(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Weight ``(o, ...)`` and bias ``(o,)`` of a convolution with this normalisation after it."""
        scale, shift = self.scale_and_shift()
        weight = weight * scale.view(-1, *(1,) * (weight.ndim - 1))
        return weight, shift if bias is None else torch.addcmul(shift, bias, scale)


def with_folded_norms(module: nn.Module, pairs: Pairs) -> nn.Module:
    """``module`` (changed in place), where the normalisation of each (convolution, normalisation) is folded."""
    for convolution, path in pairs:
        norm = module.get_submodule(path)
        norm.__class__ = FoldedNorm
        vars(module.get_submodule(convolution))[FOLDED] = (norm,)  # in a tuple, so that it is no second parent
    return module


def foldable(network: nn.Module, run: Callable[[], Any]) -> Pairs:
    """Paths of (convolution, normalisation) that can be folded, found by running ``network`` once.

    The convolution is a plain ``nn.Conv2d`` with zero padding, runs once, and everything that is ever done to its
    output is done by the normalisation, which runs once too; neither has hooks.

    Args:
        network: in evaluation mode.
        run: runs it and returns what it returns.
    """
    watch = _Watch()
    hooks = []
    for path, part in network.named_modules():
        if part._forward_hooks or part._forward_pre_hooks:
            continue
        if type(part) is nn.Conv2d and part.padding_mode == "zeros":
            hooks.append(part.register_forward_hook(watch.convolved(path)))
        elif replaceable(part):
            hooks.append(part.register_forward_pre_hook(watch.entered(path)))
            hooks.append(part.register_forward_hook(watch.left))
    try:
        with watch:
            output = run()
    finally:
        for hook in hooks:
            hook.remove()
    watch.see((output,))
    return watch.pairs()


class _Watch(TorchFunctionMode):
    """Sees where the outputs of convolutions go."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, tuple[str, Tensor]] = {}  # by id; the tensor is kept, so that the id stays its own
        self._goes_to: dict[int, list[str]] = {}
        self._calls: dict[str, int] = {}
        self._seen_elsewhere: set[int] = set()
        self._inside: list[str] = []

    def convolved(self, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            self._calls[path] = self._calls.get(path, 0) + 1
            with torch._C.DisableTorchFunction():  # the question is none of the network's
                if isinstance(output, Tensor) and output.ndim == 4:
                    self._made[id(output)] = path, output

        return hook

    def entered(self, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            self._calls[path] = self._calls.get(path, 0) + 1
            self._goes_to.setdefault(id(inputs[0]), []).append(path)
            self._inside.append(path)

        return hook

    def left(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._inside.pop()

    def see(self, arguments: Sequence[Any]) -> None:
        for argument in arguments:
            if isinstance(argument, Tensor):
                self._seen_elsewhere.add(id(argument))
            elif isinstance(argument, list | tuple):
                self.see(argument)
            elif isinstance(argument, dict):
                self.see(tuple(argument.values()))

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if not self._inside:
            self.see((args, kwargs or {}))
        return func(*args, **(kwargs or {}))

    def pairs(self) -> Pairs:
        found = []
        for key, (convolution, _) in self._made.items():
            norms = self._goes_to.get(key, [])
            if len(norms) == 1 and key not in self._seen_elsewhere:
                once = self._calls[convolution] == self._calls[norms[0]] == 1
                found += [(convolution, norms[0])] if once else []
        return tuple(found)
