"""Learned risk against scikit-learn's ridge, its honesty on its own episodes, and the choice among scores."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from pyro_smat.inference.decision import Deployment
from pyro_smat.inference.decision.scores import Auto, Disagreement, Entropy, LearnedRisk, SupportLoss, Variance
from pyro_smat.inference.decision.scores.standard import candidates, score_names
from pyro_smat.metrics.selective import aurc

THREE = (Entropy(), Variance(), SupportLoss())


def risk_data(count: int, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    generator = np.random.default_rng(seed)
    first, second = generator.standard_normal((2, count))
    losses = 1 + 0.5 * first - 0.3 * second + 0.4 * generator.standard_normal(count)
    return {"entropy": 10 * first + 3, "variance": second, "support_loss": np.full(count, 2.5)}, losses


def all_scores(count: int, seed: int, **known: np.ndarray) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {name: generator.random(count) for name in score_names()} | known


@pytest.mark.parametrize("penalty", [0.5, 10.0])
def test_the_predictor_is_ridge_regression(penalty: float) -> None:
    scores, losses = risk_data(80)
    found = LearnedRisk(scores=THREE, penalty=penalty).fit(scores, losses).score
    assert isinstance(found, LearnedRisk)
    z = np.stack([(scores[k] - scores[k].mean()) / scores[k].std() for k in ("entropy", "variance")], 1)
    assert np.abs(z).max() < 4  # nothing is clipped
    reference = Ridge(alpha=penalty).fit(z, losses)
    np.testing.assert_allclose(found.slopes, [*reference.coef_, 0.0], atol=1e-10)  # the last score does not vary
    np.testing.assert_allclose(found.of_values(scores), reference.predict(z), rtol=1e-10)
    deployment = Deployment(score=found)
    again = Deployment.from_dict(json.loads(json.dumps(deployment.to_dict(), allow_nan=False)))
    assert again.scorer == found
    far = found.of_values({"entropy": [math.inf], "variance": [0.0], "support_loss": [2.5]})
    at = found.of_values({"entropy": [found.centre[0] + 4 * found.scale[0]], "variance": [0.0], "support_loss": [2.5]})
    assert far[0] == pytest.approx(at[0])


def test_its_values_come_from_fits_without_the_episode() -> None:
    scores, losses = risk_data(53)
    found = LearnedRisk(scores=THREE).fit(scores, losses).values
    changed = losses.copy()
    changed[7] += 100.0
    again = LearnedRisk(scores=THREE).fit(scores, changed).values
    fold = np.arange(53) % 5 == 7 % 5
    np.testing.assert_array_equal(found[fold], again[fold])  # neither the episode nor its fold has seen it
    assert (found[~fold] != again[~fold]).all()
    # Nothing to learn: in its own episodes a predictor always finds something, in others it does not.
    gaps = []
    for seed in range(30):
        generator = np.random.default_rng(seed)
        noise, y = all_scores(60, 1000 + seed), generator.random(60)
        fitted = LearnedRisk(queries=True).fit(noise, y)
        own = aurc(fitted.score.of_values(noise), y)
        gaps.append((own - y.mean(), fitted.aurc["learned"] - y.mean()))
    own_gap, honest_gap = np.mean(gaps, 0)
    assert own_gap < -0.05
    assert abs(honest_gap) < 0.03


def test_the_score_with_the_lowest_aurc_is_chosen() -> None:
    losses = np.random.default_rng(0).random(200)
    noisy = losses + 0.1 * np.random.default_rng(1).standard_normal(200)
    scores = all_scores(200, 2, variance=np.exp(20 * noisy), disagreement=losses**3)
    found = Auto().fit(scores, losses)
    assert found.score == Variance()  # better than a linear one: its exponential fools it
    assert set(found.aurc) == {*(score.name for score in candidates(queries=False)), "learned"}
    assert found.aurc["variance"] == min(found.aurc.values()) == pytest.approx(aurc(scores["variance"], losses))
    assert Auto(queries=True).fit(scores, losses).score == Disagreement()
    assert Auto(scores=(Entropy(),)).fit(scores, losses).score.name in ("entropy", "learned")


def test_a_learned_score_wins_where_two_scores_know_half_each() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.standard_normal((2, 300))
    losses = first + second + 0.1 * generator.standard_normal(300)
    scores = all_scores(300, 1, variance=first, support_loss=second)
    chosen = Auto().fit(scores, losses).score
    assert isinstance(chosen, LearnedRisk)
    assert chosen.scores == candidates(queries=False)
    assert not chosen.looks_at_queries
    assert np.corrcoef(chosen.of_values(scores), losses)[0, 1] > 0.98
    assert LearnedRisk(queries=True).fit(scores, losses).score.looks_at_queries
    unreadable = LearnedRisk().fit(scores | {"entropy": np.full(300, np.inf)}, losses).score
    assert isinstance(unreadable, LearnedRisk)
    assert Entropy() not in unreadable.scores


def test_bad_input_is_refused() -> None:
    scores, losses = risk_data(5)
    with pytest.raises(ValueError, match="got 1 episode"):
        LearnedRisk(scores=THREE).fit({k: v[:1] for k, v in scores.items()}, losses[:1])
    with pytest.raises(ValueError, match="got no scores"):
        LearnedRisk(scores=THREE).fit({}, [1.0, 2.0])
    with pytest.raises(ValueError, match="penalty is 0"):
        LearnedRisk(penalty=0)
    with pytest.raises(ValueError, match=r"got 1 scores and .* numbers for them"):
        LearnedRisk(scores=(Entropy(),), slopes=(1.0, 2.0))
    with pytest.raises(ValueError, match=r"score .learned. has no numbers yet"):
        LearnedRisk().of_values(scores)
    fitted = LearnedRisk(scores=(Entropy(), Variance())).fit(scores, losses).score
    with pytest.raises(ValueError, match=r".learned. also reads \['variance'\]"):
        fitted.of_values({"entropy": [1.0]})
    with pytest.raises(ValueError, match=r"scores hold \['variance'\]; expected 'entropy'"):
        Entropy().of_values({"variance": [1.0]})
