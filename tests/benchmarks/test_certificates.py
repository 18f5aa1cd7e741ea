"""benchmarks/certificates.py: what its tables count, by hand and by brute force, and its simulations at small size."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import certificates
from guarantees import coverage, decisions, speed

from pyro_smat.certificates import cvar_upper_bound, select_abstention_threshold
from pyro_smat.metrics.risk import cvar


def test_a_false_method_is_refuted_and_a_valid_one_is_not() -> None:
    case = coverage.Case("beta", 200, 0.1)
    by_method = {"false": np.repeat([0.4, 0.6], [30, 70]), "valid": np.repeat([0.4, 0.6], [6, 94])}
    results = [coverage.Bounds(case, 0.5, by_method)]
    summary = coverage.summary(results).set_index("method")
    assert summary.refuted.to_dict() == {"false": 1, "valid": 0}
    assert summary["highest violation rate"]["false"] == "0.300 [0.212, 0.400]"  # Clopper and Pearson's tables
    assert summary["where"]["valid"] == "loss beta, rho 0.1, N 200"
    row = coverage.gaps(results).iloc[0]
    assert (row["truth"], row["false"], row["valid"]) == ("0.5000", "0.0400", "0.0880")
    assert coverage.violations(results).iloc[0]["valid"].startswith("0.060 [")


def test_the_summary_takes_the_worst_case_and_methods_may_be_missing() -> None:
    results = [
        coverage.Bounds(coverage.Case("beta", n, 1.0), 0.5, {"a": np.array([0.4] * bad + [0.6] * 10), **more})
        for n, bad, more in ((10, 1, {}), (20, 5, {"b": np.array([0.6])}))
    ]
    assert coverage.summary(results).set_index("method")["where"].to_dict() == {
        "a": "loss beta, N 20",
        "b": "loss beta, N 20",
    }
    assert coverage.violations(results)["b"].tolist() == ["", "0.000 [0.000, 0.975]"]


@pytest.mark.parametrize("rho", [1.0, 0.2])
def test_simulations_are_seeded_and_hold_every_method(rho: float) -> None:
    case = coverage.Case("bernoulli", 80, rho)
    found = coverage.simulate(case, repetitions=3, seed=1)
    again = coverage.simulate(case, repetitions=3, seed=1)
    assert found.truth == pytest.approx(0.05 / (rho if rho < 1 else 1))
    assert ("clopper-pearson" in found.by_method) == (rho == 1)
    assert "betting" in found.by_method
    assert ("betting, pilot" in found.by_method) == (rho < 1)
    for method, bounds in found.by_method.items():
        np.testing.assert_array_equal(bounds, again.by_method[method])
        assert bounds.shape == (3,)


def test_the_normal_bound_is_about_the_same_estimate() -> None:
    """Without its standard error it is the exact CVaR wherever rho N is whole."""
    import torch

    sample = np.random.default_rng(0).random(200)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coverage.norm, "isf", lambda delta: 0.0)
        assert coverage._normal_cvar(sample, 0.1) == pytest.approx(cvar(torch.from_numpy(sample), 0.1).item())
    assert coverage._normal_cvar(sample, 0.1) < cvar_upper_bound(sample, 0.1).bound


def test_every_loss_size_and_tail_is_a_case() -> None:
    assert len(coverage.cases()) == 5 * 3 * 4
    assert len(set(coverage.cases())) == 60


def test_selective_risk_and_plug_in_by_brute_force() -> None:
    for binary in (True, False):
        u, losses = decisions.episodes(np.random.default_rng(0), 400_000, binary=binary)
        assert losses[u <= 0.7].mean() == pytest.approx(decisions.selective_risk(0.7), abs=2e-3)
    assert decisions.selective_risk(-np.inf) == 0
    assert decisions.selective_risk(np.inf) == decisions.selective_risk(1.0)
    u, losses = decisions.episodes(np.random.default_rng(1), 60, binary=False)
    allowed = [eta for eta in u if losses[u <= eta].mean() <= 0.05]
    assert decisions.plug_in_threshold(u, losses, 0.05) == max(allowed)
    assert decisions.plug_in_threshold(u, np.ones(60), 0.05) == -np.inf


def test_tables_of_decisions() -> None:
    row = decisions.simulate_abstention(True, 100, 4, 0)
    assert row["best coverage"] == "0.775"
    assert 0 <= float(str(row["learn then test: coverage"])) <= 1
    generator = np.random.default_rng([0, 100, 1])
    validation, _ = decisions.episodes(generator, 200, binary=True)
    u, losses = decisions.episodes(generator, 100, binary=True)
    first = select_abstention_threshold(u, losses, 0.1, 0.1, validation_scores=validation).threshold
    one = decisions.simulate_abstention(True, 100, 1, 0)
    assert one["learn then test: coverage"] == f"{max(first, 0.0):.3f}"
    rows = decisions.simulate_drift("three values", 2, 0)
    assert [row["alpha"] for row in rows] == [0.1, 0.01]
    assert all("[" in str(row["false alarms"]) for row in rows)


def test_every_metric_is_timed() -> None:
    """Each runs on the arrays that it is given; how fast depends on the machine."""
    table = speed.measure(2000, 0)
    assert {"Brier score", "ECE, debiased", "AURC", "AUGRC", "AUROC", "CVaR", "mean, betting bound"} <= set(table.what)


def test_the_command_says_what_it_does(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["certificates.py", "--help"])
    with pytest.raises(SystemExit):
        certificates.main()
    assert "--repetitions" in capsys.readouterr().out
