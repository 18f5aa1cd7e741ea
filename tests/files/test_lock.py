"""Locks between real processes: refused with pid and host, waited for, let go of by the killed; leftovers removed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
from other_process import start_python

from pyro_smat.files import locked, remove_leftovers
from pyro_smat.files.atomic import replacing

HOLD = """
import sys
from pathlib import Path
from pyro_smat.files import locked
from pyro_smat.files.atomic import replacing
with locked(Path(sys.argv[1])), replacing(Path(sys.argv[1]) / "inner" / "weights") as temporary:
    temporary.write_text("half")
    print("locked", flush=True)
    sys.stdin.read()
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    """Another process that has the folder, in the middle of writing a file."""
    process = start_python("-c", HOLD, folder)
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    return process


def test_the_second_process_is_refused_and_told_who_is_there(tmp_path: Path) -> None:
    other = hold(tmp_path)
    try:
        with (
            pytest.raises(ValueError, match=rf"in use by process {other.pid} on {socket.gethostname()}; .*--wait"),
            locked(tmp_path),
        ):
            pass
        with locked(tmp_path, name=".other"):  # of another name
            pass
    finally:
        other.communicate("")
    assert other.returncode == 0
    with locked(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text()) == {"pid": os.getpid(), "host": socket.gethostname()}
    assert [path.name for path in tmp_path.rglob("*")] == ["inner", "weights"]


def test_what_a_killed_process_had_is_free_and_cleaned(tmp_path: Path) -> None:
    other = hold(tmp_path)
    assert len(list((tmp_path / "inner").iterdir())) == 1
    assert remove_leftovers(tmp_path) == []  # it still runs
    other.send_signal(signal.SIGKILL)
    other.communicate()
    assert (tmp_path / ".lock").exists()
    with locked(tmp_path):
        assert list((tmp_path / "inner").iterdir()) == []


def test_waiting(tmp_path: Path) -> None:
    other = hold(tmp_path)
    entered: list[float] = []

    def work() -> None:
        with locked(tmp_path, wait=True):
            entered.append(time.monotonic())

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.6)
    assert entered == []
    ended = time.monotonic()
    other.communicate("")
    thread.join(30)
    assert entered[0] > ended


def test_a_lock_of_another_host_is_believed(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text('{"pid": 1, "host": "elsewhere"}')
    with pytest.raises(ValueError, match=r"process 1 on elsewhere .*remove the lock file"), locked(tmp_path):
        pass
    (tmp_path / ".lock").write_text("not written to its end")
    with locked(tmp_path):
        pass


def test_a_thread_may_lock_again_and_others_may_not(tmp_path: Path) -> None:
    refused = []

    def work() -> None:
        try:
            with locked(tmp_path):
                pass
        except ValueError as error:
            refused.append(str(error))

    with locked(tmp_path), locked(tmp_path):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert f"process {os.getpid()}" in refused[0]
    assert not (tmp_path / ".lock").exists()


def test_only_temporary_files_of_the_gone_are_removed(tmp_path: Path) -> None:
    keep = [tmp_path / name for name in (".config", ".a.tmp", ".a.00000000-1-00000000.tmp", "b")]
    for path in keep:
        path.write_text("x")
    with replacing(tmp_path / "ours") as temporary:
        temporary.write_text("x")
        assert remove_leftovers(tmp_path) == []
    assert all(path.exists() for path in keep)


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="file: cannot be written"), locked(tmp_path / "file"):
        pass
