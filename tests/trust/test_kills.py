"""SIGKILL at random moments: a run that goes on ends with the bytes of one that was left alone."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_killed_and_started_again(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import kills

    expected = kills.prepare(tmp_path)
    found = kills.trial(name, tmp_path, *expected[name], random.Random(1))
    assert found.kills >= 1
    assert found.same
    assert found.left == []
    sys.modules.pop("kills")
