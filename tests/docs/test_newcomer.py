"""The newcomer's script and the same from a config run as they stand in docs/, in an empty folder."""

from __future__ import annotations

import ast
import runpy
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from pyro_smat import RoutedClassifier, glyph_pool, read_folder, write_folder
from pyro_smat.cli.app import app

pytest.importorskip("timm")

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("newcomer")


@pytest.fixture(scope="module")
def ran(folder: Path) -> dict[str, object]:
    """The variables of the script after it ran in an empty folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        torch.manual_seed(0)
        return runpy.run_path(str(DOCS / "newcomer.py"))


def test_is_short_and_imports_pyro_smat_alone() -> None:
    text = (DOCS / "newcomer.py").read_text()
    imported = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [ast.unparse(node) for node in imported] == ["import pyro_smat as ps"]
    assert len(text.splitlines()) <= 40


def test_the_saved_router_predicts_as_the_trained_one(folder: Path, ran: dict[str, object]) -> None:
    """What was loaded from the folder agrees with the model and guide in memory, and is over the ViT of timm."""
    loaded = RoutedClassifier.load(folder / "router")
    assert loaded.source_names == ("base", "first", "second")
    assert loaded.router.config.sources.network.kind == "timm:vit_tiny_patch16_224"
    in_memory = RoutedClassifier.from_trained(ran["model"], ran["guide"], image_shape=(3, 32, 32))  # type: ignore[arg-type]
    support, query = ran["task"].support, ran["task"].query  # type: ignore[attr-defined]
    adapted = [router.adapt(support.images, support.labels) for router in (loaded, in_memory)]
    expected, found = (task.predict_proba(query.images, "mean") for task in adapted)
    torch.testing.assert_close(found, expected)
    assert len(ran["adapted"].predict(query.images)) == len(query.labels)  # type: ignore[attr-defined]


def test_the_same_from_a_config(folder: Path, ran: dict[str, object]) -> None:
    for name, state in ran["sources"].items():  # type: ignore[attr-defined]
        save_file({key: value.contiguous() for key, value in state.items()}, folder / f"{name}.safetensors")
    write_folder(glyph_pool("test"), folder / "images" / "test", each=6)
    shutil.copy(DOCS / "newcomer.toml", folder)
    run, support = folder / "run", write_folder(_three_classes(folder), folder / "support")
    image = next(support.glob("*/*.png"))
    for words in (
        ("train", folder / "newcomer.toml", "--output", run, "--no-progress"),
        ("evaluate", run, "--episodes", 4, "--no-progress"),
        ("adapt", run, support),
        ("predict", run, support, image),
    ):
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exit_code == 0, (words, result.output, result.exception)
    assert image.parent.name in result.output
    trained = RoutedClassifier.load(run / "router")
    assert torch.equal(trained.router.library.basis, ran["library"].basis)  # type: ignore[attr-defined]


def _three_classes(folder: Path) -> object:
    pool = read_folder(folder / "images", split="test", channels=3)
    from dataclasses import replace

    kept = pool.labels[:, 0] < 3
    names = (pool.class_names[0][:3],)
    return replace(
        pool, images=pool.images[kept], labels=pool.labels[kept], domain=pool.domain[kept], class_names=names
    )
