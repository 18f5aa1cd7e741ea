"""Calibration: prices in milliseconds, measured where the networks will run, and in bytes; kept as JSON.

Module, sources and images -> :class:`Calibration`, whose cost models the enforcement takes.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, TypeAdapter, model_validator
from torch import Tensor, nn

from pyro_smat.cost.active import compose_active
from pyro_smat.cost.model import CostModel
from pyro_smat.cost.timing import Line, fit_line, median_times
from pyro_smat.files import plain, read_record, write_record
from pyro_smat.networks.composition import TaskNetwork
from pyro_smat.networks.parameters import ParameterSpace

FORMAT = 2  # format 1 had no digest


@dataclass(frozen=True)
class BlockTimes:
    """What composing one block took.

    Attributes:
        name: of the block.
        coordinates: its size.
        sources: the line through milliseconds against the number of active sources, 1 to R.
        residual: milliseconds that one dense residual row adds, mean over the numbers of sources.
        residual_error: standard error of that mean; NaN for R = 1.
    """

    name: str
    coordinates: int
    sources: Line
    residual: float
    residual_error: float


@dataclass(frozen=True)
class Machine:
    """Where prices were measured: they hold there only."""

    processor: str
    device: str
    torch: str
    threads: int


@dataclass(frozen=True)
class Calibration:
    """Measured prices.

    Attributes:
        latency: in ms. A block's price of mixing is the slope of its line; its residual price what a dense row adds,
            so the price of an entry is 0; ``fixed`` is the forward pass and the intercepts. Negative slopes (noise)
            count as 0.
        traffic: in bytes of source and expert rows that composing reads.
        blocks: the measurements behind ``latency``.
        forward: milliseconds of one network on ``images`` images.
        images: how many.
        machine: where.
    """

    latency: CostModel
    traffic: CostModel
    blocks: tuple[BlockTimes, ...]
    forward: float
    images: int
    machine: Machine

    def save(self, path: str | Path) -> Path:
        """Write JSON; returns the path.

        Raises:
            ValueError: when it cannot be written.
        """
        path = Path(path)
        write_record(path, plain({"format": FORMAT, **asdict(self)}))
        return path

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: for a missing, damaged, foreign or incomplete file.
        """
        where, writer = Path(path), "Calibration.save"
        return read_record(where, _saved(), format=FORMAT, writer=writer, undigested=1).restored()

    def __str__(self) -> str:
        width = max(6, *(len(block.name) for block in self.blocks))
        lines = [
            f"{'block':<{width}}  {'coordinates':>11}  {'us a source':>11}  {'R^2':>5}  {'rms us':>7}  "
            f"{'us a residual':>16}  {'KB a row':>9}  {'GB/s':>6}"
        ]
        for block, size in zip(self.blocks, self.traffic.mix, strict=True):
            line = block.sources
            rate = f"{1e-6 * size / line.slope:.2f}" if line.slope > 0 else "-"
            residual = f"{1e3 * block.residual:.2f} +- {1e3 * block.residual_error:.2f}"
            lines.append(
                f"{block.name:<{width}}  {block.coordinates:>11,}  {1e3 * line.slope:>11.2f}  {line.r_squared:>5.2f}  "
                f"{1e3 * line.error:>7.2f}  {residual:>16}  {1e-3 * size:>9.1f}  {rate:>6}"
            )
        where = self.machine
        share = 100 * sum(self.latency.mix) / self.latency.fixed if self.latency.fixed else math.inf
        lines += [
            f"fixed {self.latency.fixed:.3f} ms, of which the forward pass of {self.images} images "
            f"{self.forward:.3f} ms",
            f"one more source in every block: {sum(self.latency.mix):.4f} ms, {share:.2f}% of that",
            f"{where.processor}, {where.device}, {where.threads} thread(s), torch {where.torch}",
        ]
        return "\n".join(lines)


