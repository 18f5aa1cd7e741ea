"""benchmarks/diagnostics.py at small size: level and power as it reports them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import diagnostics  # noqa: E402


def test_size_power_and_effect_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnostics, "EPISODES", (400,))
    rows = {(cell.check, cell.guide): cell.row() for cell in diagnostics.cells(30, seed=100)}
    for check in ("simulation", "known routes", "draws"):
        exact = rows[check, "exact"]
        assert exact["rejected low"] <= 0.05  # type: ignore[operator]
        assert exact["interval holds 1"] >= 0.8  # type: ignore[operator]
    sharp = rows["simulation", "too sharp, p^1.3"]
    assert sharp["rejected"] > 0.7  # type: ignore[operator]
    assert sharp["interval holds 1"] < 0.25  # type: ignore[operator]
    assert sharp["sharpness, median"] == pytest.approx(1.3, abs=0.1)
    assert rows["draws", "0.8 of the deviation"]["rejected"] > 0.9  # type: ignore[operator]
    blind = rows["simulation", "the prior itself"]
    assert blind["rejected"] == 1
    assert rows["known routes", "the prior itself"]["rejected"] < 0.3  # type: ignore[operator]


def test_sets_cover_whatever_the_guide() -> None:
    table = diagnostics.set_coverage(20, seed=0)
    assert (table["coverage (.9 asked)"] > 0.88).all()
    assert table["mean size of 4"].iloc[0] < table["mean size of 4"].iloc[-1]
