"""selective.py against brute-force random tie-breaking, scikit-learn and the 0/1 identity of AUGRC."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from pyro_smat.metrics import augrc, aurc, auroc, excess_aurc, risk_coverage_curve
from pyro_smat.metrics.arrays import FloatArray


def _all_orders(scores: list[float], losses: list[float]) -> list[FloatArray]:
    """Running sums of the losses in every order that sorts the scores, each order once."""
    return [
        np.cumsum([losses[i] for i in order])
        for order in itertools.permutations(range(len(scores)))
        if all(scores[a] <= scores[b] for a, b in itertools.pairwise(order))
    ]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0.1, 0.2, 0.9]), st.integers(0, 8).map(lambda i: i / 8)), min_size=1, max_size=6
    )
)
def test_areas_are_expectations_over_every_tie_break(items: list[tuple[float, float]]) -> None:
    scores, losses = [s for s, _ in items], [x for _, x in items]
    sums, n = np.array(_all_orders(scores, losses)), len(items)
    assert aurc(scores, losses) == pytest.approx((sums / np.arange(1, n + 1)).mean())
    assert augrc(scores, losses) == pytest.approx((sums / n).mean())
    curve = risk_coverage_curve(scores, losses)
    np.testing.assert_allclose(curve.risk, (sums / np.arange(1, n + 1)).mean(0))
    np.testing.assert_allclose(curve.coverage, np.arange(1, n + 1) / n)


def test_constant_score_gives_the_mean_loss_at_every_coverage() -> None:
    losses = np.random.default_rng(0).random(50)
    np.testing.assert_allclose(risk_coverage_curve(np.zeros(50), losses).risk, losses.mean())


def test_aurc_equals_the_harmonic_weights_form() -> None:
    generator = np.random.default_rng(1)
    scores, losses = generator.permutation(40) / 40, generator.random(40)
    harmonic = np.concatenate([[0], np.cumsum(1 / np.arange(1, 41))])
    weights = harmonic[40] - harmonic[:40]  # H_n - H_{i-1}
    assert aurc(scores, losses) == pytest.approx(float((losses[np.argsort(scores)] * weights).mean()))


@pytest.mark.parametrize("levels", [1000, 4])
def test_augrc_identity_for_zero_one_losses(levels: int) -> None:
    generator = np.random.default_rng(levels)
    n = 500
    scores = generator.integers(levels, size=n) / levels
    wrong = (generator.random(n) < 0.15 + 0.4 * scores).astype(float)
    error = wrong.mean()
    accuracy = 1 - error
    failure_auroc = roc_auc_score(wrong, scores)
    # The last term is there because the area is a sum over n coverages and not an integral.
    expected = (1 - failure_auroc) * accuracy * error + error**2 / 2 + error / (2 * n)
    assert augrc(scores, wrong) == pytest.approx(expected, abs=1e-12)


def test_oracle_order_is_best_and_reverse_is_worst() -> None:
    generator = np.random.default_rng(2)
    losses = generator.random(200)
    random = generator.random(200)
    assert aurc(losses, losses) < aurc(random, losses) < aurc(-losses, losses)
    assert augrc(losses, losses) < augrc(random, losses) < augrc(-losses, losses)
    wrong = np.arange(20000) < 5000  # 0/1 oracle: e + (1 - e) ln(1 - e)
    assert aurc(wrong, wrong) == pytest.approx(0.25 + 0.75 * math.log(0.75), abs=1e-3)


def test_excess_is_over_the_best_of_all_orders() -> None:
    generator = np.random.default_rng(3)
    scores, losses = generator.permutation(6) / 6, generator.integers(4, size=6) / 4
    areas = [
        (np.cumsum(losses[list(order)]) / np.arange(1, 7)).mean()
        for order in itertools.permutations(range(len(losses)))
    ]
    assert excess_aurc(scores, losses) == pytest.approx(aurc(scores, losses) - min(areas))
    assert excess_aurc(-losses, losses) == pytest.approx(max(areas) - min(areas))
    assert excess_aurc(losses, losses) == 0
    assert excess_aurc(np.exp(3 * losses), losses) == 0  # any score in the order of the losses


def test_constant_score_has_the_error_rate_as_its_area() -> None:
    wrong = np.arange(400) < 99  # sorted: the naive areas are .034 or .6
    assert aurc(np.zeros(400), wrong) == pytest.approx(0.2475, abs=1e-12)


@pytest.mark.parametrize("levels", [1000, 5, 2])
def test_auroc_is_scikit_learns(levels: int) -> None:
    generator = np.random.default_rng(levels)
    scores = generator.integers(levels, size=300)
    positives = generator.random(300) < 0.2 + 0.5 * scores / levels
    assert auroc(scores, positives) == pytest.approx(roc_auc_score(positives, scores))


def test_auroc_of_one_class_is_undefined() -> None:
    assert math.isnan(auroc([1.0, 2.0], [True, True]))
    assert math.isnan(auroc([1.0, 2.0], [False, False]))


def test_tensors_and_infinite_scores_are_taken() -> None:
    scores = torch.tensor([0.5, math.inf, 0.1], requires_grad=True)
    losses = torch.tensor([0.25, 1.0, 0.0], dtype=torch.bfloat16)
    assert aurc(scores, losses) == pytest.approx((0 + 0.125 + 1.25 / 3) / 3)
    assert auroc(scores, losses > 0.5) == 1


def test_bad_numbers_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="scores and losses have 3 and 2 entries"):
        aurc([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match=r"losses hold 1 NaN or infinite value\(s\), the first at index \(1,\)"):
        augrc([1, 2], [0, math.inf])
    with pytest.raises(ValueError, match="scores hold 1 NaN value"):
        auroc([math.nan, 2], [0, 1])
    with pytest.raises(ValueError, match="positives hold 2; expected booleans"):
        auroc([1, 2], [0, 2])
    with pytest.raises(ValueError, match=r"scores have shape \(0,\)"):
        risk_coverage_curve([], [])
