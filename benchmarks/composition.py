"""What composition costs: T composed networks against one network, and against one task at a time.

    python benchmarks/composition.py                      # the GPU if there is one; small sizes on a CPU
    python benchmarks/composition.py --networks vit_s16 --compile --json runs/composition.json

The same T x N images go through

- **plain**: one network, weights in the compute dtype, T N images in one batch: the floor;
- **ours**: ``compose`` and ``TaskNetwork``, T different networks in one vmapped forward;
- **plain, graph** and **ours, graph** (on a GPU): the whole step of plain in one CUDA graph, and
  ``TaskNetwork(cuda_graphs=True)``;
- **loop**: tasks one after another with ``functional_call`` on rows of the same theta (composed in one product);
- **loop per tensor**: tasks one after another, each composed tensor by tensor and differentiated before the next one
  starts, which is how MAML-like code is usually written.

*forward*: features alone, no gradient, theta given. *step*: theta from coefficients ``(T, 12)`` and a basis of 4 fixed
sources and 8 experts that want a gradient, features, prototype loss, backward to coefficients and experts (for plain:
features, the same loss, backward to the network's parameters). *compose*: theta and its backward alone. Everything
runs in one dtype without autocast, networks in evaluation mode, with PyTorch's default choice of attention kernels.
Times are medians [quartiles] after warm-up; memory is the peak of allocated tensors in a step, basis included (with a
graph, of what is reserved). On a CPU methods take turns, times are processor time of all threads, and ratios medians
of the ratios of neighbours, so that a busy machine changes them little.
"""

from __future__ import annotations

import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from pyro_smat.networks import build_network
from pyro_smat.networks.composition import TaskNetwork, compose
from pyro_smat.networks.heads import prototype_logits
from pyro_smat.networks.parameters import ParameterSpace

SOURCES, EXPERTS, WAYS = 4, 8, 5
VIT_S16 = {"image_size": 96, "patch_size": 16, "num_layers": 12, "num_heads": 6, "hidden_dim": 384, "mlp_dim": 1536}


@dataclass(frozen=True)
class Network:
    """A network to measure: how to build it, the side of its images in pixels, and T x N on a GPU and on a CPU."""

    title: str
    build: Callable[[], nn.Module]
    side: int
    on_gpu: tuple[int, int]
    on_cpu: tuple[int, int]


NETWORKS = {
    "vit_s16": Network("ViT-S/16", lambda: build_network("vit", **VIT_S16), 96, (16, 100), (4, 10)),
    "conv4": Network(
        "Conv-4, 64 channels", lambda: build_network("conv4", in_channels=3, channels=64), 32, (64, 100), (4, 25)
    ),
    "resnet18": Network("ResNet-18", lambda: build_network("resnet18"), 64, (16, 100), (4, 10)),
    "mobilenet_v2": Network("MobileNetV2", lambda: build_network("mobilenet_v2"), 64, (16, 100), (4, 10)),
    "convnext_tiny": Network(
        "ConvNeXt-T", lambda: build_network("torchvision", name="convnext_tiny"), 64, (16, 100), (4, 10)
    ),
}


@dataclass(frozen=True)
class Timing:
    """A row of the table: milliseconds (median and quartiles), ratio to plain, and bytes (None on a CPU)."""

    network: str
    what: str
    method: str
    median: float
    lower: float
    upper: float
    to_plain: float | None
    peak: int | None


