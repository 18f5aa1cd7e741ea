"""CUDA graphs: who may use a recording when (anywhere, with one that only remembers), and the graphs themselves."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from pyro_smat.networks import build_network
from pyro_smat.networks.composition import TaskNetwork
from pyro_smat.networks.cuda_graphs import LARGEST_NUMBER, CudaGraphs
from pyro_smat.networks.parameters import ParameterSpace

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def run(theta: Tensor, x: Tensor) -> Tensor:
    return (theta.unsqueeze(1) * x).sin()


class Remembered:
    """Like a recording it holds what its last forward pass left, and loses that at the next one."""

    made = 0

    def __init__(self, run: Callable[[Tensor, Tensor], Tensor], theta: Tensor, x: Tensor) -> None:
        type(self).made += 1
        self._run = run

    def forward(self, theta: Tensor, x: Tensor) -> Tensor:
        with torch.enable_grad():
            self._theta = theta.detach().requires_grad_()
            self._out = self._run(self._theta, x)
        return self._out.detach().clone()

    def backward(self, gradient: Tensor) -> Tensor:
        return torch.autograd.grad(self._out, self._theta, gradient, retain_graph=True)[0]


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> CudaGraphs:
    monkeypatch.setattr(Remembered, "made", 0)
    return CudaGraphs(Remembered, "cpu")


def inputs(seed: int, tasks: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tasks, 3, generator=generator).requires_grad_(), torch.randn(tasks, 4, 3, generator=generator)


def expected_gradient(theta: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(run(theta, x).square().sum(), theta)[0]


def test_one_recording_serves_a_training_loop(graphs: CudaGraphs) -> None:
    for seed in range(5):
        theta, x = inputs(seed)
        out = graphs(run, theta, x)
        torch.testing.assert_close(out, run(theta, x))
        (gradient,) = torch.autograd.grad(out.square().sum(), theta)
        torch.testing.assert_close(gradient, expected_gradient(theta, x))
        with torch.no_grad():
            torch.testing.assert_close(graphs(run, theta, x), run(theta, x))
    assert Remembered.made == 2  # with a gradient and without
    assert not graphs.fallbacks


def test_forward_passes_that_wait_for_their_backward_pass_have_recordings_of_their_own(graphs: CudaGraphs) -> None:
    graphs(run, *inputs(0))
    cases = [inputs(seed) for seed in range(3)]
    outs = [graphs(run, theta, x) for theta, x in cases]
    for (theta, x), out in reversed(list(zip(cases, outs, strict=True))):
        (gradient,) = torch.autograd.grad(out.square().sum(), theta)
        torch.testing.assert_close(gradient, expected_gradient(theta, x))
    assert Remembered.made == 3


def test_the_second_backward_pass_of_a_forward_pass_is_right_or_refused(graphs: CudaGraphs) -> None:
    graphs(run, *inputs(0))
    theta, x = inputs(1)
    out = graphs(run, theta, x)
    for _ in range(3):
        (gradient,) = torch.autograd.grad(out.square().sum(), theta, retain_graph=True)
        torch.testing.assert_close(gradient, expected_gradient(theta, x))
    graphs(run, *inputs(2)).sum().backward()  # takes the same recording
    assert Remembered.made == 1
    with pytest.raises(RuntimeError, match="after another forward pass has taken its memory"):
        torch.autograd.grad(out.square().sum(), theta)


def test_a_forward_pass_without_backward_pass_gives_its_recording_back(graphs: CudaGraphs) -> None:
    for seed in range(6):
        out = graphs(run, *inputs(seed))
        del out
        gc.collect()
    assert Remembered.made == 1


def test_too_many_waiting_forward_passes_run_without_a_graph(graphs: CudaGraphs) -> None:
    graphs(run, *inputs(0))
    cases = [inputs(seed) for seed in range(LARGEST_NUMBER + 2)]
    outs = [graphs(run, theta, x) for theta, x in cases]
    assert graphs.fallbacks == {f"{LARGEST_NUMBER} forward passes wait for their backward pass": 2}
    for (theta, x), out in zip(cases, outs, strict=True):
        (gradient,) = torch.autograd.grad(out.square().sum(), theta)
        torch.testing.assert_close(gradient, expected_gradient(theta, x))


def test_the_shape_that_was_used_longest_ago_makes_room(graphs: CudaGraphs) -> None:
    def twice(tasks: int) -> None:
        for _ in range(2):
            graphs(run, *inputs(0, tasks)).sum().backward()

    for tasks in range(1, LARGEST_NUMBER + 1):
        twice(tasks)
    twice(1)
    twice(LARGEST_NUMBER + 1)  # in place of two tasks
    assert Remembered.made == LARGEST_NUMBER + 1
    twice(1)
    assert Remembered.made == LARGEST_NUMBER + 1
    twice(2)
    assert Remembered.made == LARGEST_NUMBER + 2
    assert not graphs.fallbacks


def test_what_cannot_be_recorded_is_tried_once_and_runs_as_ever(caplog: pytest.LogCaptureFixture) -> None:
    tried = []

    def record(run: object, theta: Tensor, x: Tensor) -> None:
        tried.append(theta)
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

    graphs = CudaGraphs(record, "cpu")
    for _ in range(4):
        torch.testing.assert_close(graphs(run, *inputs(0)), run(*inputs(0)))
    reason = "recording (2, 3) x (2, 4, 3) failed: CUDA error: operation not permitted when stream is capturing"
    assert graphs.fallbacks == {reason: 3}
    assert len(tried) == 1
    assert caplog.text.count(reason) == 1


def test_calls_that_no_graph_can_serve_run_as_ever_and_say_why(graphs: CudaGraphs) -> None:
    theta, x = inputs(0)
    graphs(run, theta, x)
    expected = run(theta, x)

    def batched() -> Tensor:
        return vmap(lambda t: graphs(run, t, x))(theta.unsqueeze(0)).squeeze(0)

    def counted() -> Tensor:
        with FlopCounterMode(display=False):
            return graphs(run, theta, x)

    def cast() -> Tensor:
        with torch.autocast("cpu"):
            return graphs(run, theta, x)

    calls: dict[str, Callable[[], Tensor]] = {
        "inside a transform of torch.func": batched,
        "the images want a gradient": lambda: graphs(run, theta, x.clone().requires_grad_()),
        "inside a checkpoint": lambda: checkpoint(lambda t: graphs(run, t, x), theta, use_reentrant=False),
        "a TorchDispatchMode is active": counted,
        "inside autocast": cast,
    }
    for seen, (reason, call) in enumerate(calls.items()):
        torch.testing.assert_close(call(), expected)
        assert len(graphs.fallbacks) == seen + 1
        assert reason in list(graphs.fallbacks)[-1]
    elsewhere = CudaGraphs(Remembered)
    torch.testing.assert_close(elsewhere(run, theta, x), expected)
    assert list(elsewhere.fallbacks) == ["theta is on cpu; expected a CUDA device"]


def test_threads_share_recordings_one_forward_pass_at_a_time(graphs: CudaGraphs) -> None:
    def gradient(seed: int) -> Tensor:
        theta, x = inputs(seed)
        return torch.autograd.grad(graphs(run, theta, x).square().sum(), theta)[0]

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(gradient, range(60)))
    for seed, ours in enumerate(found):
        torch.testing.assert_close(ours, expected_gradient(*inputs(seed)))
    assert Remembered.made <= 6
    assert not graphs.fallbacks


def test_a_task_network_uses_them_when_told_to_and_copies_start_without(graphs: CudaGraphs) -> None:
    module = nn.Linear(3, 2)
    space = ParameterSpace.from_module(module)
    network = TaskNetwork(module, space, cuda_graphs=True)
    network.graphs = graphs
    theta = torch.randn(3, space.dim, requires_grad=True)
    x = torch.randn(5, 3).expand(3, 5, 3)
    plain = TaskNetwork(module, space)
    for _ in range(3):
        for ours, theirs in ((network(theta, x), plain(theta, x)), (network.shared(theta, x[0]), plain(theta, x))):
            torch.testing.assert_close(ours, theirs)
            gradients = [torch.autograd.grad(out.square().sum(), theta)[0] for out in (ours, theirs)]
            torch.testing.assert_close(*gradients)
    assert Remembered.made == 2  # images of their own, and shared ones
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert other.cuda_graphs
        torch.testing.assert_close(other(theta, x), plain(theta, x))
        assert other.graphs is not graphs
    network.cuda_graphs = False
    network(theta, x)
    network(theta, x)
    assert Remembered.made == 2


@pytest.fixture(autouse=True)
def _whole_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def gpu_network(name: str) -> tuple[TaskNetwork, Tensor, tuple[int, int, int]]:
    torch.manual_seed(0)
    options: dict[str, dict] = {
        "vit": {"image_size": 16, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 48},
        "mobilenet_v2": {"width_mult": 0.35},
        "conv4": {"in_channels": 3, "channels": 16},
        "torchvision": {"name": "convnext_tiny"},
    }
    module = build_network(name, **options.get(name, {})).cuda().eval()
    space = ParameterSpace.from_module(module)
    noise = 1 + 0.1 * torch.rand(4, space.dim, generator=torch.Generator().manual_seed(1)).cuda()
    theta = space.flatten(module.state_dict()) * noise
    return TaskNetwork(module, space, cuda_graphs=True), theta, (3, 32, 32) if name != "vit" else (3, 16, 16)


@on_a_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "conv4", "vit", "torchvision"])
def test_graphs_give_the_answers_and_gradients_of_calls_without(name: str, dtype: torch.dtype) -> None:
    network, theta, shape = gpu_network(name)
    plain = copy.deepcopy(network)
    plain.cuda_graphs = False
    eps = 50 * torch.finfo(torch.bfloat16).eps if dtype == torch.bfloat16 else 1e-4
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        leaf = (theta * (1 + 0.01 * torch.rand(4, 1, generator=generator).cuda())).to(dtype).requires_grad_()
        x = torch.randn(4, 6, *shape, generator=generator).cuda()
        results = []
        for each in (network, plain):
            out = each(leaf, x)
            with torch.no_grad():
                answer, shared = each(leaf, x), each.shared(leaf, x[0])
            results.append((out, answer, shared, *torch.autograd.grad(out.float().square().sum(), leaf)))
        for ours, theirs in zip(*results, strict=True):
            assert torch.isfinite(theirs).all()
            assert (ours - theirs).float().norm() <= eps * theirs.float().norm()
    assert not network.graphs.fallbacks
    assert len(network.graphs._shelves) == 3


@on_a_gpu
def test_a_network_that_copies_from_the_cpu_runs_without_a_graph_and_others_go_on() -> None:
    class Copies(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) + torch.tensor([1.0, 2.0]).to(x.device)

    module = Copies().cuda()
    space = ParameterSpace.from_module(module)
    network = TaskNetwork(module, space, cuda_graphs=True)
    theta, x = torch.randn(4, space.dim).cuda().requires_grad_(), torch.randn(4, 5, 3).cuda()
    expected = TaskNetwork(module, space)(theta, x)
    for _ in range(4):
        out = network(theta, x)
        torch.testing.assert_close(out, expected)
        out.sum().backward()
    assert list(network.graphs.fallbacks.values()) == [3]
    assert network.one_at_a_time is None
    test_graphs_give_the_answers_and_gradients_of_calls_without("conv4", torch.float32)


@on_a_gpu
def test_threads_on_streams_of_their_own() -> None:
    network, theta, shape = gpu_network("conv4")
    plain = copy.deepcopy(network)
    plain.cuda_graphs = False

    def gradient(each: TaskNetwork, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        with torch.cuda.stream(torch.cuda.Stream()):
            leaf = (theta * (1 + 0.01 * torch.rand(4, 1, generator=generator).cuda())).requires_grad_()
            x = torch.randn(4, 6, *shape, generator=generator).cuda()
            (found,) = torch.autograd.grad(each(leaf, x).square().sum(), leaf)
            torch.cuda.current_stream().synchronize()
        return found

    expected = [gradient(plain, seed) for seed in range(24)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda seed: gradient(network, seed), range(24)))
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm()


@on_a_gpu
def test_a_recording_of_inference_mode_serves_other_calls_without_gradient() -> None:
    network, theta, shape = gpu_network("vit")
    x = torch.randn(6, *shape).cuda()
    with torch.inference_mode():
        first = [network.shared(theta, x).clone() for _ in range(3)]
    with torch.no_grad():
        again = [network.shared(theta, x) for _ in range(2)]
    for other in (*first[1:], *again):
        torch.testing.assert_close(other, first[0], rtol=1e-4, atol=1e-4)
    assert not network.graphs.fallbacks
