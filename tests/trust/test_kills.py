"""SIGKILL at random moments: a command that goes on ends with the bytes of one that was left alone."""

from __future__ import annotations

import random
import subprocess
import sys
import time
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


@pytest.mark.slow
def test_routing_killed_and_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import kills
    import route
    from cli_world import make_images

    kills.prepare(tmp_path, ("train",))
    for task in range(60):
        for role in ("support", "query"):
            make_images(tmp_path / "tasks" / f"t{task:02d}" / role, 3, 2, seed=2 * task + (role == "query"))
    words = [
        route.command(tmp_path / "left-alone-train", tmp_path / "tasks", tmp_path / name, 1, "--size", "3")
        for name in ("alone", "killed")
    ]
    subprocess.run(words[0], check=True, capture_output=True)
    done, killed = tmp_path / "killed" / "parts", []
    while True:  # kill it whenever another part has appeared
        before = len(list(done.glob("part-*.parquet")))
        process = subprocess.Popen(words[1], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list(done.glob("part-*.parquet"))) == before:
            time.sleep(0.01)
        if len(killed) == 5 or process.poll() is not None:
            assert process.wait() == 0
            break
        process.kill()
        process.wait()
        killed.append(before)
    assert len(killed) >= 3
    assert route.contents(tmp_path / "killed") == route.contents(tmp_path / "alone")
    assert [path.name for path in (tmp_path / "killed").rglob(".*")] == []
    for name in ("kills", "route", "doubt"):
        sys.modules.pop(name)
