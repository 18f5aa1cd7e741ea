"""Networks of all kinds in a TaskNetwork: PyTorch's own answers and gradients, in one thread and in eight."""

from __future__ import annotations

import copy
import pickle
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from odd_networks import NETWORKS, ONE_BY_ONE, made
from other_process import run_python
from torch import Tensor, nn

from pyro_smat.networks.composition import TaskNetwork
from pyro_smat.networks.parameters import ParameterSpace

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # weight norm has no rule


def world(name: str) -> tuple[list[nn.Module], TaskNetwork, Tensor, Tensor]:
    modules = [made(name, seed) for seed in range(3)]
    space = ParameterSpace.from_module(modules[0])
    basis = torch.stack([space.flatten({k: v for k, v in m.state_dict().items() if k in space.names}) for m in modules])
    for module in modules[1:]:  # what no space holds is the template's
        for key, buffer in module.named_buffers():
            if key not in space.names:
                buffer.data = dict(modules[0].named_buffers())[key].clone()
    return modules, TaskNetwork(modules[0], space), basis, NETWORKS[name][1]


def alone(module: nn.Module, x: Tensor) -> Tensor:
    return copy.deepcopy(module)(x)  # some count their calls


@pytest.mark.parametrize("name", NETWORKS)
def test_answers_and_gradients_are_those_of_the_modules_themselves(name: str) -> None:
    modules, network, basis, x = world(name)
    expected = torch.stack([alone(module, x) for module in modules]).detach()
    many = x.expand(3, *x.shape)
    with torch.no_grad():
        torch.testing.assert_close(network(basis, many), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(network.shared(basis, x), expected, rtol=1e-4, atol=1e-5)
        for row, own in zip(basis, expected, strict=True):
            torch.testing.assert_close(network(row, x), own, rtol=1e-5, atol=1e-6)
    together, single = basis.clone().requires_grad_(), basis.clone().requires_grad_()
    probe = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    (network(together, many) * probe).sum().backward()
    torch.stack([(network(row, x) * own).sum() for row, own in zip(single, probe, strict=True)]).sum().backward()
    assert together.grad is not None
    assert single.grad is not None
    torch.testing.assert_close(together.grad, single.grad, rtol=1e-3, atol=1e-4 * float(single.grad.abs().max()))
    at, weights = 0, dict(modules[1].named_parameters())
    (alone_parameters := copy.deepcopy(modules[1])).zero_grad()
    (alone_parameters(x) * probe[1]).sum().backward()
    for entry in network.space.entries:
        if entry.name in weights:
            own_gradient = dict(alone_parameters.named_parameters())[entry.name].grad
            found = together.grad[1, at : at + entry.numel].view(entry.shape)
            torch.testing.assert_close(found, own_gradient, rtol=1e-3, atol=1e-4 * float(single.grad.abs().max()))
        at += entry.numel
    assert (network.one_at_a_time is not None) == (name in ONE_BY_ONE)


def test_eight_threads_give_the_serial_answers_bit_for_bit() -> None:
    worlds = {name: world(name) for name in NETWORKS}
    jobs = [(name, kind) for name in worlds for kind in ("one", "many", "shared", "gradient")]

    def answer(job: tuple[str, str]) -> Tensor:
        name, kind = job
        _, network, basis, x = worlds[name]
        if kind == "gradient":
            theta = basis.clone().requires_grad_()
            network(theta, x.expand(3, *x.shape)).square().sum().backward()
            assert theta.grad is not None
            return theta.grad
        with torch.no_grad():
            if kind == "one":
                return network(basis[1], x)
            return network(basis, x.expand(3, *x.shape)) if kind == "many" else network.shared(basis, x)

    serial = {job: answer(job) for job in jobs}
    again = [*jobs, *reversed(jobs), *jobs[::2], *jobs[1::2]]
    with ThreadPoolExecutor(8) as pool:
        for job, found in zip(again, pool.map(answer, again), strict=True):
            assert torch.equal(found, serial[job]), job


def test_threads_on_one_fresh_network_mix_nothing() -> None:
    """All first calls at once: every thread has its own weights, images and numbers of tasks."""
    modules, network, basis, x = world("batch norm")
    expected = [
        TaskNetwork(modules[0], network.space)(basis[: 1 + i % 3], x.expand(1 + i % 3, *x.shape) + i) for i in range(64)
    ]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: network(basis[: 1 + i % 3], x.expand(1 + i % 3, *x.shape) + i), range(64)))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_call_leaves_nothing_for_the_next_one() -> None:
    _, network, basis, x = world("cache on first call")
    many = x.expand(3, *x.shape)
    with torch.inference_mode():
        first = network(basis, many).clone()
    theta = basis.clone().requires_grad_()
    assert torch.equal(network(theta, many), first)
    network(theta, many).sum().backward()
    assert torch.equal(network(basis, many), first)


