"""benchmarks/growth.py: exponents of known growth, and a run at tiny sizes."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from pyro_smat.networks import kept_memory

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import growth  # noqa: E402
import typer  # noqa: E402


@pytest.mark.parametrize("power", [0.0, 1.0, 1.7])
def test_the_exponent_is_that_of_the_upper_half(power: float) -> None:
    sizes = pd.Series([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    costs = 3 * sizes**power
    costs[:3] = [100.0, 1.0, 50.0]  # a small size pays what does not grow
    assert growth.exponent(sizes, costs) == pytest.approx(power, abs=1e-6)


def test_what_grows_is_what_is_said_to() -> None:
    step = growth.Step(growth.Sizes(sources=3, experts=2, episodes=5, blocks=2, width=8, images=2), torch.device("cpu"))
    assert step.model.basis().shape == (5, step.dim)
    assert step.guide.posterior(step.batch).mean.shape == (5, 2, 5)
    assert step.batch.query.images.shape[:2] == (5, 6)


def test_memory_is_what_is_held_at_once() -> None:
    step = growth.Step(growth.Sizes(width=8), torch.device("cpu"))
    kept = torch.ones(2**18)  # 1 MiB

    def three_and_one_more() -> None:
        first = kept + 1
        second = first + kept
        del first
        (second + kept).sum()

    step.__class__ = type("Made", (growth.Step,), {"__call__": lambda self: three_and_one_more()})
    assert step.memory() == pytest.approx(2.0, abs=0.1)


def test_memory_counts_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    step = growth.Step(growth.Sizes(width=8), torch.device("cpu"))
    expected = step.memory()
    monkeypatch.setattr(kept_memory, "LARGE", 1)
    step()
    assert kept_memory.KEPT.peak > 0  # tensors of the step lie there
    assert step.memory() == pytest.approx(expected, rel=0.01)
    assert kept_memory.LARGE == 1


@pytest.mark.filterwarnings("ignore:rho x B")
def test_a_tiny_run(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(growth.main)
    csv, png = tmp_path / "growth.csv", tmp_path / "growth.png"
    options = ["--axis", "sources", "--axis", "particles", "--largest", "4", "--repeats", "1"]
    result = CliRunner().invoke(app, [*options, "--output", str(csv), "--picture", str(png)])
    assert result.exit_code == 0, result.output
    table = pd.read_csv(csv)
    assert table.groupby("axis")["size"].apply(list).to_dict() == {"sources": [2, 4], "particles": [1, 2, 4]}
    assert (table[["seconds", "mebibytes"]] > 0).all(axis=None)
    assert png.stat().st_size > 1000
    assert CliRunner().invoke(app, ["--axis", "sheep"]).exit_code == 2
