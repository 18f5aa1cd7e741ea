"""The configuration: defaults, overrides, and refusals that name the key."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from pyro_smat.inference.assembly.config import Family, build_config, load_config
from pyro_smat.inference.training.trainer import TrainingSettings


def test_file_then_overrides(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('seed = 3\n[training]\nsteps = 7\n[data]\nkind = "folder"\npath = "images"\n')
    config = load_config(path, ["training.steps=9", "episodes.way=[3, 5]", "guide.family=catalog", "prior.scale=0.5"])
    assert (config.seed, config.training.steps, config.episodes.way) == (3, 9, (3, 5))
    assert (config.guide.family, config.prior.scale) == ("catalog", 0.5)
    assert config.data.path == tmp_path / "images"  # relative to the file


def test_a_config_is_frozen_and_survives_json() -> None:
    config = load_config(None, ["episodes.corruption.label_noise=[0.0, 0.5]"])
    assert build_config(config.model_dump(mode="json")) == config
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 4


def test_training_settings_have_the_same_names_and_defaults() -> None:
    """The trainer's dataclass and the config describe one thing; they must not drift apart."""
    config = load_config(None)
    for name, value in vars(TrainingSettings()).items():
        section = config.experts if name == "orthogonality" else config.training
        assert getattr(section, name) == value, name
    assert training_settings(config) == TrainingSettings()
    changed = load_config(None, ["training.kl_warmup=7", "training.kl_cycles=3", "experts.orthogonality=0.5"])
    assert training_settings(changed) == TrainingSettings(kl_warmup=7, kl_cycles=3, orthogonality=0.5)


def test_sections_as_inline_tables(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(
        'prior = {kind = "mixture", components = [{kind = "uniform"}, {kind = "cost_aware", beta = 2.0}]}\n'
        '[guide]\nfamily = "catalog"\ncatalog = {method = "beam", size = 9}\n'
    )
    config = load_config(path, ["prior.weights=[0.7, 0.3]"])
    assert [(c.kind, c.beta) for c in config.prior.components] == [("uniform", 1.0), ("cost_aware", 2.0)]
    assert config.prior.weights == (0.7, 0.3)
    assert (config.guide.catalog.method, config.guide.catalog.size) == ("beam", 9)
    assert build_config(config.model_dump(mode="json")) == config


def test_shipped_configs_are_valid() -> None:
    root = Path(__file__).parents[3]
    for path in (root / "pyro_smat/cli/quickstart.toml", root / "benchmarks" / "emoji.toml"):
        assert load_config(path).guide.family in get_args(Family)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainig.steps=3", r"unknown key 'trainig'; did you mean 'training'\?"),
        ("training.stepz=3", r"unknown key 'training.stepz'; did you mean 'steps'\?"),
        ("episodes.corruption.noise=1", r"unknown key 'episodes.corruption.noise'"),
        ("training.steps=many", r"training.steps.*'many'"),
        ("training.steps=-1", r"training.steps.*greater than or equal to 0"),
        ("objective.rho=1.5", r"rho is 1.5; expected a tail fraction in \(0, 1\]"),
        ("guide.family=transformer", r"guide.family.*'logistic_normal', 'catalog', .*found 'transformer'"),
        ("prior.kind=flat", r"prior.kind.*'uniform', 'cost_aware'.*found 'flat'"),
        ("prior={kind='mixture', components=[{betta=1.0}]}", r"'prior.components.0.betta'; did you mean 'beta'\?"),
        ("prior.beta=2.0", r"prior: kind 'uniform' does not use beta; it uses \['concentration', 'scale'\]"),
        (
            "prior={kind='dirichlet', scale=1.0, temperature=0.5}",
            r"'dirichlet' does not use scale, temperature; it uses",
        ),
        ("prior={kind='simplex_cost', scale=1.0}", r"'simplex_cost' does not use scale; it uses \['beta', 'costs', .*"),
        ("prior={kind='mixture', components=[{kind='uniform', learn=true}]}", r"components.0.*does not use learn"),
        ("guide.calibrate=true", r"calibrate is for families 'catalog' and 'hier.*; found family 'logistic_normal'"),
        (
            "guide={family='catalog', straight_through=true}",
            r"straight_through is for family 'concrete'; found 'catalog' \(a catalog has estimator = 'straight_through",
        ),
        ("guide.catalog.sizes=3", r"unknown key 'guide.catalog.sizes'; did you mean 'size'\?"),
        ("objective.distillation.routin=1", r"unknown key 'objective.distillation.routin'; did you mean 'routing'\?"),
        ("experts.masks=own", r"experts.masks.*'shared' or 'separate'"),
        ("training.kl_cycles=0", r"training.kl_cycles.*greater than or equal to 1"),
        ("data.kind=folder", r"needs a path"),
        ("steps", r"not of the form key=value"),
        ("seed.x=1", r"unknown key|seed"),
    ],
)
def test_refusals(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(None, [override])


@pytest.mark.parametrize(
    "override",
    [
        "prior={kind='uniform', scale=1.0, concentration=3.0}",
        "prior={kind='cost_aware', beta=2.0, costs=[0.0, 1.0], learn=true, hyperprior=[1.0, 2.0], scale=1.0}",
        "prior={kind='simplex_cost', target_cost=1.5, costs=[0.0, 1.0], learn=true}",
        "prior={kind='concrete', temperature=0.4}",
        "prior={kind='hierarchical', learn=true}",
        "prior={kind='mixture', components=[{kind='concrete', temperature=0.4}, {}], weights=[1.0, 2.0], kl='bound'}",
        "prior={kind='uniform', beta=1.0}",  # what it is anyway
        "guide={family='hierarchical', calibrate=true}",
        "guide={family='concrete', straight_through=true}",
    ],
)
def test_what_a_kind_uses_is_taken(override: str) -> None:
    config = load_config(None, [override])
    assert build_config(config.model_dump(mode="json")) == config


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.toml: cannot be read"):
        load_config(tmp_path / "absent.toml")
    path = tmp_path / "broken.toml"
    path.write_text("seed = = 1")
    with pytest.raises(ValueError, match=r"broken\.toml: not valid TOML"):
        load_config(path)
