"""The accounting of abstention: an identity, with the conditional loss of the fallback."""

from __future__ import annotations

import math

import numpy as np
import pytest
from made_evaluation import made_evaluation
from scipy.stats import ttest_rel

from pyro_smat.inference.decision import Deployment
from pyro_smat.inference.evaluation import abstention_outcome


def test_the_decomposition_is_an_identity_with_the_conditional_fallback_loss() -> None:
    generator = np.random.default_rng(1)
    evaluation = made_evaluation(generator.beta(1, 2, 200), generator)
    deployment = Deployment(threshold=0.5)
    outcome = abstention_outcome(evaluation, deployment)
    share = outcome.coverage
    assert 0.5 < share < 0.95
    assert outcome.system_loss == pytest.approx(share * outcome.accepted_loss + (1 - share) * outcome.fallback_loss)
    assert outcome.fallback_loss > outcome.fallback_loss_of_all + 0.1  # hard for one is hard for the other
    assert outcome.gain == pytest.approx(outcome.abstained_loss - outcome.fallback_loss)
    abstained = evaluation.scores["entropy"] > 0.5
    pairs = evaluation.loss("posterior_predictive")[abstained], evaluation.loss("fallback")[abstained]
    interval = ttest_rel(*pairs).confidence_interval(0.95)
    assert (outcome.gain_low, outcome.gain_high) == pytest.approx((interval.low, interval.high))


@pytest.mark.parametrize(("threshold", "share"), [(math.inf, 1.0), (-math.inf, 0.0)])
def test_the_decomposition_where_a_part_is_empty(threshold: float, share: float) -> None:
    generator = np.random.default_rng(2)
    evaluation = made_evaluation(generator.random(20), generator)
    outcome = abstention_outcome(evaluation, Deployment(threshold=threshold))
    assert outcome.coverage == share
    assert math.isnan(outcome.gain) == (share == 1.0)
    assert math.isnan(outcome.accepted_loss) == (share == 0.0)
    assert outcome.system_loss == pytest.approx(evaluation.loss("posterior_predictive" if share else "fallback").mean())
