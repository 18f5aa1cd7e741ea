"""Calibration: prices in milliseconds, measured where the networks will run, and in bytes; kept as JSON.

Module, sources and images -> :class:`Calibration`, whose cost models the enforcement takes.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_smat.cost.active import compose_active
from pyro_smat.cost.model import CostModel
from pyro_smat.cost.timing import Line, fit_line, median_times
from pyro_smat.networks.composition import TaskNetwork
from pyro_smat.networks.parameters import ParameterSpace

FORMAT = 1


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
        content = json.dumps(_without_nan({"format": FORMAT, **asdict(self)}), indent=2)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        except OSError as error:
            raise ValueError(f"{path}: cannot be written ({error.strerror}); choose another place") from error
        return path

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: for a missing, foreign or incomplete file.
        """
        try:
            data = json.loads(Path(path).read_text())
            if data["format"] != FORMAT:
                raise ValueError(f"format is {data['format']!r}; this version reads format {FORMAT}")
            return cls(
                latency=_model(data["latency"]),
                traffic=_model(data["traffic"]),
                blocks=tuple(_block(block) for block in data["blocks"]),
                forward=float(data["forward"]),
                images=int(data["images"]),
                machine=Machine(**data["machine"]),
            )
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error.strerror}); expected a calibration") from error
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: is no calibration ({error!r}); expected what Calibration.save wrote") from error

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
        lines += [
            f"fixed {self.latency.fixed:.3f} ms, of which the forward pass of {self.images} images "
            f"{self.forward:.3f} ms",
            f"one more source in every block: {sum(self.latency.mix):.4f} ms, "
            f"{100 * sum(self.latency.mix) / self.latency.fixed:.2f}% of that",
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


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: it becomes null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _model(data: dict[str, Any]) -> CostModel:
    return CostModel(**{**data, "mix": tuple(data["mix"]), "residual": tuple(data["residual"])})


def _block(data: dict[str, Any]) -> BlockTimes:
    sources = Line(**{key: math.nan if value is None else value for key, value in data["sources"].items()})
    error = math.nan if data["residual_error"] is None else data["residual_error"]
    return BlockTimes(**{**data, "sources": sources, "residual_error": error})
