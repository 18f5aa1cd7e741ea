"""LocalModule: parameters stay at home and Pyro's settings stay as they are."""

from __future__ import annotations

import copy
import pickle
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pyro
import pyro.distributions as dist
import pytest
import torch
from other_process import run_python
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import Tensor, nn

from pyro_smat.inference import CVaR_ELBO
from pyro_smat.routing.local_module import LocalModule


class Inner(LocalModule):
    def __init__(self, start: float) -> None:
        super().__init__()
        self.location = nn.Parameter(torch.tensor(start))

    def forward(self) -> Tensor:
        return self.location


class Guide(LocalModule):
    def __init__(self, start: float) -> None:
        super().__init__()
        self.location = nn.Parameter(torch.tensor(start))
        self.inner = Inner(start)

    def forward(self, fail: bool = False) -> Tensor:
        assert not pyro.settings.get("module_local_params")
        if fail:
            raise RuntimeError("on purpose")
        return pyro.sample("x", dist.Normal(self.location + self.inner(), 1.0))


def model() -> None:
    pyro.sample("x", dist.Normal(3.0, 1.0))


@pytest.fixture(autouse=True)
def _clean_store() -> None:
    pyro.clear_param_store()


def test_two_modules_with_the_same_names_share_nothing() -> None:
    first, second = Guide(1.0), Guide(-2.0)
    optimiser = pyro.optim.Adam({"lr": 0.1})
    pyro.set_rng_seed(0)
    svi = SVI(model, first, optimiser, Trace_ELBO())
    for _ in range(5):
        svi.step()
    assert first.location.item() != 1.0
    assert first.inner.location.item() != 1.0
    assert (second.location.item(), second.inner.location.item()) == (-2.0, -2.0)
    third = Guide(7.0)
    third()
    assert (third.location.item(), third.inner.location.item()) == (7.0, 7.0)
    assert list(pyro.get_param_store().keys()) == []


def test_settings_are_untouched_by_calls_and_by_exceptions() -> None:
    before = pyro.settings.get()
    guide = Guide(0.0)
    guide()
    assert pyro.settings.get() == before
    with pytest.raises(RuntimeError, match="on purpose"):
        guide(fail=True)
    assert pyro.settings.get() == before
    assert pyro.settings.get("module_local_params") is False


def test_gradient_flows_and_a_used_module_can_be_copied_and_saved() -> None:
    guide = Guide(0.5)
    guide().backward()
    assert guide.location.grad is not None
    assert guide.location.grad.item() == 1.0
    twin = copy.deepcopy(guide)
    with torch.no_grad():
        twin.location.fill_(9.0)
    twin()
    assert guide.location.item() == 0.5
    assert set(guide.state_dict()) == {"location", "inner.location"}


def test_a_module_that_ran_may_join_another() -> None:
    """Pyro forbids it for plain PyroModules, whose names would have to change."""
    inner = Inner(2.0)
    inner()
    guide = Guide(1.0)
    guide()
    guide.inner = inner
    trace = poutine.trace(guide).get_trace()
    assert trace.nodes["x"]["fn"].loc.item() == 3.0
    outer = LocalModule()
    outer.guide = guide
    assert [name for name, _ in outer.named_parameters()] == ["guide.location", "guide.inner.location"]
    assert len(pyro.get_param_store()) == 0


def test_two_routers_in_one_process_are_independent(make_router: Callable) -> None:
    """The same names, other numbers: training one leaves the other, and Pyro's store, alone."""
    first, second = make_router(seed=0), make_router(seed=1)
    before = [p.detach().clone() for p in second.parameters()]
    optimiser = torch.optim.Adam(first.parameters(), lr=0.1)
    for router in (first, second, first):  # both have run
        optimiser.zero_grad()
        CVaR_ELBO(rho=1.0)(router.model, router.guide)(router.batch).backward()
        optimiser.step()
    assert all(torch.equal(a, b) for a, b in zip(second.parameters(), before, strict=True))
    assert not torch.equal(first.parameters()[1], make_router(seed=0).parameters()[1])
    assert list(pyro.get_param_store().keys()) == []
    assert pyro.settings.get("module_local_params") is False


def test_importing_the_package_switches_nothing_global() -> None:
    code = """
import numpy, pyro, torch

def flags():
    return torch.get_default_dtype(), torch.is_grad_enabled(), torch.backends.mha.get_fastpath_enabled()

before, state, threads = dict(pyro.settings.get()), torch.get_rng_state(), torch.get_num_threads()
expected = flags()
import pyro_smat.cli.app, pyro_smat.cli.quickstart_run, pyro_smat.inference.runs.train
from pyro_smat.registry import KINDS, names
found = {kind: names(kind) for kind in KINDS}  # every file of every room
assert all(found.values())
assert dict(pyro.settings.get()) == before
assert torch.equal(torch.get_rng_state(), state)
assert flags() == expected
assert torch.get_num_threads() == threads
assert len(pyro.get_param_store()) == 0
"""
    run_python("-c", code.strip())


def test_threads_share_a_module_and_switch_nothing() -> None:
    """Every thread has a context of its own: names, caches and Pyro's settings don't mix."""

    class Slow(LocalModule):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner(2.0)
            self.draw = PyroSample(dist.Delta(torch.tensor(3.0)))

        def forward(self, number: int) -> tuple[float, bool]:
            first = self.draw
            time.sleep(0.001 * (number % 3))
            assert pyro.settings.get("module_local_params") is False
            return float(self.inner().detach()) + number, self.draw is first  # one draw a call

    module = Slow()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(module, range(200)))
    assert found == [(2.0 + number, True) for number in range(200)]
    assert module._pyro_context.active == 0
    assert not module._pyro_context.cache
    assert pyro.settings.get("module_local_params") is False
    assert list(pyro.get_param_store().keys()) == []


@pytest.mark.parametrize("local", [False, True])
def test_handlers_see_every_parameter_whatever_the_setting(local: bool) -> None:
    class Outer(LocalModule):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner(1.0)
            self.layers = nn.Sequential(nn.Linear(2, 2))

        def forward(self) -> Tensor:
            return self.layers(torch.ones(2)) + self.inner()

    with pyro.settings.context(module_local_params=local):
        outer = Outer()
        trace = poutine.trace(outer).get_trace()
    assert set(trace.nodes) - {"_INPUT", "_RETURN"} == {"layers$$$0.weight", "layers$$$0.bias", "inner.location"}
    for name, parameter in outer.named_parameters():
        node = name if name.startswith("inner") else f"layers$$${name.removeprefix('layers.')}"
        assert trace.nodes[node]["value"] is parameter
        assert trace.nodes[node]["value"].unconstrained() is parameter
    assert list(pyro.get_param_store().keys()) == []
    twin = copy.deepcopy(outer)
    assert torch.equal(twin(), outer())
    assert isinstance(pickle.loads(pickle.dumps(twin.inner)), Inner)


def test_values_that_would_be_global_are_refused() -> None:
    module = LocalModule()
    with pytest.raises(ValueError, match=r"'scale' is a PyroParam, whose value would be global; expected a torch.nn"):
        module.scale = PyroParam(torch.tensor(1.0), constraint=dist.constraints.positive)
    with pytest.raises(ValueError, match="'layer' is a PyroLinear, a PyroModule whose parameters would be global"):
        module.layer = PyroModule[nn.Linear](2, 2)

    class LocalLinear(nn.Linear, LocalModule):
        pass

    module.layer = LocalLinear(2, 2)
    assert [name for name, _ in module.named_parameters()] == ["layer.weight", "layer.bias"]
    assert module.layer(torch.ones(2)).shape == (2,)
