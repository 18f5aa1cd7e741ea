"""The probability of misrouting: two numbers are recovered, and a posterior that is right is left alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from pyro_smat.guides import CatalogPosterior
from pyro_smat.inference.decision.misrouting import MisroutingProbability, top_route_doubt
from pyro_smat.routing import Catalog


def log_odds(p: np.ndarray) -> np.ndarray:
    return np.log(p) - np.log1p(-p)


@pytest.mark.parametrize(("slope", "offset"), [(1.0, 0.0), (0.5, 0.3), (1.8, -0.6)])
def test_the_numbers_that_made_the_episodes_are_found(slope: float, offset: float) -> None:
    generator = np.random.default_rng(0)
    doubts = generator.uniform(0.01, 0.8, size=20_000)
    truth = 1 / (1 + np.exp(-slope * log_odds(doubts) - offset))
    wrong = generator.random(20_000) < truth
    found = MisroutingProbability.fit(doubts, wrong)
    assert (found.slope, found.offset) == pytest.approx((slope, offset), abs=0.06)
    free = LogisticRegression(C=1e6).fit(log_odds(doubts)[:, None], wrong)  # with this many the priors say nothing
    np.testing.assert_allclose(
        found.probability(doubts), free.predict_proba(log_odds(doubts)[:, None])[:, 1], atol=2e-3
    )


def test_few_episodes_leave_the_posterior_nearly_as_it_is() -> None:
    doubts = np.array([0.01, 0.02, 0.05, 0.01])
    found = MisroutingProbability.fit(doubts, np.zeros(4, bool))  # separable: no maximum of the likelihood alone
    assert 0 < found.slope < np.inf
    assert (found.probability(doubts) < doubts).all()
    assert found.probability([0.5])[0] > 0.2
    assert MisroutingProbability().probability([0.0, 0.3, 1.0]).round(5).tolist() == [0.0, 0.3, 1.0]


def test_it_is_about_the_top_route() -> None:
    catalog = Catalog.k_hot(("a", "b", "c"), 0, max_sources=1)
    logits = torch.tensor([[0.7, 0.2, 0.1], [1 / 3, 1 / 3, 1 / 3]]).log()
    doubts = top_route_doubt(CatalogPosterior(logits, catalog, num_sources=3))
    torch.testing.assert_close(doubts, torch.tensor([0.3, 2 / 3], dtype=torch.float64), atol=1e-6, rtol=0)


def test_other_labels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"misrouted holds 0\.5"):
        MisroutingProbability.fit([0.1, 0.2], [0, 0.5])
    with pytest.raises(ValueError, match=r"doubts are in \[0\.1, 2\]"):
        MisroutingProbability.fit([0.1, 2.0], [0, 1])
    with pytest.raises(ValueError, match="slope is 0"):
        MisroutingProbability(slope=0.0)
