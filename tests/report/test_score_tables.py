"""Tables of doubt: AURC over all conditions and within each, and warnings where something is not what it should be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_evaluation import made_evaluation

from pyro_smat.inference.decision import Deployment
from pyro_smat.inference.decision.misrouting import MisroutingProbability
from pyro_smat.inference.decision.reliability import Reliability
from pyro_smat.inference.evaluation import Evaluation, abstention_outcome, doubt_outcome
from pyro_smat.metrics import aurc
from pyro_smat.report.tables import POOLED, abstention_table, misrouting_table, score_table

RULE = "posterior_predictive"


@pytest.fixture
def evaluations() -> dict[str, Evaluation]:
    """In the second condition the entropy orders tasks the wrong way round."""
    generator = np.random.default_rng(0)
    easy, hard = generator.uniform(0, 0.2, 300), generator.uniform(0.2, 0.6, 300)
    return {
        "clean": made_evaluation(easy, generator, {"entropy": easy}),
        "confounded": made_evaluation(hard, generator, {"entropy": 1 - hard}),
    }


def test_scores_are_compared_within_and_over_conditions(evaluations: dict[str, Evaluation]) -> None:
    deployment = Deployment(reliability=Reliability(risk="entropy", tolerance=0.3))
    found = score_table(deployment, evaluations)
    assert found.columns == ("clean", "confounded", POOLED)
    rows = {name: [cell.value for cell in cells] for name, cells in found.rows}
    losses = [e.loss(RULE) for e in evaluations.values()]
    scores = [e.scores["entropy"] for e in evaluations.values()]
    expected = [*map(aurc, scores, losses), aurc(np.concatenate(scores), np.concatenate(losses))]
    assert rows["entropy"] == pytest.approx(expected)
    assert rows["predicted risk"] == pytest.approx(expected)
    assert rows["in random order"] == pytest.approx([*(x.mean() for x in losses), np.concatenate(losses).mean()])
    assert expected[1] > losses[1].mean()
    assert "Warning: worse than random order: predicted risk in confounded" in found.note
    assert "in clean" not in found.note
    quiet = score_table(deployment, {"clean": evaluations["clean"]})
    assert quiet.columns == ("clean",)
    assert "Warning" not in quiet.note


def test_doubts_and_what_became_of_them(evaluations: dict[str, Evaluation]) -> None:
    deployment = Deployment(reliability=Reliability(risk="entropy", tolerance=0.3))
    rows = {name: [cell.value for cell in cells] for name, cells in abstention_table(deployment, evaluations).rows}
    assert rows["tasks doubted (%)"] == [0.0, 100.0]
    assert rows["tasks routed (%)"] == [100.0, 100.0]
    errors = [100 * (1 - e.accuracy(RULE).mean()) for e in evaluations.values()]
    assert rows["wrong answers of reliable tasks (%)"][0] == pytest.approx(errors[0])
    assert rows["wrong answers of doubted tasks (%)"][1] == pytest.approx(errors[1])
    assert abstention_outcome(evaluations["confounded"], deployment).coverage == 1  # doubted, and yet routed
    falling = abstention_table(deployment.but(threshold=0.1), evaluations)
    assert "exceeds 0.100 (chosen on validation episodes) use source 0" in falling.note


def test_misrouting_that_is_not_what_is_stated_is_warned_of(evaluations: dict[str, Evaluation]) -> None:
    def routed(evaluation: Evaluation, share: float) -> Evaluation:  # all put .6 on source 0
        wrong = np.arange(len(evaluation)) < share * len(evaluation)
        return replace(evaluation, route=wrong.astype(int), source_of_route=(0, 1))

    known = {"clean": routed(evaluations["clean"], 0.4), "confounded": routed(evaluations["confounded"], 0.7)}
    found = misrouting_table(Deployment(misrouting=MisroutingProbability(episodes=50)), known)
    rows = {name: list(cells) for name, cells in found.rows}
    assert [cell.value for cell in rows["stated (%)"]] == pytest.approx([40, 40])
    assert [cell.value for cell in rows["misrouted tasks (%)"]] == pytest.approx([40, 70])
    assert all(cell.low < cell.value < cell.high for cell in rows["misrouted tasks (%)"])
    assert "Warning: not what happened in confounded (40% stated, 70% misrouted)" in found.note
    assert "clean (" not in found.note
    assert np.isnan(doubt_outcome(evaluations["clean"], Deployment()).misrouting.value)  # no route is known
