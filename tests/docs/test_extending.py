"""Every recipe of docs/extending.md: its one file in an empty folder, then train, save, load and evaluate with it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_world import CONFIG, make_images, make_world
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from pyro_smat import RoutedClassifier
from pyro_smat.cli.app import app
from pyro_smat.registry import KINDS
from pyro_smat.registry.entries import load_file

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
ROOT = PAGE.parents[1]


@dataclass(frozen=True)
class Recipe:
    """One section of the page: its kind, the folder in its heading, and its blocks of code."""

    kind: str
    folder: str
    python: str
    toml: str
    command: str

    @property
    def file(self) -> str:
        return re.match(r"# (\w+\.py)\n", self.python)[1]  # type: ignore[index]

    @property
    def reference(self) -> str:
        return re.search(rf"{self.file}:\w+", self.toml + self.command)[0]  # type: ignore[index]


def recipes() -> dict[str, Recipe]:
    found = {}
    for heading, section in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        blocks = dict(re.findall(r"^```(\w+)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL))
        if "python" in blocks:
            kind, folder = re.fullmatch(r"(.*): `(.*)/`", heading).groups()  # type: ignore[union-attr]
            kind = kind.lower().replace(" ", "_")
            found[kind] = Recipe(kind, folder, blocks["python"], blocks.get("toml", ""), blocks["sh"].strip())
    return found


RECIPES = recipes()


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def said(value: Any) -> str:
    """A value as TOML, tables inline."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {said(inner)}" for key, inner in value.items()) + "}"
    return "[" + ", ".join(map(said, value)) + "]" if isinstance(value, list) else json.dumps(value)


def merged(config: str, recipe: str) -> str:
    """The config of the tiny world with the lines of a recipe."""
    values = tomllib.loads(config)
    for key, value in tomllib.loads(recipe).items():
        values[key] = values.get(key, {}) | value if isinstance(value, Mapping) else value
    return "\n".join(f"{key} = {said(value)}" for key, value in values.items())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    make_world(folder)
    make_images(folder / "support", 3, 3, seed=9)
    return folder


def test_every_kind_has_a_recipe_and_names_its_room() -> None:
    assert set(RECIPES) == set(KINDS) - {"layout"}  # layouts go by registered name; docs/data.md has them
    for recipe in RECIPES.values():
        assert (ROOT / recipe.folder / "__init__.py").is_file()
        assert KINDS[recipe.kind].room.removeprefix("pyro_smat.") == recipe.folder.removeprefix("pyro_smat/").replace(
            "/", "."
        )


@pytest.mark.parametrize("kind", RECIPES)
def test_recipe(kind: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = RECIPES[kind]
    folder = Path(shutil.copytree(world, tmp_path / "project"))
    monkeypatch.chdir(folder)
    (folder / recipe.file).write_text(recipe.python)
    (folder / "config.toml").write_text(merged(CONFIG, recipe.toml))
    own = load_file(recipe.reference)
    if kind == "network":
        for seed, name in enumerate(("base", "other")):
            torch.manual_seed(seed)
            save_file(own(width=4).state_dict(), folder / f"{name}.safetensors")

    result = call("train", "config.toml", "--output", "run", "--no-progress", "--device", "cpu")
    assert result.exit_code == 0, (result.output, result.exception)
    words = shlex.split(recipe.command)[1:]
    if words[0] == "evaluate":
        words += ["--episodes", "4", "--no-progress"]
    result = call(*words)
    assert result.exit_code == 0, (result.output, result.exception)

    passed = {} if kind == "refinement" else {kind: own}
    if kind not in ("refinement", "network"):
        with pytest.raises(ValueError, match=rf"own={{'{kind}'"):
            RoutedClassifier.load("run/router")
    network = own(width=4) if kind == "network" else None
    router = RoutedClassifier.load("run/router", own=passed, network=network)
    assert used(router, kind, own), "the recipe's own class was not used"
    task = router.adapt(torch.rand(6, 1, 16, 16), ["a", "b", "c"] * 2)
    assert task.predict_proba(torch.rand(2, 1, 16, 16)).sum(-1) == pytest.approx(1, abs=1e-5)
    again = RoutedClassifier.load(router.save("again"), own=passed, network=network)
    assert again.deployment == router.deployment


def used(router: RoutedClassifier, kind: str, own: Any) -> bool:
    """Whether what was loaded is, or says that it was trained with, the recipe's class or function."""
    config = router.router.config
    if kind in ("model", "guide"):
        return type(getattr(router.router, kind)) is own
    if kind == "prior":
        return type(router.router.model.prior) is own
    if kind == "encoder":
        encoder: Any = router.router.guide.router.encoder  # type: ignore[union-attr]
        return type(encoder) is own or type(encoder.support) is own
    if kind == "decision_rule":
        return type(router.rule) is own
    if kind == "uncertainty_score":
        return type(router.deployment.scorer) is own
    if kind == "catalog":
        return router.router.catalog is not None and len(router.router.catalog) == 3
    if kind == "network":
        return next(iter(router.router.library.space.entries)).name == "0.weight"
    if kind == "episode_loss":
        return bool(config.objective.episode_loss.factory is own)
    if kind == "corruption":
        return config.episodes.corruptions[0].factory is own
    if kind == "baseline":
        table = Path("run/evaluations/test/episodes.csv").read_text()
        return config.evaluation.baselines[1].factory is own and "majority vote" in table
    return kind == "refinement"
