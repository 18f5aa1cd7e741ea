"""Cost grows as the work: time and memory of a training step against every size, and the exponent of the growth.

    export OMP_NUM_THREADS=1 THP_MEM_ALLOC_ENABLE=1
    python benchmarks/growth.py --output docs/growth.csv --picture docs/growth.png   # CPU
    python benchmarks/growth.py --device cuda --output growth_gpu.csv

One size grows at a time: sources R, experts M, particles K, episodes B, weights d, blocks L, images of an episode. A
step is posterior, draws, composition, forward, CVaR_ELBO and backward. Seconds are of the processor on a CPU (all
threads; the least of the repeats, since other programs only add) and of the clock on a GPU; memory is the largest that
tensors take at once during the step. The exponent is the slope of log cost against log size over the upper half of a
range. Large tensors are in pages of 2 MiB, as the commands have them (``THP_MEM_ALLOC_ENABLE=1``): the C library gives
every block above 32 MiB back when it is freed, and faulting it in again by 4 KiB costs as much as the work.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
import typer
from torch import nn
from torch.profiler import ProfilerActivity, profile

from pyro_smat import CVaR_ELBO, Episode, EpisodeBatch, ParameterSpace, SourceLibrary, TaskNetwork
from pyro_smat.episodes import Labelled
from pyro_smat.guides import LogisticNormalGuide
from pyro_smat.inference.assembly.router import choose_device
from pyro_smat.models import RoutedModel
from pyro_smat.models.priors import LogisticNormalPrior
from pyro_smat.networks import kept_memory
from pyro_smat.networks.experts import ExpertBank
from pyro_smat.networks.features import SourceFeatures

RANGES: Mapping[str, tuple[int, ...]] = {
    "sources": (2, 4, 8, 16, 32, 64),
    "experts": (1, 2, 4, 8, 16, 32, 64),
    "particles": (1, 2, 4, 8, 16, 32, 64, 128),
    "episodes": (8, 16, 32, 64, 128, 256, 512),
    "width": (62, 125, 250, 500, 1000, 2000),  # no powers of two: rows of these meet in the same places of a cache
    "blocks": (1, 2, 4, 8, 16, 32),
    "images": (1, 2, 4, 8, 16, 32),
}


@dataclass(frozen=True)
class Sizes:
    """What a step works on: R, M, K, B, width and number of layers, L, and shots and queries of a class."""

    sources: int = 4
    experts: int = 4
    particles: int = 2
    episodes: int = 16
    width: int = 128
    layers: int = 3
    blocks: int = 1
    images: int = 4


class Step:
    """One training step of a given size, on layers of ``width`` units."""

    def __init__(self, sizes: Sizes, device: torch.device) -> None:
        torch.manual_seed(0)
        self.device = device
        module = nn.Sequential(nn.Flatten(), nn.Linear(64, sizes.width), nn.ReLU())
        for _ in range(sizes.layers - 1):
            module.extend([nn.Linear(sizes.width, sizes.width), nn.ReLU()])
        linear = [i for i, layer in enumerate(module) if isinstance(layer, nn.Linear)]
        blocks = None
        if sizes.blocks > 1:
            parts = np.array_split(linear, sizes.blocks)
            blocks = {f"block{j}": f"({'|'.join(map(str, part))})\\..*" for j, part in enumerate(parts)}
        space = ParameterSpace.from_module(module, blocks)
        self.dim = space.dim
        basis = torch.randn(sizes.sources, space.dim) / math.sqrt(sizes.width)
        library = SourceLibrary(tuple(f"source{r}" for r in range(sizes.sources)), basis.to(device), space)
        network = TaskNetwork(module, space)
        experts = ExpertBank(space, sizes.experts, sparsity=0.5) if sizes.experts else None
        count = {"num_sources": sizes.sources, "num_experts": sizes.experts, "num_blocks": sizes.blocks}
        self.model = RoutedModel(network, library, prior=LogisticNormalPrior(**count), experts=experts).to(device)
        self.guide = LogisticNormalGuide(**count).to(device)
        batch = EpisodeBatch.collate([_episode(sizes.images) for _ in range(sizes.episodes)]).to(device)
        self.batch = SourceFeatures(network, self.model.source_basis).attach(batch)
        self.elbo = CVaR_ELBO(rho=0.5, num_particles=sizes.particles, vectorize_particles=True, max_plate_nesting=2)

    def __call__(self) -> None:
        """Forward and backward."""
        self.elbo.differentiable_loss(self.model, self.guide, self.batch).backward()
        for parameter in (*self.model.parameters(), *self.guide.parameters()):
            parameter.grad = None

    def seconds(self, repeats: int) -> float:
        """The least of some repeats: processor seconds on a CPU, seconds of the clock elsewhere."""
        clock = time.process_time if self.device.type == "cpu" else time.perf_counter
        self()
        found = []
        for _ in range(repeats):
            self._wait()
            start = clock()
            self()
            self._wait()
            found.append(clock() - start)
        return min(found)

    def memory(self) -> float:
        """MiB that tensors of a step take at most at once, beside what is there before it."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self()
            return (torch.cuda.max_memory_allocated() - before) / 2**20
        everything = patch.object(kept_memory, "LARGE", math.inf)  # in memory that the profiler sees
        with everything, profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
            self()
        changes = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
        steps = [event.nbytes() for event in sorted(changes, key=lambda event: event.start_ns())]
        return max(np.cumsum(steps), default=0) / 2**20

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def exponent(sizes: pd.Series, costs: pd.Series) -> float:
    """Slope of log cost against log size over the upper half of the range.

    Example:
        >>> exponent(pd.Series([1.0, 2.0, 4.0]), pd.Series([5.0, 2.0, 4.0]))
        1.0
    """
    upper = min(len(sizes) // 2, len(sizes) - 2)
    x, y = np.log(sizes.to_numpy(float)[upper:]), np.log(costs.to_numpy(float)[upper:])
    return round(float(np.polyfit(x, y, 1)[0]), 6)


def measure(
    ranges: Mapping[str, tuple[int, ...]], device: torch.device, repeats: int, output: Path | None = None
) -> pd.DataFrame:
    """A row for every size: what grew, its size, d, seconds and MiB; written to ``output`` as they come."""
    rows = []
    for axis, values in ranges.items():
        for value in values:
            sizes = Sizes(blocks=value, layers=max(values)) if axis == "blocks" else Sizes(**{axis: value})
            step = Step(sizes, device)
            size = step.dim if axis == "width" else value
            rows.append({"axis": axis, "size": size, "seconds": step.seconds(repeats), "mebibytes": step.memory()})
            if output is not None:
                pd.DataFrame(rows).to_csv(output, index=False, float_format="%.5g")
            typer.echo(f"{axis:>10} {size:>9} {rows[-1]['seconds']:9.4f} s {rows[-1]['mebibytes']:9.1f} MiB")
    return pd.DataFrame(rows)


def exponents(table: pd.DataFrame) -> pd.DataFrame:
    """A row for every axis: exponents of seconds and memory."""
    found = {
        axis: {cost: exponent(part["size"], part[cost]) for cost in ("seconds", "mebibytes")}
        for axis, part in table.groupby("axis", sort=False)
    }
    return pd.DataFrame(found).T


def draw(table: pd.DataFrame, path: Path) -> None:
    """Costs against sizes, both relative to the first, in logarithms; a dotted line is proportional."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    for panel, cost in zip(figure.subplots(1, 2), ("seconds", "mebibytes"), strict=True):
        for axis, part in table.groupby("axis", sort=False):
            size, value = part["size"].to_numpy(float), part[cost].to_numpy(float)
            panel.loglog(size / size[0], value / value[0], marker=".", label=axis)
        panel.loglog([1, 256], [1, 256], color="grey", linestyle=":")
        panel.set(xlabel="size, relative to the first", ylabel=f"{cost}, likewise")
    figure.axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=80)


def main(
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "cpu",
    output: Annotated[Path | None, typer.Option(help="CSV of all measurements, written as they come.")] = None,
    picture: Annotated[Path | None, typer.Option(help="PNG of the growth.")] = None,
    axis: Annotated[list[str] | None, typer.Option(help="Only these of " + ", ".join(RANGES))] = None,
    largest: Annotated[int | None, typer.Option(help="Leave larger sizes out.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements of every size.")] = 3,
) -> None:
    """Measure a step at every size, and print the exponents."""
    unknown = set(axis or ()) - set(RANGES)
    if unknown:
        raise typer.BadParameter(f"axis is {sorted(unknown)}; expected some of {list(RANGES)}")
    chosen = {
        name: tuple(v for v in values if largest is None or v <= largest or name == "width")
        for name, values in RANGES.items()
        if not axis or name in axis
    }
    table = measure(chosen, choose_device(device), repeats, output)
    if picture is not None:
        draw(table, picture)
    typer.echo(f"\n{exponents(table).to_string(float_format='%.2f')}")


def _episode(images: int, way: int = 3) -> Episode:
    labels = torch.arange(way).repeat_interleave(images)
    return Episode(
        Labelled(torch.randn(len(labels), 1, 8, 8), labels), Labelled(torch.randn(len(labels), 1, 8, 8), labels)
    )


if __name__ == "__main__":
    typer.run(main)
