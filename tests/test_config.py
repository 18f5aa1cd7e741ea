"""The configuration: defaults, overrides, and refusals that name the key."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from pyro_smat.config import build_config, load_config
from pyro_smat.inference.trainer import TrainingSettings


def test_file_then_overrides(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('seed = 3\n[training]\nsteps = 7\n[data]\nkind = "folder"\npath = "images"\n')
    config = load_config(path, ["training.steps=9", "episodes.way=[3, 5]", "guide.family=catalog", "prior.beta=0.5"])
    assert (config.seed, config.training.steps, config.episodes.way) == (3, 9, (3, 5))
    assert (config.guide.family, config.prior.beta) == ("catalog", 0.5)
    assert config.data.path == tmp_path / "images"  # relative to the file


def test_a_config_is_frozen_and_survives_json() -> None:
    config = load_config(None, ["episodes.corruption.label_noise=[0.0, 0.5]"])
    assert build_config(config.model_dump(mode="json")) == config
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 4


def test_training_settings_have_the_same_names_and_defaults() -> None:
    """The trainer's dataclass and the config's section describe one thing; they must not drift apart."""
    section = load_config(None).training
    for name, value in vars(TrainingSettings()).items():
        assert getattr(section, name) == value, name


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainig.steps=3", r"unknown key 'trainig'; did you mean 'training'\?"),
        ("training.stepz=3", r"unknown key 'training.stepz'; did you mean 'steps'\?"),
        ("episodes.corruption.noise=1", r"unknown key 'episodes.corruption.noise'"),
        ("training.steps=many", r"training.steps.*'many'"),
        ("training.steps=-1", r"training.steps.*greater than or equal to 0"),
        ("objective.rho=1.5", r"rho is 1.5; expected a tail fraction in \(0, 1\]"),
        ("guide.family=transformer", r"guide.family.*'logistic_normal', 'catalog' or 'point'"),
        ("data.kind=folder", r"needs a path"),
        ("steps", r"not of the form key=value"),
        ("seed.x=1", r"unknown key|seed"),
    ],
)
def test_refusals(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(None, [override])


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.toml: cannot be read"):
        load_config(tmp_path / "absent.toml")
    path = tmp_path / "broken.toml"
    path.write_text("seed = = 1")
    with pytest.raises(ValueError, match=r"broken\.toml: not valid TOML"):
        load_config(path)
