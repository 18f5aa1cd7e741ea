"""benchmarks/evidence/training_config.py: folders that are read and a config that is valid."""

from __future__ import annotations

from pathlib import Path

import pytest
from evidence_suite import made_options

# isort: split
import training_config

from pyro_smat.inference.assembly.config import load_config
from pyro_smat.inference.runs.pools import build_pool


def test_the_config_reads_the_folders_of_the_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = made_options(tmp_path / "data")
    monkeypatch.setattr(training_config, "Options", lambda **paths: made)
    training_config.main(data=made.data, sources=None, out=tmp_path / "out", seed=0, each=4)
    config = load_config(tmp_path / "out" / "config.toml")
    assert list(config.sources.files) == list(made.names)
    assert all(Path(path).exists() for path in config.sources.files.values())
    pool = build_pool(config, "train")
    assert set(pool.domain_names) == set(made.trained)
    assert len(pool.images) == 4 * len(pool.class_names[0])
