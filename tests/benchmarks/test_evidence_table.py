"""benchmarks/evidence/table.py: cells are kept as they come, a router is trained once, tables show what is there."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from evidence_suite import made_options

# isort: split
import bench as bench_module
import table
from bench import Bench
from cells import Cells
from options import Options
from tables import print_tables

pytestmark = pytest.mark.filterwarnings("ignore:source .* than the fallback")  # four classes look unlike four others

CONDITIONS = ["2-shot", "40% mislabelled", "1-shot", "confounded"]


def of(options: Options, seed: int = 0) -> Bench:
    return Bench(options, seed, torch.device("cpu"))


def test_a_killed_run_goes_on_between_cells_and_trains_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options, conditions = made_options(tmp_path / "data"), CONDITIONS[:2]
    whole, parts = tmp_path / "whole" / "seed0", tmp_path / "parts" / "seed0"
    table.run_cells(of(options), whole, ["emoji", "mnist"], conditions)

    evaluated, made = [], table.evaluate_cell

    def killed_at_the_second(*arguments: object) -> object:
        if len(evaluated) == 2:  # two of each cell: over the sources, and over the sources with the expert
            raise KeyboardInterrupt
        evaluated.append(1)
        return made(*arguments)

    monkeypatch.setattr(table, "evaluate_cell", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        table.run_cells(of(options), parts, ["emoji"], conditions)
    assert len(list((parts / "cells").rglob("*.json"))) == 1

    monkeypatch.setattr(table, "evaluate_cell", made)
    monkeypatch.setattr(bench_module, "train_router", lambda *a, **k: pytest.fail("trained again"))
    table.run_cells(of(options), parts, ["emoji", "mnist"], conditions)

    first, second = (table.gathered(folder.parent)[0]["results"] for folder in (whole, parts))
    assert {(d, c) for d in second for c in second[d]} == {(d, c) for d in ("emoji", "mnist") for c in conditions}
    for domain, cells in first.items():
        for condition, cell in cells.items():
            for kind in ("accuracy", "loss"):
                assert cell[kind].keys() == second[domain][condition][kind].keys()
                for method, values in cell[kind].items():
                    np.testing.assert_allclose(values, second[domain][condition][kind][method], rtol=1e-5)


def test_every_method_answers_the_same_episodes_without_running_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = of(made_options(tmp_path / "data"))
    features = bench.router.features(bench.pool(("emoji",), "test"), of_catalog=True)
    features.embed()
    drawn = bench.draw(features, 5, shot=2)
    pairs = {"a": (bench.router.model, bench.router.guide), "b": bench.averaged(0.1)}
    monkeypatch.setattr(type(features.network), "__call__", lambda *a, **k: pytest.fail("ran a network"))
    cell = table.evaluate_cell(pairs, drawn, table.baselines(0.3, bench.options.names))
    assert {len(values) for values in cell["accuracy"].values()} == {5}
    mean = np.mean([cell["loss"][f"source: {name}"] for name in bench.options.names], axis=0)
    assert (np.array(cell["loss"]["average of all sources"]) <= mean + 1e-6).all()  # Jensen, episode by episode


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    options = made_options(tmp_path / "data")
    folder = tmp_path / "out" / "seed0"
    table.run_cells(of(options), folder, ["emoji"], ["1-shot"])
    with pytest.raises(ValueError, match="episodes was 6 and is 7"):
        table.run_cells(of(dataclasses.replace(options, episodes=7)), folder, ["glyph"], ["1-shot"])
    made_options(tmp_path / "data", seeds=(3,))
    (tmp_path / "data/sources/seed3/emoji.safetensors").replace(tmp_path / "data/sources/seed0/emoji.safetensors")
    with pytest.raises(ValueError, match="digests was"):
        table.run_cells(of(options), folder, ["emoji"], ["1-shot"])


def test_tables_average_seeds_and_say_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = made_options(tmp_path / "data", seeds=(0, 1))
    settings = [options.settings(seed) for seed in (0, 1)]
    for seed, shift in ((0, 0.0), (1, 0.2)):
        chosen = {"device": "CPU", "torch": "2", "temperature": 0.3, "seconds": 1.0}
        Cells(tmp_path / f"seed{seed}", settings[seed], "t").write(("chosen",), chosen)
        cells = Cells(tmp_path / f"seed{seed}" / "cells", settings[seed], "t")
        for domain in ("emoji", "mnist"):
            right = {"routed, trained": 0.5, "from_sources": 0.4, "average": 0.3, "source: imagenet": 0.2}
            accuracy = {method: np.full(20, value + shift) for method, value in right.items()}
            cells.write((domain, "2-shot"), {"accuracy": accuracy, "loss": accuracy, "seconds": 1.0})
    print_tables(table.gathered(tmp_path))
    told = capsys.readouterr().out
    assert "| routed, trained | 60.0 (0.60) |" in told
    assert "| new classes of trained domains, 2-shot | +20.0 [+20.0, +20.0] to 'average'" in told
    assert "| mnist | +30.0 [+30.0, +30.0] | source: imagenet |" in told
    assert "seed 0: glyph, 2-shot" in told
    assert "seed 1: emoji, 1-shot" in told
    assert "seed 0: emoji, 2-shot" not in told


def test_names_that_are_not_known_are_refused() -> None:
    assert table.named("emoji, mnist", ("emoji", "mnist"), "domain") == ["emoji", "mnist"]
    with pytest.raises(ValueError, match="domain 'emojis' is not known; expected some of emoji, mnist"):
        table.named("emojis", ("emoji", "mnist"), "domain")