class Workload:
    """Inputs of one network and the functions that are timed."""

    def __init__(self, network: Network, tasks: int, images: int, device: torch.device, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        self.tasks, self.images = tasks, images
        self.module = network.build().eval().to(device)
        self.space = ParameterSpace.from_module(self.module)
        row = self.space.flatten(self.module.state_dict())
        self.module.to(dtype)
        self.network: Callable[[Tensor, Tensor], Tensor] = TaskNetwork(self.module, self.space)
        self.graphed: Callable[[Tensor, Tensor], Tensor] = TaskNetwork(self.module, self.space, cuda_graphs=True)
        self.sources = torch.stack([row * (1 + 0.02 * r) for r in range(SOURCES)]).to(dtype)
        deltas = torch.randn(EXPERTS, self.space.dim, device=device) * self.space.trainable().to(device)
        self.experts = (1e-3 * deltas).to(dtype).requires_grad_()
        mixture = torch.randn(tasks, SOURCES, device=device).softmax(-1)
        weights = torch.rand(tasks, EXPERTS, device=device)
        self.coefficients = torch.cat([mixture, weights], -1).requires_grad_()
        self.x = torch.randn(tasks, images, 3, network.side, network.side, device=device).to(dtype)
        self.plain: Callable[[Tensor], Tensor] = self.module
        with torch.no_grad():
            self.theta = self.compose()
            self.theta_gradient = torch.randn_like(self.theta)

    def compile(self) -> None:
        """torch.compile for plain and ours."""
        self.network = TaskNetwork(self.module, self.space, compile=True)
        self.plain = torch.compile(self.module)

    def compose(self) -> Tensor:
        return compose(self.coefficients, (self.sources, self.experts))

    def clear(self) -> None:
        for tensor in (self.coefficients, self.experts, *self.module.parameters()):
            tensor.grad = None

    def loss(self, features: Tensor) -> Tensor:
        """Prototype loss of features ``(T, N, f)``: every second image is a query."""
        labels = torch.arange(features.shape[1], device=features.device) // 2 % WAYS
        support, query = features[:, 0::2], features[:, 1::2]
        shot, target = labels[0::2].expand(support.shape[:2]), labels[1::2].expand(query.shape[:2])
        present = torch.ones(len(features), WAYS, dtype=torch.bool, device=features.device)
        logits = prototype_logits(support, shot, torch.ones_like(shot, dtype=torch.bool), query, present)
        return F.cross_entropy(logits.flatten(0, 1).float(), target.flatten())

    def plain_features(self) -> Tensor:
        return self.plain(self.x.flatten(0, 1)).unflatten(0, (self.tasks, self.images))

    def loop_features(self, theta: Tensor) -> Tensor:
        rows = [self.usable(self.space.unflatten(row)) for row in theta.unbind(0)]
        return torch.stack([functional_call(self.module, row, (x,)) for row, x in zip(rows, self.x, strict=True)])

    def usable(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """BatchNorm of PyTorch refuses running statistics that want a gradient; the loops go without (ours has it)."""
        return {e.name: weights[e.name] if e.trainable else weights[e.name].detach() for e in self.space.entries}

    def plain_step(self) -> None:
        self.loss(self.plain_features()).backward()

    def our_step(self) -> None:
        self.loss(self.network(self.compose(), self.x)).backward()

    def our_graphed_step(self) -> None:
        self.loss(self.graphed(self.compose(), self.x)).backward()

    def plain_graph(self, function: Callable[[], object]) -> Callable[[], object]:
        """A function of plain's, which is recorded in one CUDA graph at its first call, gradients included."""
        found: list[torch.cuda.CUDAGraph] = []

        def replay() -> None:
            if not found:
                side = torch.cuda.Stream()
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):
                    function()
                    self.clear()
                torch.cuda.current_stream().wait_stream(side)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, stream=side):
                    function()
                found.append(graph)
            found[0].replay()

        return replay

    def loop_step(self) -> None:
        self.loss(self.loop_features(self.compose())).backward()

    def loop_per_tensor_step(self) -> None:
        sources, experts = self.space.unflatten(self.sources), self.space.unflatten(self.experts.detach())
        experts = {name: tensor.requires_grad_() for name, tensor in experts.items()}
        for c, x in zip(self.coefficients.to(self.x.dtype), self.x, strict=True):
            w, alpha = c.split((SOURCES, EXPERTS))
            weights = {
                name: torch.tensordot(w, sources[name], 1) + torch.tensordot(alpha, experts[name], 1)
                for name in self.space.names
            }
            features = functional_call(self.module, self.usable(weights), (x,))
            (self.loss(features.unsqueeze(0)) / self.tasks).backward(retain_graph=True)

    def compose_step(self) -> None:
        self.compose().backward(self.theta_gradient)

    def cases(self, graphs: bool, loops: bool) -> dict[tuple[str, str], Callable[[], object]]:
        """(what, method) -> function; what is "forward", "step" or "compose"."""
        found: dict[tuple[str, str], Callable[[], object]] = {
            ("forward", "plain"): self.plain_features,
            ("forward", "ours"): lambda: self.network(self.theta, self.x),
            ("forward", "plain, graph"): self.plain_graph(self.plain_features),
            ("forward", "ours, graph"): lambda: self.graphed(self.theta, self.x),
            ("forward", "loop"): lambda: self.loop_features(self.theta),
            ("step", "plain"): self.plain_step,
            ("step", "ours"): self.our_step,
            ("step", "plain, graph"): self.plain_graph(self.plain_step),
            ("step", "ours, graph"): self.our_graphed_step,
            ("step", "loop"): self.loop_step,
            ("step", "loop per tensor"): self.loop_per_tensor_step,
            ("compose", "ours"): self.compose_step,
        }
        return {k: f for k, f in found.items() if (graphs or "graph" not in k[1]) and (loops or "loop" not in k[1])}


