"""Calibration: prices from times, also from a clock that the test sets; JSON there and back; the command."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from pyro_smat.cli.app import app
from pyro_smat.cli.cost import calibrate_router
from pyro_smat.cost import Calibration, CostModel, calibrate, calibration
from pyro_smat.cost.timing import fit_line, median_times
from pyro_smat.files import content_digest
from pyro_smat.inference.assembly.config import load_config
from pyro_smat.inference.assembly.router import build_router
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.networks.parameters import ParameterSpace

CPU = torch.device("cpu")


def tiny() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


SPACE = ParameterSpace.from_module(tiny(), {"first": "1", "second": "3"})
IMAGES = torch.rand(6, 1, 2, 2)


@pytest.fixture(scope="module")
def measured() -> Calibration:
    basis = torch.randn(4, SPACE.dim, generator=torch.Generator().manual_seed(0))
    return calibrate(tiny(), SPACE, basis, IMAGES, repeats=2)


def test_prices_are_none_below_zero_and_bytes_are_exact(measured: Calibration) -> None:
    assert measured.latency.unit == "ms"
    assert measured.latency.fixed >= measured.forward > 0
    assert [block.name for block in measured.blocks] == ["first", "second"]
    assert [block.coordinates for block in measured.blocks] == [25, 18]
    assert measured.traffic == CostModel((100.0, 72.0), (100.0, 72.0), unit="bytes")
    assert (measured.latency.entry, measured.images) == (0.0, 6)
    assert measured.machine.threads == torch.get_num_threads()
    assert (measured.machine.device, measured.machine.torch) == ("cpu", torch.__version__)


def test_the_clock_becomes_prices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times of 2 + 3 k ms, 0.5 for a residual, and 11 for the forward pass; twice that in the second block."""
    seen = []

    def clock(calls: Sequence[Callable[[], object]], device: torch.device, repeats: int) -> list[float]:
        times = []
        for call in calls:
            call()
            assert isinstance(call, partial)
            if len(call.args) == 2 and call.args[1].ndim == 2:  # compose_active(coefficients, rows)
                coefficients, rows = call.args
                assert coefficients.shape == (4,)
                active, residual = int((coefficients[:3] != 0).sum()), float(coefficients[3] != 0)
                times.append((2 + 3 * active + 0.5 * residual) * (1 if rows.shape[1] == 25 else 2))
            else:
                times.append(11.0)
        seen.append(len(calls))
        return times

    monkeypatch.setattr(calibration, "median_times", clock)
    found = calibrate(tiny(), SPACE, torch.randn(3, SPACE.dim), IMAGES)
    assert seen == [6, 6, 1]
    assert found.latency.mix == pytest.approx((3.0, 6.0))
    assert found.latency.residual == pytest.approx((0.5, 1.0))
    assert found.latency.fixed == pytest.approx(11 + 2 + 4)
    assert [block.sources.r_squared for block in found.blocks] == pytest.approx([1.0, 1.0])
    assert [block.residual_error for block in found.blocks] == pytest.approx([0.0, 0.0])
    task = torch.tensor([[0.5, 0.0, 0.5, 1.0], [1.0, 0.0, 0.0, 1.0]])
    seconds = (2 + 6 + 0.5) + (4 + 6 + 0.0) + 11  # the expert does not touch the second block
    assert float(found.latency.cost_of(task, torch.tensor([[9, 0]]))) == pytest.approx(seconds)
    assert "17.000 ms, of which the forward pass of 6 images 11.000 ms" in str(found)


def test_noise_that_falls_with_sources_has_no_price(monkeypatch: pytest.MonkeyPatch) -> None:
    falling = iter([[5.0, 4.0, 4.0, 3.0, 3.0, 2.0], [1.0] * 6, [7.0]])
    monkeypatch.setattr(calibration, "median_times", lambda calls, device, repeats: next(falling))
    found = calibrate(tiny(), SPACE, torch.randn(3, SPACE.dim), IMAGES)
    assert (found.latency.mix, found.latency.residual) == ((0.0, 0.0), (0.0, 0.0))
    assert found.blocks[0].sources.slope == pytest.approx(-1.0)  # what was measured is still told
    assert math.isnan(found.blocks[1].sources.r_squared)
    assert str(found).splitlines()[1].endswith("  -")  # no bandwidth follows from it


