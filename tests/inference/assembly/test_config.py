"""The configuration: defaults, overrides, and refusals that name the key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from pyro_smat.inference.assembly import build_config, load_config
from pyro_smat.registry import names


def test_file_then_overrides(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('seed = 3\nprior = "uniform"\n[training]\nsteps = 7\n[data]\nkind = "folder"\npath = "images"\n')
    config = load_config(path, ["training.steps=9", "episodes.way=[3, 5]", "guide.kind=catalog", "prior.scale=0.5"])
    assert (config.seed, config.training.steps, config.episodes.way) == (3, 9, (3, 5))
    assert (config.guide.kind, config.prior.scale) == ("catalog", 0.5)
    assert config.data.path == tmp_path / "images"  # relative to the file


def test_a_config_is_frozen_and_survives_json() -> None:
    config = load_config(
        None, ["episodes.corruptions=[{kind='label_noise', fraction=[0.0, 0.5]}, {kind='confounding'}]"]
    )
    dumped = json.loads(json.dumps(config.model_dump(mode="json")))
    assert build_config(dumped) == config
    assert [choice.kind for choice in config.episodes.corruptions] == ["label_noise", "confounding"]
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 4


def test_sections_as_inline_tables(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(
        'prior = {kind = "mixture", components = [{kind = "uniform"}, {kind = "cost_aware", beta = 2.0}]}\n'
        '[guide]\nkind = "catalog"\ncatalog = {kind = "beam", size = 9}\n'
    )
    config = load_config(path, ["prior.weights=[0.7, 0.3]"])
    assert [c.kind for c in config.prior.components] == ["uniform", "cost_aware"]
    assert config.prior.components[1].beta == 2.0
    assert config.prior.weights == (0.7, 0.3)
    assert (config.guide.catalog.kind, config.guide.catalog.size, config.guide.catalog.beam_width) == ("beam", 9, 4)
    assert build_config(config.model_dump(mode="json")) == config


def test_shipped_configs_are_valid() -> None:
    root = Path(__file__).parents[3]
    for path in (root / "pyro_smat/cli/quickstart.toml", root / "benchmarks" / "emoji.toml"):
        assert load_config(path).guide.kind in names("guide")


def test_sections_are_replaced_whole_or_in_part() -> None:
    config = load_config(None, ["training.steps=7", "training.episodes=3"])
    other = config.replaced(training={"steps": 9}, prior=load_config(None, ["prior=dirichlet"]).prior)
    assert (other.training.steps, other.training.episodes, other.prior.kind) == (9, 3, "dirichlet")
    assert (config.training.steps, config.prior.kind) == (7, "uniform")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainig.steps=3", r"unknown key 'trainig'; did you mean 'training'\?"),
        ("training.stepz=3", r"unknown key 'training.stepz'; did you mean 'steps'\?"),
        ("episodes.corruption.noise=1", r"unknown key 'episodes.corruption'; did you mean 'corruptions'\?"),
        (
            "episodes.corruptions=[{kind='label_noise', fractoin=0.2}]",
            r"corruptions.0: 'label_noise' has no option 'fra",
        ),
        (
            "episodes.corruptions=['label_noise', 'confound']",
            r"corruptions.1: .*'confound'; did you mean 'confounding'",
        ),
        ("training.steps=many", r"training.steps.*'many'"),
        ("training.steps=-1", r"training.steps.*greater than or equal to 0"),
        ("objective.rho=1.5", r"rho is 1.5; expected a tail fraction in \(0, 1\]"),
        ("objective.episode_loss=nl", r"objective.episode_loss: .* 'nl'; did you mean 'nll'"),
        ("guide.kind=transformer", r"guide: there is no guide 'transformer'; .*catalog.*logistic_normal"),
        ("guide.kind=logistic_norm", r"guide: there is no guide 'logistic_norm'; did you mean 'logistic_normal'"),
        ("guide.family=catalog", r"guide: 'logistic_normal' has no option 'family'; it has covariance, encoder, rank"),
        ("prior.kind=flat", r"prior: there is no prior 'flat'"),
        ("prior={kind='mixture', components=[{kind='cost_aware', betta=1.0}]}", r"prior: components.0: .*mean 'beta'"),
        ("prior.beta=2.0", r"prior: 'uniform' has no option 'beta'; it has concentration, scale"),
        ("prior={kind='dirichlet', scale=1.0}", r"'dirichlet' has no option 'scale'; it has concentration"),
        ("prior={kind='simplex_cost', scale=1.0}", r"'simplex_cost' has no option 'scale'; it has beta, costs, "),
        ("prior={kind='cost_aware', costs='dear'}", r"prior: costs: .*found 'dear'"),
        (
            "training.temperature_scaling=true",
            r"guides over a catalog \(catalog, hierarchical, pseudo_bma\); found guide 'logis",
        ),
        ("guide={kind='catalog', straight_through=true}", r"'catalog' has no option 'straight_through'"),
        (
            "guide.encoder=prototype_moment",
            r"guide: encoder: there is no encoder 'prototype_moment'; did you mean 'prototype_moments'",
        ),
        ("guide.encoder={kind='evidence', hiden=3}", r"guide: encoder: 'evidence' has no option 'hiden'; .* 'hidden'"),
        ("guide={kind='catalog', catalog={sizes=3}}", r"guide: catalog: 'k_hot' has no option 'sizes'; it has max_sou"),
        ("objective.distillation.routin=1", r"unknown key 'objective.distillation.routin'; did you mean 'routing'\?"),
        ("model.gates=own", r"model: gates: .*'shared' or 'separate'"),
        ("experts.masks=shared", r"unknown key 'experts.masks'"),
        ("decision.rule={kind='top_k', kk=3}", r"decision.rule: 'top_k' has no option 'kk'"),
        ("evaluation.baselines=['best_sorce']", r"evaluation.baselines.0: .* did you mean 'best_source'"),
        ("sources.network=conv5", r"sources.network: there is no network 'conv5'; did you mean 'conv4'"),
        ("training.kl_cycles=0", r"training.kl_cycles.*greater than or equal to 1"),
        ("data.kind=folder", r"needs a path"),
        ("steps", r"not of the form key=value"),
        ("seed.x=1", r"unknown key|seed"),
        ("model=3", r"model: expected a name, or \{kind = ..., option = ...\}"),
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
        "prior={kind='mixture', components=[{kind='concrete', temperature=0.4}, 'uniform'], weights=[1.0, 2.0]}",
        "guide={kind='concrete', straight_through=true}",
        "guide={kind='hierarchical', estimator='score_function', catalog='greedy'}",
        "decision={rule={kind='posterior_predictive', num_samples=8}, score={kind='auto', queries=true}}",
        "decision.rule=ensemble",
        "sources.network={kind='conv4', channels=8, stem='stride'}",
    ],
)
def test_what_a_kind_takes_survives_json(override: str) -> None:
    config = load_config(None, [override])
    assert build_config(json.loads(json.dumps(config.model_dump(mode="json")))) == config


def test_a_file_of_ones_own_is_relative_to_the_config_and_run_only_there(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import pathlib\n\npathlib.Path(__file__).with_name('trace').touch()\n\n"
        "from pyro_smat.models import RoutedModel\n\n\nclass Mine(RoutedModel):\n"
        "    def __init__(self, *args, colour: str = 'red', **options):\n        super().__init__(*args, **options)\n"
    )
    path = tmp_path / "config.toml"
    path.write_text('[model]\nkind = "own.py:Mine"\nscale = 3.0\n')
    config = load_config(path)
    assert (tmp_path / "trace").exists()
    assert config.model.kind == f"{tmp_path / 'own.py'}:Mine"
    assert (config.model.colour, config.model.scale) == ("red", 3.0)
    path.write_text('model = "own.py:Mine"\n')
    assert load_config(path).model.kind == config.model.kind
    with pytest.raises(ValueError, match=r"own.py:Mine' has no option 'color'; did you mean 'colour'\?"):
        load_config(path, ["model.color=blue"])

    (tmp_path / "trace").unlink()
    read = build_config(config.model_dump(mode="json"))  # what a saved folder holds
    assert read.model.factory is None
    assert not (tmp_path / "trace").exists()
    assert build_config(config.model_dump(mode="json"), own={"model": config.model.factory}) == config  # type: ignore[dict-item]


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.toml: cannot be read"):
        load_config(tmp_path / "absent.toml")
    path = tmp_path / "broken.toml"
    path.write_text("seed = = 1")
    with pytest.raises(ValueError, match=r"broken\.toml: not valid TOML"):
        load_config(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"broken\.toml: not UTF-8"):
        load_config(path)
