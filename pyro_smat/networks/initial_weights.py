"""DrawsFrom: initial weights drawn from one generator, whoever draws them and however.

Constructors of networks draw from PyTorch's global generator. Setting and restoring its state would disturb every other
thread; this mode hands a generator to each random function that is called in its own thread instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_TAKE_A_GENERATOR = frozenset(
    [
        *(getattr(torch, name) for name in ("rand", "randn", "randint", "randperm", "normal", "bernoulli", "poisson")),
        *(getattr(Tensor, f"{name}_") for name in ("normal", "uniform", "bernoulli", "exponential", "random")),
        *(getattr(Tensor, f"{name}_") for name in ("cauchy", "geometric", "log_normal")),
        *(torch.multinomial, Tensor.multinomial, Tensor.bernoulli),
        *(nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_),
    ]
)


class DrawsFrom(TorchFunctionMode):
    """Random functions draw from ``generator``, on the CPU, in this thread; the global generator stays as it is.

    Args:
        generator: of the CPU.

    Example:
        >>> with DrawsFrom(torch.Generator().manual_seed(0)):
        ...     first = nn.Linear(2, 2)
        >>> _ = torch.manual_seed(0)
        >>> torch.equal(first.weight, nn.Linear(2, 2).weight)
        True
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def __enter__(self) -> DrawsFrom:
        self._device = torch.device("cpu")
        self._device.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._device.__exit__(*exception)

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch._standard_gamma:  # gamma, beta and Dirichlet draws; its generator is the second argument
            args, kwargs = args[:1], {"generator": next((g for g in args[1:] if g is not None), self.generator)}
        elif func in _TAKE_A_GENERATOR and kwargs.get("generator") is None:
            kwargs = {**kwargs, "generator": self.generator}
        return func(*args, **kwargs)
