"""SIGKILL at random moments: a command that goes on ends with the bytes of one that was left alone."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="commands are forked")
def test_killed_and_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import kills

    left_alone, generator = kills.prepare(tmp_path), random.Random(1)
    for name in kills.COMMANDS:
        found = kills.trial(name, tmp_path, left_alone[name], generator, starts=3)
        while not found.kills:  # another moment: it had ended before those that were drawn
            found = kills.trial(name, tmp_path, left_alone[name], generator, starts=3)
        assert found.same, name
        assert found.left == [], name
    monkeypatch.delitem(sys.modules, "kills")