def test_a_single_source_has_the_whole_time(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([[5.0, 6.0], [1.0, 1.5], [7.0]])
    monkeypatch.setattr(calibration, "median_times", lambda calls, device, repeats: next(times))
    found = calibrate(tiny(), SPACE, torch.randn(1, SPACE.dim), IMAGES)
    assert (found.latency.mix, found.latency.residual, found.latency.fixed) == ((5.0, 1.0), (1.0, 0.5), 7.0)


def test_json_there_and_back(measured: Calibration, tmp_path: Path) -> None:
    path = measured.save(tmp_path / "new" / "cost.json")
    assert Calibration.load(path) == measured
    assert "NaN" not in path.read_text()
    unknown = dataclasses.replace(measured.blocks[0], residual_error=math.nan)
    again = Calibration.load(
        dataclasses.replace(measured, blocks=(unknown, *measured.blocks[1:])).save(tmp_path / "nan.json")
    )
    assert math.isnan(again.blocks[0].residual_error)
    assert "NaN" not in (tmp_path / "nan.json").read_text()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: data.pop("latency"), "latency"),
        (lambda data: data.update(format=9), "format is 9"),
        (lambda data: data["latency"].update(mix=[-1.0, 0.0]), "expected finite numbers >= 0"),
        (lambda data: data["machine"].pop("threads"), "threads"),
        (lambda data: data["blocks"][0].update(extra=1), "extra"),
    ],
)
def test_spoilt_files_are_refused(
    measured: Calibration, tmp_path: Path, spoil: Callable[[dict], object], message: str
) -> None:
    data = json.loads(measured.save(tmp_path / "cost.json").read_text())
    del data["digest"]
    spoil(data)
    data["digest"] = content_digest(data)
    (tmp_path / "cost.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=rf"cost\.json: .*{message}"):
        Calibration.load(tmp_path / "cost.json")


def test_other_files_are_refused(measured: Calibration, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "text.json").write_text("no json")
    for name in ("list.json", "text.json"):
        with pytest.raises(ValueError, match=rf"{name}: .*expected .*Calibration\.save wrote"):
            Calibration.load(tmp_path / name)
    with pytest.raises(ValueError, match=r"absent\.json: no such file"):
        Calibration.load(tmp_path / "absent.json")
    with pytest.raises(ValueError, match="cannot be written"):
        measured.save(tmp_path / "text.json" / "cost.json")


def test_bad_input_is_refused() -> None:
    basis = torch.randn(3, SPACE.dim)
    with pytest.raises(ValueError, match=r"basis has shape \(3, 42\); expected \(R, 43\)"):
        calibrate(tiny(), SPACE, basis[:, 1:], IMAGES)
    with pytest.raises(ValueError, match=r"images have shape \(1, 2, 2\); expected \(n, C, H, W\)"):
        calibrate(tiny(), SPACE, basis, IMAGES[0])
    with pytest.raises(ValueError, match="repeats is 0"):
        calibrate(tiny(), SPACE, basis, IMAGES, repeats=0)


def test_lines_are_those_of_least_squares() -> None:
    x, y = [1.0, 2.0, 3.0, 5.0], [2.1, 3.9, 6.2, 9.7]
    line = fit_line(x, y)
    design = np.stack([np.ones(4), np.array(x)], 1)
    solution = np.linalg.solve(design.T @ design, design.T @ np.array(y))
    assert (line.intercept, line.slope) == pytest.approx(tuple(solution))
    assert line.r_squared == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2)
    assert line.error == pytest.approx(np.sqrt(np.mean((design @ solution - y) ** 2)))
    assert math.isnan(fit_line([1.0, 2.0], [3.0, 4.0]).r_squared)  # two points are always on a line
    for bad in (([], []), ([1.0], [1.0, 2.0]), ([1.0, 1.0], [1.0, 2.0])):
        with pytest.raises(ValueError, match="expected as many of each, of different x"):
            fit_line(*bad)


def test_calls_take_turns() -> None:
    order: list[str] = []

    def slow(name: str) -> None:
        order.append(name)
        np.linalg.inv(np.eye(200))  # longer than the shortest measurement

    times = median_times([partial(slow, "a"), partial(slow, "b")], CPU, 4)
    assert len(times) == 2
    assert min(times) > 0
    assert [name for name, _ in itertools.groupby(order)] == ["a", "b"] * 5  # the warm-up, then four turns
    with pytest.raises(ValueError, match="repeats is 0; expected at least 1"):
        median_times([], CPU, 0)


def test_the_command_prints_a_table_and_a_price_list(tmp_path: Path) -> None:
    config = load_config(None, ["experts.count=2"])
    classifier = RoutedClassifier(build_router(config, CPU))
    classifier.save(tmp_path / "router")
    done = CliRunner().invoke(app, ["cost", str(tmp_path), "--device", "cpu", "--images", "2", "--repeats", "1"])
    assert done.exit_code == 0, done.output
    text = done.stdout
    saved = Calibration.load(tmp_path / "cost.json")
    assert str(saved) in text
    assert saved.images == 2
    listed = text.split("costs = [")[1].split("]")[0].split(", ")
    expected = [*[saved.latency.mix[0]] * 5, *[saved.latency.residual[0]] * 2]
    assert [float(price) for price in listed] == pytest.approx(expected, rel=1e-3)
    again = load_config(None, ["prior.kind=cost_aware", "experts.count=2", f"prior.costs=[{', '.join(listed)}]"])
    assert len(again.prior.costs or ()) == 7
    with pytest.raises(ValueError, match="images is 0; expected at least 1"):
        calibrate_router(classifier, images=0)
    missing = CliRunner().invoke(app, ["cost", str(tmp_path / "nothing"), "--device", "cpu"])
    assert missing.exit_code == 2
    assert "no such file" in missing.stderr
