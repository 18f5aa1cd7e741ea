"""Freed memory is used again without new pages of the system, unless the environment says what to do with it."""

from __future__ import annotations

import os
import platform

import pytest
from other_process import run_python

from pyro_smat.cli import freed_memory
from pyro_smat.cli.freed_memory import SAID, keep_freed_memory

PROGRAM = """
import resource
from pyro_smat.cli.freed_memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        pieces = [bytearray(b"x") * 2**22 for _ in range(12)]
        del pieces
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults(), keep_freed_memory(), faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of the C library of Linux")
def test_pages_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty times 48 MB of 4 KB pages, or the first time only."""
    for name in SAID:
        monkeypatch.delenv(name, raising=False)
    given_back, told, kept = run_python("-c", PROGRAM).split()
    assert told == "True"
    assert int(given_back) > 5 * int(kept)


def test_the_environment_and_other_systems_have_their_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freed_memory.ctypes, "CDLL", lambda name: pytest.fail("the C library was told"))
    for name in SAID:
        with monkeypatch.context() as patch:
            patch.setitem(os.environ, name, "1")
            assert not keep_freed_memory()
    monkeypatch.setattr(freed_memory.sys, "platform", "darwin")
    assert not keep_freed_memory()