def measure(work: Workload, name: str, repeats: int, device: torch.device, loops: bool) -> list[Timing]:
    """All cases of one network; loops, which take long, are repeated a third as often."""
    cases = work.cases(device.type == "cuda", loops)
    timings: list[Timing] = []
    for what in ("forward", "step", "compose"):
        methods = {method: function for (kind, method), function in cases.items() if kind == what}
        with torch.set_grad_enabled(what != "forward"):
            if device.type == "cuda":
                times = {
                    m: _on_gpu(work, f, max(3, repeats // 3) if "loop" in m else repeats) for m, f in methods.items()
                }
            else:
                times = _in_turns(work, methods, repeats)
        for method, (measured, peak) in times.items():
            lower, median, upper = statistics.quantiles(measured, n=4, method="inclusive")
            ratios = [a / b for a, b in zip(measured, times["plain"][0], strict=False)] if "plain" in times else []
            if device.type == "cuda" and ratios:
                ratios = [median / statistics.median(times["plain"][0])]
            ratio = statistics.median(ratios) if ratios else None
            timings.append(Timing(name, what, method, median, lower, upper, ratio, peak))
            print(f"  {name} {what}, {method}: {median:.1f} ms", file=sys.stderr, flush=True)
    work.clear()
    return timings


def _on_gpu(work: Workload, function: Callable[[], object], count: int) -> tuple[list[float], int]:
    """Milliseconds of each call after three to warm up, and the peak of memory in bytes."""
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    times = []
    for i in range(count + 3):
        work.clear()
        if i == 3:
            torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return times[3:], max(torch.cuda.max_memory_allocated(), torch.cuda.memory_reserved() - before)


def _in_turns(
    work: Workload, methods: dict[str, Callable[[], object]], count: int
) -> dict[str, tuple[list[float], None]]:
    """Milliseconds of processor time of each call, after one to warm up."""
    times: dict[str, tuple[list[float], None]] = {method: ([], None) for method in methods}
    for i in range(count + 1):
        for method, function in methods.items():
            gc.collect()
            work.clear()
            start = time.process_time()
            function()
            if i:
                times[method][0].append(1e3 * (time.process_time() - start))
    return times


def table(timings: list[Timing]) -> str:
    """Markdown: a row for every network, method and kind of work; ratios are to plain, and of the loops to ours."""
    lines = [
        "| network | what | method | ms, median [quartiles] | x plain | x ours | peak GiB |",
        "|---|---|---|---|---|---|---|",
    ]
    cells = {(t.network, t.what, t.method): t.median for t in timings}
    for t in timings:
        ours = cells[t.network, t.what, "ours"]
        to_plain = f"{t.to_plain:.2f}" if t.to_plain and t.method != "plain" else ""
        to_ours = f"{t.median / ours:.1f}" if "loop" in t.method else ""
        peak = "" if t.peak is None else f"{t.peak / 2**30:.2f}"
        time_ = f"{t.median:.1f} [{t.lower:.1f}, {t.upper:.1f}]"
        lines.append(f"| {t.network} | {t.what} | {t.method} | {time_} | {to_plain} | {to_ours} | {peak} |")
    return "\n".join(lines)


def main(
    networks: Annotated[str, typer.Option(help=f"Comma-separated, of {', '.join(NETWORKS)}.")] = ",".join(NETWORKS),
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto (bfloat16 on cuda, float32 on cpu), float32 or bfloat16.")] = "auto",
    tasks: Annotated[int | None, typer.Option(min=1, help="T, instead of each network's own.")] = None,
    images: Annotated[int | None, typer.Option(min=10, help="N, images of a task.")] = None,
    repeats: Annotated[int | None, typer.Option(min=3, help="Timed runs of a case: 20 on cuda, 3 on cpu.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="of a CPU.")] = None,
    loops: Annotated[bool, typer.Option(help="Also one task after the other.")] = True,
    compile: Annotated[bool, typer.Option(help="torch.compile plain and ours; no cuDNN attention.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the timings here, as they come.")] = None,
) -> None:
    """Print the table."""
    names = networks.split(",")
    if unknown := sorted(set(names) - set(NETWORKS)):
        raise typer.BadParameter(f"unknown networks {unknown}; expected some of {list(NETWORKS)}")
    if device not in ("auto", "cpu", "cuda") or dtype not in ("auto", "float32", "bfloat16"):
        raise typer.BadParameter(f"device {device!r} or dtype {dtype!r} is none of those that --help lists")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    on_gpu = device == "cuda"
    where = torch.device(device)
    dtype = ("bfloat16" if on_gpu else "float32") if dtype == "auto" else dtype
    if threads is not None:
        torch.set_num_threads(threads)
    if compile and on_gpu:
        torch.backends.cuda.enable_cudnn_sdp(False)

    facts = {
        "command": " ".join(["python", "benchmarks/composition.py", *sys.argv[1:]]),
        "processor": torch.cuda.get_device_name() if on_gpu else f"{_cpu()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "dtype": dtype,
        "compiled": compile,
    }
    print("\n".join(f"{key}: {value}" for key, value in facts.items()), end="\n\n", flush=True)
    timings: list[Timing] = []
    for name in names:
        network = NETWORKS[name]
        own = network.on_gpu if on_gpu else network.on_cpu
        work = Workload(network, tasks or own[0], images or own[1], where, getattr(torch, dtype))
        if compile:
            work.compile()
        title = f"{network.title}, {work.space.dim / 1e6:.2f} M, {work.tasks} x {work.images}, {network.side} px"
        measured = measure(work, title, repeats or (20 if on_gpu else 3), where, loops)
        print(table(measured), end="\n\n", flush=True)
        timings += measured
        del work
        if json_file is not None:
            json_file.parent.mkdir(parents=True, exist_ok=True)
            json_file.write_text(json.dumps({**facts, "timings": [asdict(t) for t in timings]}, indent=2))


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    typer.run(main)
