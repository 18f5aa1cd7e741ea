"""benchmarks/theory.py: its arithmetic against closed forms and other algorithms, its claims at small size."""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
from scipy.optimize import minimize
from scipy.stats import binomtest, linregress
from typer.testing import CliRunner

from pyro_smat.metrics.intervals import Interval

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import theory  # noqa: E402
from claims import exact_erm, excess_risk, finding, frank_wolfe, hardness, joint_rate, simplex  # noqa: E402


def frank_wolfe_gap(gram: np.ndarray, linear: np.ndarray, weights: np.ndarray) -> float:
    gradient = gram @ weights - linear
    return float(weights @ gradient - gradient.min())


def test_least_squares_by_faces_is_optimal() -> None:
    """The duality gap is a proof of optimality that knows nothing of faces."""
    rng = np.random.default_rng(0)
    sources = rng.standard_normal((5, 6, 7))
    gram, linear = sources @ sources.mT, sources @ rng.standard_normal((5, 7, 4))
    weights, values = simplex.least_squares_by_faces(gram, linear)
    assert weights.min() >= 0
    np.testing.assert_allclose(weights.sum(-2), 1)
    for i, j in itertools.product(range(5), range(4)):
        assert frank_wolfe_gap(gram[i], linear[i, :, j], weights[i, :, j]) < 1e-11
        w = weights[i, :, j]
        assert values[i, j] == pytest.approx(w @ gram[i] @ w / 2 - linear[i, :, j] @ w)


def test_a_cap_on_nonzeros_is_the_best_of_all_supports() -> None:
    rng = np.random.default_rng(1)
    sources = rng.standard_normal((6, 7))
    gram, linear = sources @ sources.T, (sources @ rng.standard_normal(7))[:, None]
    weights, value = simplex.least_squares_by_faces(gram, linear, largest=2)
    pairs = [list(pair) for pair in itertools.combinations(range(6), 2)]
    each = [simplex.least_squares_by_faces(gram[np.ix_(p, p)], linear[p])[1].item() for p in pairs]
    assert np.count_nonzero(weights) <= 2
    assert value.item() == pytest.approx(min(each))
    assert value.item() > simplex.least_squares_by_faces(gram, linear)[1].item() + 1e-3  # the cap binds here


def test_projection_onto_the_simplex() -> None:
    points = np.random.default_rng(2).standard_normal((50, 6)) * 0.4
    by_faces = simplex.least_squares_by_faces(np.eye(6), points.T)[0].T
    np.testing.assert_allclose(simplex.project_onto_simplex(points), by_faces, atol=1e-12)
    assert (by_faces == 0).any(axis=1).mean() > 0.3


def test_errors_with_known_means() -> None:
    """R - 1 inside; 1/2 at an end of a segment (a half line); E max(z^2, z'^2) = 1 + 2/pi; d where all is kept."""
    rng = np.random.default_rng(3)
    cases = [
        (excess_risk.mixture_errors(np.full(5, 0.2), 1e6, 20_000, rng) * 1e6, 4.0),
        (excess_risk.mixture_errors(np.array([1.0, 0.0]), 1e6, 20_000, rng) * 1e6, 0.5),
        (excess_risk.sparse_errors(2, 1, 0.0, 20_000, rng), 1 + 2 / math.pi),
        (excess_risk.sparse_errors(7, 7, 3.0, 20_000, rng), 7.0),
        (excess_risk.sparse_errors(50, 3, 30.0, 20_000, rng), 3.0),
    ]
    for errors, mean in cases:
        assert abs(errors.mean() - mean) < 4 * errors.std() / math.sqrt(len(errors))


def test_mixture_rate() -> None:
    facts = excess_risk.mixture_rate(repetitions=1000).facts
    for name, slope in (("slope of log risk in log n", -1), ("slope of log risk in log (R - 1)", 1)):
        assert facts[name].low < slope < facts[name].high
        assert facts[name].high - facts[name].low < 0.06


