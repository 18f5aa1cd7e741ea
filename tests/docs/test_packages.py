"""Every folder of modules is a package of the wheel, and the other way round."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = {"models": "pyro_smat/models", "guides": "pyro_smat/guides", "inference": "pyro_smat/inference"}


def test_every_folder_of_modules_is_installed() -> None:
    said = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    there = set()
    for top in ("pyro_smat", *ROOMS):
        for module in (ROOT / top).rglob("*.py"):
            folder = module.parent.relative_to(ROOT).as_posix()
            there.add(folder.replace(top, ROOMS.get(top, top), 1).replace("/", "."))
    assert sorted(said) == sorted(there)
