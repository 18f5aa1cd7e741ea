"""Shared by the tests of trust: one small world, one trained run."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_world import write_world

from pyro_smat.inference.assembly.config import load_config
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.runs.folder import prepare_folder
from pyro_smat.inference.runs.train import train_router


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images/, base.safetensors, other.safetensors, config.toml."""
    folder = tmp_path_factory.mktemp("world")
    write_world(folder)
    return folder


@pytest.fixture(scope="session")
def run(world: Path) -> Path:
    """A run folder, four steps long."""
    config = load_config(world / "config.toml")
    folder = world / "run"
    prepare_folder(folder, config)
    train_router(config, folder=folder, progress=False)
    return folder


@pytest.fixture(scope="session")
def classifier(run: Path) -> RoutedClassifier:
    return RoutedClassifier.load(run / "router")