def test_sparse_rate_has_a_logarithm_only_where_signals_are_weak() -> None:
    found = excess_risk.sparse_rate(repetitions=60)
    assert found.facts["slope of log n risk in log(k ln(d/k)), worst"].value == pytest.approx(1, abs=0.05)
    ratios = found.table["n risk, strong"] / found.table["k"]
    assert ratios.between(0.6, 1.4).all()
    assert (found.table["n risk, worst"] > 4 * found.table["k"]).all()


def test_the_hardest_amplitude_is_neither_zero_nor_large() -> None:
    table = excess_risk.sparse_amplitudes(dim=512, budget=4, repetitions=200).table.set_index("amplitude")["n risk"]
    assert 0.25 <= table.idxmax() <= 1
    assert table.max() > 1.1 * table[0.0] > 10 * table[3.0]


def test_many_sources_cost_less_than_their_number() -> None:
    found = excess_risk.convex_aggregation(sources=(4, 64, 1024), repetitions=100)
    assert found.facts["least worst risk / min{.,.}"] > 0.5
    assert found.facts["largest worst risk / min{.,.}"] < 1.2
    assert found.facts["(R/n) / worst risk at the largest R, at least"] > 30
    per_log = found.table["n risk, vertex"] / np.log(found.table["R"])
    assert per_log.between(0.5, 1.6).all()


def test_exact_minimiser_against_another_solver_of_each_support() -> None:
    rng = np.random.default_rng(4)
    design = exact_erm.Design.random(12, 6, 3, 2, rng)
    targets = rng.standard_normal((12, 2))
    fitted = design.minimise(targets)
    for target, values in zip(targets.T, fitted.T, strict=True):
        losses = []
        for support in itertools.combinations(range(6), 2):
            columns = np.hstack([design.features @ design.sources, design.features[:, list(support)]])
            losses.append(
                minimize(
                    lambda x, columns=columns, target=target: np.sum((target - columns @ x) ** 2),
                    x0=[1 / 3, 1 / 3, 1 / 3, 0, 0],
                    bounds=[(0, 1)] * 3 + [(None, None)] * 2,
                    constraints={"type": "eq", "fun": lambda x: x[:3].sum() - 1},
                    method="SLSQP",
                    options={"ftol": 1e-12},
                ).fun
            )
        assert np.sum((target - values) ** 2) == pytest.approx(min(losses), rel=1e-6)


def test_joint_rate() -> None:
    found = joint_rate.joint_rate(repetitions=3, sources=(2, 10), sizes=((24, 2), (48, 4)))
    assert found.facts["small tasks (d = 16, R = 4, k = 3) solved exactly"].value > 0.6
    assert found.facts["of them, with a lower loss on the true support"] == 0
    assert 0.4 < found.facts["a"].value < 1.6
    assert 1.2 < found.facts["b"].value < 3


def test_true_support_loss_is_what_the_fit_of_that_support_leaves() -> None:
    rng = np.random.default_rng(8)
    design, truth, support, targets = joint_rate.draw_task(24, 3, 2, rng)
    first, rest = design.sources[:, 0], design.sources[:, 1:] - design.sources[:, :1]
    kept = np.setdiff1d(np.arange(24), support)  # orthonormal: open coordinates are fitted exactly
    target = (targets - math.sqrt(24) * first)[kept]
    _, squares, _, _ = np.linalg.lstsq(math.sqrt(24) * rest[kept], target)
    assert joint_rate.true_support_loss(design, support, targets) == pytest.approx(squares.item())
    assert np.count_nonzero(np.abs(truth - design.sources.mean(1)) > 1e-12) == 2


def test_upper_bound_formula_and_that_it_holds() -> None:
    assert exact_erm.upper_bound(16, 2, 1, 1, 1 / math.e) == pytest.approx(4 / 16 * (2 * math.sqrt(2)) ** 2)
    found = exact_erm.explicit_bound(designs=2, draws=50)
    assert found.facts["violations"] == 0
    assert found.facts["violations of the inequality"] == 0
    assert found.table["bound / quantile"].between(2, 40).all()


def test_too_few_examples_leave_the_risk_open() -> None:
    found = exact_erm.too_few_examples()
    assert found.facts["largest training loss"] < 1e-20
    assert found.table["excess population risk"].max() > 1e5
    assert (found.table["nonzeros of Delta"] <= found.settings["k"]).all()


