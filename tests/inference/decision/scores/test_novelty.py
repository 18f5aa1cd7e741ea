"""Novelty against scikit-learn's covariance, on tasks like and unlike those of validation, saved and read again."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.covariance import empirical_covariance

from pyro_smat.inference.decision.deployment import Deployment
from pyro_smat.inference.decision.scores import Entropy, KLToPrior, Novelty
from pyro_smat.inference.decision.scores.standard import score_names

READS = (Entropy(), KLToPrior())


def validation(n: int = 400) -> tuple[dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(0)
    first = rng.normal(size=n)
    return {"entropy": 1 + first, "kl_to_prior": 5 - 3 * first + rng.normal(size=n)}, rng.random(n)


def test_is_mahalanobis_distance() -> None:
    scores, losses = validation()
    found = Novelty(scores=READS).fit(scores, losses).score
    assert isinstance(found, Novelty)
    rows = np.stack(list(scores.values()), 1)
    covariance = empirical_covariance(rows) * len(rows) / (len(rows) - 1)
    covariance = covariance * (0.9 + 0.1 * np.eye(2))
    new = {"entropy": np.array([1.0, 4.0]), "kl_to_prior": np.array([5.0, 14.0])}
    off = np.stack(list(new.values()), 1) - rows.mean(0)
    expected = [o @ np.linalg.solve(covariance, o) for o in off]
    np.testing.assert_allclose(found.of_values(new), expected, rtol=1e-9)


def test_sees_what_no_score_sees_alone() -> None:
    scores, losses = validation()
    fitted = Novelty(scores=READS).fit(scores, losses)
    usual = np.quantile(fitted.values, 0.99)
    both_high = fitted.score.of_values({"entropy": [3.0], "kl_to_prior": [11.0]})  # each within two deviations
    assert both_high[0] > 2 * usual
    assert fitted.score.of_values({"entropy": [math.inf], "kl_to_prior": [5.0]})[0] == math.inf


def test_values_are_from_other_folds() -> None:
    scores, losses = validation(10)
    fitted = Novelty(scores=READS).fit(scores, losses)
    assert fitted.values.mean() > fitted.score.of_values(scores).mean()  # in sample, distances are too small


def test_a_deployment_keeps_it() -> None:
    scores, losses = validation()
    score = Novelty(scores=READS).fit(scores, losses).score
    again = Deployment.from_dict(Deployment(score=score, threshold=1.0).to_dict()).scorer
    assert again == score


def test_does_not_compete_and_says_what_is_missing() -> None:
    assert "novelty" not in score_names()
    assert not Novelty().deployable
    with pytest.raises(ValueError, match=r"score .novelty. has no numbers yet"):
        Novelty(scores=READS).of_values({"entropy": [1.0], "kl_to_prior": [1.0]})
    scores, losses = validation()
    with pytest.raises(ValueError, match="at least 10"):
        Novelty(scores=READS).fit({name: value[:4] for name, value in scores.items()}, losses[:4])
    with pytest.raises(ValueError, match="finite and varies"):
        Novelty(scores=READS).fit({"entropy": np.ones(400)}, losses)
    with pytest.raises(ValueError, match="also reads \\['kl_to_prior'\\]"):
        Novelty(scores=READS).fit(scores, losses).score.of_values({"entropy": [1.0]})
    with pytest.raises(ValueError, match="n, n and n"):
        Novelty(scores=READS, centre=(1.0, 2.0), precision=(1.0,))
