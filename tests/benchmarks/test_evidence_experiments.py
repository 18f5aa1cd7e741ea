"""benchmarks/evidence/experiments.py: each experiment on made data, with what must hold whatever the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evidence_suite import made_options

# isort: split
import experiments
from bench import TEST_SEED, Bench, merged
from cells import every_cell
from drawn import Drawn
from outcomes import WITH_EXPERT
from pools import by_attribute, first_of_each_class, large_classes
from trials import TRIALS, ablations, catalogs, corruptions, experts, others, rules, tails
from universal import UNIVERSAL, cka, distil

from pyro_smat.inference.evaluation import EvaluationSettings
from pyro_smat.networks.build import build_network

pytestmark = pytest.mark.filterwarnings("ignore:source .* than the fallback", "ignore:rho x B")

VARIED = {"base": {}, "KL weight 1": {"objective": {"kl_weight": 1.0}}}
CONDITIONS = ("2-shot", "40% mislabelled", "1-shot")
COUNT = 6


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(made_options(tmp_path_factory.mktemp("data")), 0, torch.device("cpu"))


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("output")


def made(bench: Bench, output: Path, name: str) -> dict[tuple[str, ...], dict]:
    """Cells of an experiment by key; a second run makes none, and the tables show something and miss nothing."""
    experiments.run_trials(bench, output, [name])
    times = {path: path.stat().st_mtime_ns for path in (output / "seed0" / name).rglob("*.json")}
    experiments.run_trials(bench, output, [name])
    assert times == {path: path.stat().st_mtime_ns for path in (output / "seed0" / name).rglob("*.json")}
    lines = experiments.told(output, name)
    assert lines[2] == "Seeds [0]; missing: nothing."
    assert sum(line.startswith("| ") for line in lines) > 2
    assert not any("nan" in line for line in lines)
    return {key: values for key, _, values in every_cell(output / "seed0" / name, "t")}


def test_shots_are_of_the_same_classes(bench: Bench, output: Path) -> None:
    cells = made(bench, output, "shots")
    assert {cell["classes"] for key, cell in cells.items() if key[0] == "new classes"} == {8}
    for cell in cells.values():
        assert set(cell["misrouted"]) == {"routed, trained", "routed, trained with an expert", "from_sources"}
        wrong, lost = (np.array(cell[k]["routed, trained"]) for k in ("misrouted", "misrouting_regret"))
        assert ((lost > 0) == (wrong == 1)).all()


def test_rules_run_the_networks_that_they_may(bench: Bench, output: Path) -> None:
    cells = made(bench, output, "rules")
    for condition in CONDITIONS:
        used = {rule: np.array(cells[rule, "new classes", condition]["networks"]["routed"]) for rule in rules.RULES}
        assert (used["map"] == 1).all()
        assert (used["top 2"] == 2).all()
        assert (used["all of the posterior"] == 3).all()
        assert (used["half of the posterior"] <= used["90% of the posterior"]).all()
        assert (used["mean of the weights"] == 1).all()


def test_abstention_keeps_every_score(bench: Bench, output: Path) -> None:
    cells = made(bench, output, "abstention")
    for cell in cells.values():
        assert {"least_confidence", "support_loss", "predictive_entropy", "disagreement"} <= set(cell["score"])
        assert {len(values) for values in cell["score"].values()} == {COUNT}


def test_corruptions_at_a_severity(bench: Bench, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corruptions, "SEVERITIES", (5,))
    cells = made(bench, output, "corruptions")
    assert {key[0] for key in cells} == set(corruptions.CORRUPTIONS)
    clean = cells["label noise", "new classes", "0"]
    for name, changed in (("gaussian noise", True), ("label shift", True), ("label noise", True)):
        loss = cells[name, "new classes", "5"]["loss"]["source: imagenet"]
        assert (loss != clean["loss"]["source: imagenet"]) == changed
    first, both = (cells[n, "new classes", "5"] for n in ("jpeg", "jpeg, queries too"))
    assert first["loss"] != both["loss"]


def test_altered_images_are_embedded_once_and_answer_as_before(bench: Bench) -> None:
    features, noise = bench.blocks["new classes"], {"kind": "gaussian_noise", "severity": 5}
    drawn = bench.draw(features, 3, shot=2, corruptions=(noise,))
    sampled = bench.sampler(features.pool, TEST_SEED, shot=2, corruptions=(noise,)).sample(3)
    plain = Drawn([features.attach(sampled)], features)
    settings = EvaluationSettings(rules=(), scores=(), baselines=["source_average"])
    ours, other = (d.evaluate(bench.router.model, bench.router.guide, settings) for d in (drawn, plain))
    for method in ours.methods:
        np.testing.assert_allclose(ours.loss(method), other.loss(method), atol=2e-3)  # rounded to 8 bits
    assert drawn.groups == plain.groups
    assert len(drawn.features.pool or ()) == int(sampled.support.mask.sum() + sampled.query.mask.sum())


def test_groups_are_vendors_and_scripts_of_one_domain(bench: Bench, output: Path) -> None:
    cells = made(bench, output, "groups")
    cell = cells["emoji by vendor", "2-shot"]
    assert cell["groups"] == ["x", "y"]
    assert set(cell["group"]) == {0, 1}
    assert cells["new classes", "1-shot"]["groups"] == ["emoji", "glyph"]
    assert "(x)" in "\n".join(experiments.told(output, "groups")) or "(y)" in "\n".join(
        experiments.told(output, "groups")
    )


def test_experts_change_the_networks_and_draw_the_same_episodes(
    bench: Bench, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = "one expert, 10% of the coordinates"
    assert list(experts.TRIAL.variations)[:2] == ["base", one]
    faster = merged(experts.TRIAL.variations[one], {"training": {"delta_learning_rate": 1e-2}})
    monkeypatch.setattr(experts.TRIAL, "variations", {"base": {}, one: faster})
    cells = made(bench, output, "experts")
    base, changed = (cells[name, "new classes", "2-shot"] for name in ("base", one))
    assert base["loss"]["routed"] != changed["loss"]["routed"]
    assert base["group"] == changed["group"]


def test_networks_of_a_router_with_experts_as_sources(bench: Bench) -> None:
    changes = merged(WITH_EXPERT, {"training": {"delta_learning_rate": 1e-2}})
    router = bench.train(changes)
    library = bench.deployed_library(router)
    assert library.names == bench.router.library.names
    expert = router.model.experts
    assert expert is not None
    moved = (library.basis - bench.router.library.basis).abs().gt(1e-7).any(0)
    assert 0 < int(moved.sum()) <= expert.budget


def test_other_ways_to_use_the_sources(bench: Bench, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = bench.options.sources / "seed0"
    (sources / f"{UNIVERSAL}.safetensors").write_bytes((sources / "emoji.safetensors").read_bytes())
    monkeypatch.setattr(others, "FEW", 4)
    cells = made(bench, output, "others")
    cell = cells["unseen domains", "40% mislabelled"]
    assert {"uniform soup", "greedy soup", "average of all sources", f"source: {UNIVERSAL}, aligned"} <= set(
        cell["loss"]
    )
    assert all(seconds[0] >= 0 for seconds in cell["seconds"].values())


def test_distilled_network_comes_near_its_teachers(bench: Bench) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, 5, generator=generator)
    assert float(cka(x, x @ torch.linalg.qr(torch.randn(5, 5, generator=generator))[0])) == pytest.approx(1, abs=1e-5)
    assert float(cka(x, torch.randn(9, 5, generator=generator))) < 0.9
    shape = {k: v for k, v in bench.options.network.items() if k != "kind"}
    teacher, student = (build_network("conv4", generator=torch.Generator().manual_seed(k), **shape) for k in (1, 2))
    pool = bench.pool(("emoji",), "sources")
    images = pool.at(torch.arange(24)).float()

    def alike() -> float:
        with torch.no_grad():
            return float(cka(teacher.eval()(images), student.eval()(images)))

    before = alike()
    distil(student, {"emoji": teacher}, {"emoji": bench.sampler(pool, 0, shot=2)}, 20, 3e-3, bench.device, 0)
    assert alike() > before


def test_tails_and_ablations_share_their_training_episodes(
    bench: Bench, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tails.TRIAL, "variations", {"mean": {"objective": {"tail_weight": 0.0}}, "rho 0.1": {}})
    monkeypatch.setattr(ablations.TRIAL, "variations", VARIED)
    made(bench, output, "tails")
    cells = made(bench, output, "ablations")
    assert {key[0] for key in cells} == set(VARIED)


@pytest.mark.parametrize("trial", [ablations, experts, tails])
def test_every_variation_is_another_config(bench: Bench, trial: Any) -> None:
    configs = [bench.config(changes).model_dump(mode="json") for changes in trial.TRIAL.variations.values()]
    assert all(a != b for k, a in enumerate(configs) for b in configs[:k])


def test_libraries_of_copies_are_their_one_source(bench: Bench, output: Path) -> None:
    cells = made(bench, output, "libraries")
    one, copies = (cells[name, "unseen domains", "2-shot"] for name in ("1 sources", "1 different, 2 copies"))
    for method in ("routed", "average of all sources", "best source by support loss"):
        assert one["accuracy"][method] == copies["accuracy"][method]
    np.testing.assert_allclose(one["loss"]["routed"], copies["loss"]["routed"], atol=0.02)  # two heads' scales


def test_catalogs_are_searched_or_given(bench: Bench, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {name: catalogs.CATALOGS[name] for name in ("all of up to 2", "greedy, 6")}
    monkeypatch.setattr(catalogs, "CATALOGS", chosen)
    cells = made(bench, output, "catalogs")
    assert len(cells["all of up to 2", "new classes", "2-shot"]["names"]) == 6
    assert 1 <= len(cells["greedy, 6", "new classes", "2-shot"]["names"]) <= 6


def test_mixing_at_the_start_is_one_network_and_distance_grows_in_proportion(bench: Bench, output: Path) -> None:
    cells = made(bench, output, "mixing")
    start = cells["new classes", "0"]
    assert start["mixture"]["all"] == start["average"]["all"] == start["best"]["all"]
    assert start["distance"]["all"] == [0.0]
    whole, half = (cells["new classes", amount]["distance"]["all"][0] for amount in ("1", "0.5"))
    assert half == pytest.approx(whole / 2, rel=1e-4)


def test_tables_say_which_cells_are_missing(bench: Bench, output: Path) -> None:
    experiments.run_trials(bench, output, ["mixing"])
    (output / "seed0/mixing/new_classes/0.5.json").unlink()
    assert "seed 0: 1 of new classes." in experiments.told(output, "mixing")[2]
    assert experiments.told(output / "nowhere", "shots")[2].startswith("nothing yet")
    assert list(TRIALS) == experiments.EVERY.split(",")


def test_changes_are_merged_into_tables_of_the_same_kind() -> None:
    base = {"guide": {"kind": "catalog", "catalog": {"kind": "k_hot", "max_sources": 1}}, "seed": 0}
    wide = merged(base, {"guide": {"catalog": {"max_sources": 2}}})
    assert wide["guide"] == {"kind": "catalog", "catalog": {"kind": "k_hot", "max_sources": 2}}
    other = merged(base, {"guide": {"catalog": {"kind": "greedy", "size": 3}}})
    assert other["guide"]["catalog"] == {"kind": "greedy", "size": 3}
    assert base["guide"]["catalog"]["max_sources"] == 1


def test_training_looks_everything_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.training_pool.embed()
    assert all(batch.query.images.untyped_storage().nbytes() < 1000 for batch in bench.training_batches)
    network = type(bench.router.model.network)
    called, run = [], network.__call__

    def counted(self: object, theta: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        called.append(bool(images.isnan().any()))
        return run(self, theta, images)

    monkeypatch.setattr(network, "__call__", counted)
    bench.train({})
    assert not any(called)  # descriptors and the width of the features, no image of an episode


def test_pools_of_pools(bench: Bench) -> None:
    pool = bench.pool(("emoji",), "test")
    few = first_of_each_class(pool, 3)
    assert few.labels[:, 0].bincount().tolist() == [3, 3, 3, 3]
    assert torch.equal(few.images[0], pool.images[0])
    vendors = by_attribute(bench.options.data, "emoji", "vendor")
    assert vendors.domain_names == ("x", "y")
    assert vendors.attributes == ("class",)
    assert large_classes(few, 3) == list(few.class_names[0])
    assert large_classes(few, 4) == []
