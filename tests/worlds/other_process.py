"""Python in another process, which imports the checkout under test and not the one that is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[2]


def environment(**more: str) -> dict[str, str]:
    """The variables of this process, with this checkout as the first place to import from, one thread, no GPU."""
    places = [str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
    ours = {"PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return {**os.environ, **ours, **more}


def start_python(*words: object, variables: Mapping[str, str] | None = None, **options: Any) -> subprocess.Popen[str]:
    """``python *words`` with pipes to its three streams; ``options`` are those of Popen."""
    command, piped = [sys.executable, *map(str, words)], dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(command, text=True, env=environment(**(variables or {})), **(piped | options))


def run_python(*words: object, variables: Mapping[str, str] | None = None, **options: Any) -> str:
    """What ``python *words`` prints, once it has ended well."""
    with start_python(*words, variables=variables, stdin=subprocess.DEVNULL, **options) as process:
        said, errors = process.communicate()
    assert process.returncode == 0, errors
    return said