def test_full_budget() -> None:
    table = excess_risk.full_budget(repetitions=500).table
    np.testing.assert_allclose(table["n risk"], table["k ln(ed/k)"], rtol=0.1)


def test_frank_wolfe_keeps_its_promises() -> None:
    facts = frank_wolfe.frank_wolfe(problems=10, steps=50).facts
    assert facts["iterates checked"] == 3 * 10 * (51 + 4)
    broken = ("error above 2 C / (t+2)", "error above the gap", "more than t + 1 sources")
    assert [facts[name] for name in broken] == [0, 0, 0]


def test_coverage_gadget() -> None:
    masks = hardness.masks_of([frozenset({0, 1}), frozenset({1, 2}), frozenset({3})], 4)
    assert hardness.error_of_experts(masks, (0, 1)) == 0.25
    assert hardness.greedy(masks, 2) == (0, 1)  # the first of equals
    found = hardness.coverage_gadget(instances=40)
    assert found.facts["mismatches"] == 0
    assert found.facts["least greedy / best coverage"] >= found.facts["its guarantee 1 - (1 - 1/k)^k"]
    assert found.facts["best loss 0, greedy's not"] > 0


def test_exact_cover_gadget() -> None:
    yes = [frozenset(t) for t in ({0, 1, 2}, {2, 3, 4}, {3, 4, 5})]
    no = [frozenset(t) for t in ({0, 1, 2}, {2, 3, 4}, {1, 4, 5})]
    assert [hardness.has_exact_cover(sets, 6) for sets in (yes, no)] == [True, False]
    residuals = hardness.sparse_mixture_residuals([yes, no], 6)
    assert residuals[0] == pytest.approx(0, abs=1e-15)
    assert residuals[1] > 0.1
    found = hardness.exact_cover_gadget(instances=60)
    assert found.facts["mismatches"] == 0
    assert found.table["instances"].min() > 10


def test_planted_sets_are_a_partition() -> None:
    sets = hardness.random_sets(12, 8, 3, np.random.default_rng(5), sizes=(5,))
    parts = [chosen for chosen in sets if len(chosen) == 4]
    assert len(sets) == len(set(sets)) == 8
    assert sorted(itertools.chain(*parts)) == list(range(12))


def test_fit_and_intervals_against_scipy() -> None:
    rng = np.random.default_rng(6)
    x = np.arange(8.0)
    y = 2 * x + rng.standard_normal(8)
    line, reference = finding.fit([(1.0, v) for v in x], y, np.full(8, 1e-3)), linregress(x, y)
    assert line.coefficients[1].value == pytest.approx(reference.slope)
    assert line.coefficients[1].high - reference.slope == pytest.approx(2.4469 * reference.stderr, rel=1e-4)
    assert line.r_squared == pytest.approx(reference.rvalue**2)
    for count, total in ((0, 20), (3, 20), (20, 20)):
        exact = binomtest(count, total).proportion_ci(method="exact")
        assert finding.rate_interval(count, total) == Interval(count / total, *map(pytest.approx, exact))


def test_markdown_has_intervals_in_their_cells() -> None:
    table = pd.DataFrame([{"case": "a", "risk": 1.0, "risk low": 0.5, "risk high": 1.5, "count": 3}])
    assert finding.markdown(table).splitlines() == [
        "| case | risk | count |",
        "|---|---|---|",
        "| a | 1 [0.5, 1.5] | 3 |",
    ]


def test_command() -> None:
    app = typer.Typer()
    app.command()(theory.main)
    ran = CliRunner().invoke(app, ["--quick", "--claims", "too_few_examples,exact_cover_gadget", "--seed", "7"])
    assert ran.exit_code == 0
    assert "seed = 7" in ran.output
    assert "mismatches: 0" in ran.output
    refused = CliRunner().invoke(app, ["--claims", "abc"])
    assert refused.exit_code == 2
    assert "abc" in refused.output


def test_every_claim_is_in_the_docs() -> None:
    text = (ROOT / "docs" / "theory.md").read_text()
    assert [name for name in theory.CLAIMS if f"`{name}`" not in text] == []