@torch.no_grad()
def calibrate(
    module: nn.Module,
    space: ParameterSpace,
    basis: Tensor,
    images: Tensor,
    *,
    device: torch.device | str = "cpu",
    repeats: int = 30,
) -> Calibration:
    """Measure prices: composing every block with 1 to R active sources, a residual row, and the forward pass.

    Composing is that of :func:`~pyro_smat.cost.compose_active`, over and over on the same rows: where these fit into
    the processor's cache, they are read from there.

    Args:
        module: the network.
        space: its parameter space.
        basis: ``(R, d)``, the sources alone; a residual is timed on a stand-in row.
        images: ``(n, C, H, W)``, as many as a task has, supports and queries.
        device: where to measure.
        repeats: measurements of each time, of which the median counts.

    Raises:
        ValueError: for a basis of another space, or images that are not four-dimensional.
    """
    if basis.ndim != 2 or basis.shape[1] != space.dim or not len(basis):
        raise ValueError(f"basis has shape {tuple(basis.shape)}; expected (R, {space.dim}), at least one source")
    if images.ndim != 4 or not len(images):
        raise ValueError(f"images have shape {tuple(images.shape)}; expected (n, C, H, W), n > 0")
    device = torch.device(device)
    basis, images = basis.detach().to(device), images.to(device, basis.dtype)
    blocks = tuple(
        _time_block(name, columns, device, repeats)
        for name, columns in zip(space.block_names, basis.split(space.block_sizes, dim=-1), strict=True)
    )
    network = TaskNetwork(module.to(device), space)
    forward = median_times([partial(network, basis[0], images)], device, repeats)[0]
    latency = CostModel(
        mix=tuple(max(0.0, block.sources.slope) for block in blocks),
        residual=tuple(max(0.0, block.residual) for block in blocks),
        fixed=forward + max(0.0, sum(block.sources.intercept for block in blocks)),
        unit="ms",
    )
    return Calibration(
        latency, CostModel.of_bytes(space, basis.dtype), blocks, forward, len(images), _machine_of(device)
    )


def _time_block(name: str, columns: Tensor, device: torch.device, repeats: int) -> BlockTimes:
    sources = len(columns)
    rows = torch.cat([columns, columns[:1]])
    calls: list[Callable[[], object]] = []
    for count in range(1, sources + 1):
        for residual in (0.0, 1.0):
            coefficients = torch.zeros(sources + 1, device=device)
            coefficients[:count], coefficients[-1] = 1.0 / count, residual
            calls.append(partial(compose_active, coefficients, rows))
    times = np.array(median_times(calls, device, repeats)).reshape(sources, 2)
    added = times[:, 1] - times[:, 0]
    error = float(added.std(ddof=1) / math.sqrt(sources)) if sources > 1 else math.nan
    line = fit_line(list(range(1, sources + 1)), times[:, 0].tolist())
    return BlockTimes(name, columns.shape[1], line, float(added.mean()), error)


def _machine_of(device: torch.device) -> Machine:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    processor = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return Machine(processor or platform.machine(), where, torch.__version__, torch.get_num_threads())


class _Line(BaseModel):
    """JSON has no NaN: an error or a fit that is not known is null."""

    model_config = ConfigDict(extra="forbid")

    slope: float
    intercept: float
    r_squared: float | None
    error: float | None


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    coordinates: int
    sources: _Line
    residual: float
    residual_error: float | None

    def restored(self) -> BlockTimes:
        line = Line(*(math.nan if value is None else value for value in self.sources.model_dump().values()))
        error = math.nan if self.residual_error is None else self.residual_error
        return BlockTimes(self.name, self.coordinates, line, self.residual, error)


class _Saved(BaseModel):
    model_config = ConfigDict(extra="forbid")

    latency: CostModel
    traffic: CostModel
    blocks: tuple[_Block, ...]
    forward: float
    images: int
    machine: Machine

    @model_validator(mode="after")
    def _one_of_each(self) -> _Saved:
        if not len(self.blocks) == len(self.latency.mix) == len(self.traffic.mix):
            raise ValueError(f"blocks are {len(self.blocks)}; expected one for each of {len(self.latency.mix)} prices")
        return self

    def restored(self) -> Calibration:
        blocks = tuple(block.restored() for block in self.blocks)
        return Calibration(self.latency, self.traffic, blocks, self.forward, self.images, self.machine)


@cache
def _saved() -> TypeAdapter[_Saved]:
    return TypeAdapter(_Saved)