@pytest.mark.parametrize("name", ["batch norm", "vision transformer", "lstm", "constants", "weight norm"])
def test_networks_that_are_built_or_run_in_inference_mode(name: str) -> None:
    modules, network, basis, x = world(name)
    expected = network(basis, x.expand(3, *x.shape)).detach()
    with torch.inference_mode():
        built_inside = TaskNetwork(modules[0], network.space)
        torch.testing.assert_close(network(basis, x.expand(3, *x.shape)), expected)  # an LSTM has another kernel
        torch.testing.assert_close(built_inside(basis, x.expand(3, *x.shape)), expected)
    theta = basis.clone().requires_grad_()
    built_inside(theta, x.expand(3, *x.shape)).sum().backward()
    assert theta.grad is not None


@pytest.mark.parametrize("name", ["batch norm", "vision transformer", "lstm", "causal attention", "mobilenet"])
def test_default_dtype_is_not_the_dtype_of_the_network(name: str) -> None:
    modules, network, basis, x = world(name)
    many = x.expand(3, *x.shape)
    expected = network(basis, many)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        for other in (network, TaskNetwork(modules[0], network.space)):
            found = other(basis, many)
            assert found.dtype == torch.float32
            assert torch.equal(found, expected)
            assert other(basis.double(), many).dtype == torch.float64
    finally:
        torch.set_default_dtype(default)


def test_a_forked_process_goes_on_whatever_threads_were_doing() -> None:
    code = """
    import os, signal, sys, threading
    import torch
    from odd_networks import made
    from pyro_smat.networks.composition import TaskNetwork
    from pyro_smat.networks.parameters import ParameterSpace

    torch.set_num_threads(1)
    module = made("batch norm")
    space = ParameterSpace.from_module(module)
    network, theta = TaskNetwork(module, space), space.flatten(module.state_dict()).expand(3, -1)
    x = torch.ones(3, 2, 4, 8, 8)
    expected, over = network(theta, x), threading.Event()

    def work():
        while not over.is_set():
            network(theta, x)

    threads = [threading.Thread(target=work) for _ in range(4)]
    [thread.start() for thread in threads]
    codes = []
    for _ in range(3):
        if not (child := os.fork()):
            signal.alarm(20)
            os._exit(0 if torch.equal(network(theta, x), expected) else 1)
        codes.append(os.waitpid(child, 0)[1])
    over.set()
    [thread.join() for thread in threads]
    sys.exit(any(codes))
    """
    run_python("-W", "ignore", "-c", f"import sys; sys.path[:] = {sys.path!r}\n" + textwrap.dedent(code))


def test_copies_and_pickles_run_alike() -> None:
    _, network, basis, x = world("batch norm")
    twin, again = copy.deepcopy(network), pickle.loads(pickle.dumps(network))
    expected = network(basis, x.expand(3, *x.shape))
    assert torch.equal(twin(basis, x.expand(3, *x.shape)), expected)
    assert torch.equal(again(basis, x.expand(3, *x.shape)), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_gradient_that_nearly_cancels_is_right_to_the_digits_of_its_loss(dtype: torch.dtype) -> None:
    """What leaves a group norm without weights has a square sum that hardly depends on the routing: terms as large as
    the loss, 3840, cancel to a gradient of .08. PyTorch's own float32 is off by as much."""
    torch.manual_seed(0)
    modules = [nn.Sequential(nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4, affine=False)) for _ in range(3)]
    space = ParameterSpace.from_module(modules[0])
    basis = torch.stack([space.flatten(module.state_dict()) for module in modules]).double()
    x, routing = torch.randn(5, 4, 8, 8), torch.randn(3, 3).softmax(-1)

    def alone(row: Tensor) -> Tensor:
        return torch.func.functional_call(modules[0].double(), space.unflatten(row @ basis), x.double())

    true = routing.double().requires_grad_()
    torch.stack([alone(row).square().sum() for row in true]).sum().backward()
    network = TaskNetwork(modules[0].to(dtype), space)
    together, single = (routing.to(dtype, copy=True).requires_grad_() for _ in range(2))
    loss = network(together @ basis.to(dtype), x.to(dtype).expand(3, *x.shape)).square().sum()
    loss.backward()
    torch.stack([network(row @ basis.to(dtype), x.to(dtype)).square().sum() for row in single]).sum().backward()
    assert true.grad is not None
    assert 1e-3 < true.grad.abs().max() < 1
    assert loss.item() == pytest.approx(3840, rel=1e-3)
    for found in (together.grad, single.grad):
        assert found is not None
        torch.testing.assert_close(found.double(), true.grad, rtol=0, atol=4 * torch.finfo(dtype).eps * loss.item())


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_the_old_weight_norm_which_python_cannot_copy() -> None:
    module = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 3)))
    space = ParameterSpace.from_module(module)
    assert set(space.names) == {"0.bias", "0.weight_g", "0.weight_v"}
    theta = torch.randn(2, space.dim)
    x = torch.randn(2, 5, 4)
    found = TaskNetwork(module, space)(theta, x)
    for row, images, answer in zip(theta, x, found, strict=True):
        parts = space.unflatten(row)
        v = parts["0.weight_v"]
        weight = parts["0.weight_g"] * v / v.norm(dim=1, keepdim=True)
        torch.testing.assert_close(answer, images @ weight.T + parts["0.bias"], rtol=1e-5, atol=1e-5)
