"""Installs a wheel and uses it from another folder: ``python wheel_smoke.py WHEEL``, run by ``make wheel-test``.

The environment sees this one's packages (PyTorch is large) but not the checkout, so that a file which the wheel forgot
is missing here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

PROGRAM = """
import pyro_smat, torch
from pathlib import Path
from pyro_smat.inference.assembly.config import load_config
from pyro_smat.inference.assembly.router import open_library
from pyro_smat.registry import KINDS, names

for name in pyro_smat.__all__:
    getattr(pyro_smat, name)
for kind in KINDS:
    assert names(kind), kind  # every file of its room is there
from pyro_smat import certificates, cost, metrics, networks, solvers
from pyro_smat.inference import diagnostics
from pyro_smat.solvers.residual import METHODS
from pyro_smat.sources.codecs import sparse

home = Path(pyro_smat.__file__).parent
assert "site-packages" in str(home), home
for name in (
    "py.typed",
    "report/report.html",
    "cli/quickstart.toml",
    "sources/glyphs/generalist.safetensors",
    "models/routed.py",
):
    assert (home / name).is_file(), name
network, library = open_library(load_config(None))
assert len(library) == 5 and torch.equal(library.one_hot(2) @ library.basis, library.basis[2])
print("wheel works from", Path.cwd())
"""


def main(wheel: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(folder) / "venv"
        venv.create(environment, with_pip=False)
        site = next((environment / "lib").glob("python*/site-packages"))
        python = environment / "bin" / "python"
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
        subprocess.run(install, check=True)
        # This environment's packages, without the editable checkout's import hooks (a .pth file would run them).
        (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        subprocess.run([python, "-c", PROGRAM], check=True, cwd=folder, env=clean)
        subprocess.run([python, "-m", "pyro_smat", "sources", "inspect"], check=True, cwd=folder, env=clean)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
