"""LocalModule: a PyroModule that keeps its parameters to itself, whatever Pyro's global setting is.

With ``module_local_params`` off (Pyro's default) the names of a PyroModule's parameters are global, and two routers in
one process share them. Models, guides and priors derive from this class, so nothing enters the parameter store and
nothing global is switched.
"""

from __future__ import annotations

import weakref
from typing import Any

import pyro
from pyro.nn import PyroModule


class LocalModule(PyroModule):
    """A PyroModule built and called under ``module_local_params=True``; use nn.Parameter, not pyro.param, inside."""

    def __init__(self) -> None:
        with pyro.settings.context(module_local_params=True):
            super().__init__()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for parameter in self.parameters():  # SVI asks every parameter for its unconstrained self
            parameter.unconstrained = weakref.ref(parameter)
        with pyro.settings.context(module_local_params=True):
            result = super().__call__(*args, **kwargs)
        if not self._pyro_context.active:
            self._pyro_context.used = False  # names do not matter here: a module that ran may still join another one
        return result
