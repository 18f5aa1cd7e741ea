"""LocalModule: a PyroModule that keeps its parameters to itself, whatever Pyro's global setting is.

With ``module_local_params`` off (Pyro's default) the names of a PyroModule's parameters are global, and two routers in
one process share them. Models, guides and priors derive from this class: nothing enters the parameter store, no setting
is switched, and any number of threads may call one module at once.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

from pyro.nn import PyroModule, PyroParam
from pyro.nn.module import _Context
from pyro.poutine.runtime import effectful
from torch import Tensor, nn
from torch.distributions import constraints


class LocalModule(PyroModule):
    """A PyroModule whose parameters Pyro's handlers see but its parameter store doesn't.

    Use ``nn.Parameter`` (not ``pyro.param`` or ``PyroParam``), and LocalModule for every PyroModule inside.

    Raises:
        ValueError: for a PyroParam, or a PyroModule inside that is no LocalModule: their values would be global.

    Example:
        >>> import torch
        >>> class Shift(LocalModule):
        ...     def __init__(self) -> None:
        ...         super().__init__()
        ...         self.location = nn.Parameter(torch.tensor(2.0))
        ...
        ...     def forward(self) -> Tensor:
        ...         return self.location + 1
        >>> Shift()().item()
        3.0
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_pyro_context" and not isinstance(value, _ThreadContext):
            value = _ThreadContext()  # of a module that is being made
        if isinstance(value, PyroParam):
            raise ValueError(f"{name!r} is a PyroParam, whose value would be global; expected a torch.nn.Parameter")
        if isinstance(value, nn.Parameter):
            self._pyro_samples.pop(name, None)
            nn.Module.__setattr__(self, name, value)
            return
        super().__setattr__(name, value)

    def add_module(self, name: str, module: nn.Module | None) -> None:
        if isinstance(module, PyroModule) and not isinstance(module, LocalModule):
            raise ValueError(
                f"{name!r} is a {type(module).__name__}, a PyroModule whose parameters would be global; expected a "
                "LocalModule: derive its class from it (class LocalLinear(nn.Linear, LocalModule))"
            )
        super().add_module(name, module)

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__.get("_pyro_samples", ()):
            return super().__getattr__(name)
        found = nn.Module.__getattr__(self, name)
        context = self.__dict__.get("_pyro_context")
        if context is None or not context.active:
            return found
        if isinstance(found, nn.Parameter):
            _tell(self._pyro_get_fullname(name), found)
        elif isinstance(found, nn.Module) and not isinstance(found, PyroModule):
            for inner, parameter in found.named_parameters():
                _tell(f"{self._pyro_get_fullname(name)}$$${inner}", parameter)
        return found

    def _check_module_local_param_usage(self) -> None:
        """Nothing to check: there is no parameter store here, whatever Pyro's setting is."""


def _tell(name: str, parameter: nn.Parameter) -> None:
    """A param statement for Pyro's handlers (SVI collects parameters by them), past the parameter store."""
    parameter.unconstrained = weakref.ref(parameter)  # type: ignore[attr-defined]  # what SVI asks every one for
    _statement(name, parameter, constraint=constraints.real, name=name)


def _parameter(name: str, parameter: nn.Parameter, constraint: Any) -> Tensor:
    return parameter


_statement = effectful(_parameter, type="param")


class _ThreadContext(_Context):
    """Pyro's context of a call, one for each thread, without the parameter store."""

    def __init__(self) -> None:
        self._local = threading.local()
        self.param_state: Any = {"params": {}, "constraints": {}}

    @property
    def active(self) -> int:
        return getattr(self._local, "active", 0)

    @property
    def used(self) -> bool:
        """Whether a call is under way; a module that ran may still join another one."""
        return self.active > 0

    @property
    def cache(self) -> dict[str, Tensor]:
        if not hasattr(self._local, "cache"):
            self._local.cache = {}
        return self._local.cache

    def __enter__(self) -> None:
        self._local.active = self.active + 1

    def __exit__(self, *exception: Any) -> None:
        self._local.active = self.active - 1
        if not self.active:
            self.cache.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> _ThreadContext:
        return _ThreadContext()

    def __reduce__(self) -> tuple[Any, ...]:
        return _ThreadContext, ()
