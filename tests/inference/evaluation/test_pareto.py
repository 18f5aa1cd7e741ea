"""The sweep: its numbers against predictions made one by one, its settings, its front; bad input."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats

from pyro_smat.cost import CostModel, non_dominated, open_entries_of, solve_weight
from pyro_smat.episodes import EpisodeBatch
from pyro_smat.guides.posterior import keep_largest
from pyro_smat.inference.decision import Mixture, predict
from pyro_smat.inference.evaluation.pareto import (
    Setting,
    by_lagrangian,
    by_rule,
    projected,
    sweep,
    truncation,
    truncations,
)
from pyro_smat.inference.objective.candidates import support_candidate_losses
from pyro_smat.routing import Catalog

BYTES = CostModel((3.0,), (50.0,), entry=1.0, fixed=7.0, unit="bytes")
ABSTRACT = CostModel((1.0,), (0.0,))


def test_rows_are_the_predictions_of_the_rules(make_router: Callable) -> None:
    router = make_router("logistic_normal", sources=3, experts=2)
    router.model.eval()
    settings = [
        truncation(3, 2),
        truncation(2, 2),
        truncation(1, 0),
        by_rule(router.model, "fallback"),
        by_rule(router.model, {"kind": "posterior_predictive", "num_samples": 4}),
    ]
    table = sweep(router.model, router.guide, [router.batch], settings, [BYTES, ABSTRACT], timed=1, repeats=1)
    posterior = router.guide.posterior(router.batch)
    expected = {
        "3 sources, 2 experts": predict(router.model, posterior, router.batch, "mean"),
        "2 sources, 2 experts": predict(router.model, posterior, router.batch, {"kind": "top_k", "k": 2}),
        "fallback": predict(router.model, posterior, router.batch, "fallback"),
    }
    assert table.setting.tolist() == [s.name for s in settings]
    for name, probabilities in expected.items():
        row = table[table.setting == name].iloc[0]
        accuracy, loss = [], []
        for b in range(len(router.batch)):
            asked = router.batch.query.mask[b]
            own, labels = probabilities[b][asked], router.batch.query.labels[b][asked]
            accuracy.append(float((own.argmax(-1) == labels).double().mean()))
            loss.append(float(-own[torch.arange(len(own)), labels].log().mean()))
        assert row.accuracy == pytest.approx(np.mean(accuracy))
        assert row.nll == pytest.approx(np.mean(loss))
        low, high = stats.t.interval(0.95, 3, np.mean(accuracy), stats.sem(accuracy))
        assert (row.accuracy_low, row.accuracy_high) == pytest.approx((low, high), nan_ok=True)


def test_costs_networks_and_what_is_open(make_router: Callable) -> None:
    router = make_router("logistic_normal", sources=3, experts=2)
    router.model.eval()
    opened = open_entries_of(router.model.experts.masks(), router.model.network.space)[:, 0].double()
    settings = [
        truncation(3, 2),
        truncation(2, 0),
        by_rule(router.model, {"kind": "posterior_predictive", "num_samples": 4}),
    ]
    table = sweep(
        router.model, router.guide, [router.batch], settings, [BYTES, ABSTRACT], budget=13.0, timed=1, repeats=1
    ).set_index("setting")
    everything = 7 + 9 + 50 + float(opened.sum())
    assert table.cost_bytes.tolist() == pytest.approx([everything, 7 + 6, 4 * everything])
    assert table.cost_abstract.tolist() == [3, 2, 12]
    assert table.networks.tolist() == [1, 1, 4]
    assert table.sources.tolist() == [3, 2, 3]
    assert table.experts.tolist() == [2, 0, 2]
    assert table.within_budget.tolist() == [0, 1, 0]
    assert table.gain.iloc[0] == table.gain_low.iloc[0] == table.gain_high.iloc[0] == 0
    assert (table.latency_ms > 0).all()
    assert (table.compose_ms > 0).all()
    for column in ("cost_bytes", "cost_abstract", "latency_ms"):
        front = non_dominated(table[column].to_numpy(), table.accuracy.to_numpy())
        assert table[f"front_{column}"].tolist() == front.tolist()


def test_batches_are_pooled_and_gains_are_paired(make_router: Callable) -> None:
    router = make_router("point", sources=3, experts=0, episodes=6)
    single, settings = [router.batch], truncations(3, 0)
    again = make_router("point", sources=3, experts=0, episodes=6, seed=20).batch
    both = sweep(router.model, router.guide, [*single, again], settings, [ABSTRACT], timed=2, repeats=1)
    apart = [sweep(router.model, router.guide, [b], settings, [ABSTRACT], timed=9, repeats=1) for b in (*single, again)]
    for column in ("accuracy", "nll", "gain"):
        np.testing.assert_allclose(both[column], (apart[0][column] + apart[1][column]) / 2, atol=1e-12)
    np.testing.assert_allclose(both.gain, both.accuracy - both.accuracy[0], atol=1e-12)
    assert both.setting.tolist() == ["3 sources", "2 sources", "1 source"]


@pytest.mark.parametrize("family", ["catalog", "dirichlet"])
def test_truncation_keeps_the_largest(make_router: Callable, family: str) -> None:
    router = make_router(family, sources=3, experts=2)
    posterior = router.guide.posterior(router.batch)
    for k in (1, 2, 3):
        for e in (0, 1, 2):
            mixture = truncation(k, e).route(posterior, router.batch)
            coefficients, weights = mixture.coefficients, mixture.weights
            ours, theirs = coefficients[0].split([3, 2], -1)
            torch.testing.assert_close(ours, keep_largest(posterior.mean[:, :3], k))
            assert ((ours > 0).sum(-1) == k).all()
            assert ((theirs > 0).sum(-1) == e).all()
            assert torch.equal(weights, torch.ones(1, 4, dtype=weights.dtype))
    assert len(truncations(3, 2)) == 9


def test_projection_keeps_every_task_within_its_budget(make_router: Callable) -> None:
    router = make_router("logistic_normal", sources=3, experts=2, blocks=2)
    router.model.eval()
    space = router.model.network.space
    opened = open_entries_of(router.model.experts.masks(), space)
    model = CostModel.of_bytes(space)
    budget = 1.6 * model.least
    settings = [truncation(3, 2), projected(model, budget, opened)]
    table = sweep(router.model, router.guide, [router.batch], settings, [model], budget=budget, timed=1, repeats=1)
    assert table.within_budget.tolist() == [0.0, 1.0]
    assert table.cost_bytes[1] <= budget < table.cost_bytes[0]


def test_the_lagrangian_takes_the_candidate_of_least_penalised_loss(make_router: Callable) -> None:
    router = make_router("logistic_normal", sources=3, experts=0)
    router.model.eval()
    candidates = Catalog.k_hot(("a", "b", "c"), max_sources=3).coefficients.double()
    costs = ABSTRACT.cost_of(candidates)
    losses = support_candidate_losses(router.model, router.batch, candidates).mT.detach()
    solved = solve_weight(losses, costs, 1.5)
    setting = by_lagrangian(router.model, candidates, costs, solved.weight)
    table = sweep(router.model, router.guide, [router.batch], [setting], [ABSTRACT], budget=1.5, timed=1, repeats=1)
    assert table.cost_abstract[0] == pytest.approx(float(solved.costs.mean()))
    assert table.within_budget[0] == pytest.approx(solved.satisfied)
    coefficients = setting.route(router.guide.posterior(router.batch), router.batch).coefficients
    assert torch.equal(coefficients[0], candidates[solved.chosen])


def test_a_setting_of_the_users_own(make_router: Callable) -> None:
    """Uniform mixing as two halves: two networks of equal weight answer as one of them."""
    router = make_router("point", sources=2, experts=0)

    def uniform(posterior: object, batch: EpisodeBatch) -> Mixture:
        return Mixture.equal(torch.full((2, len(batch), 2), 0.5, dtype=torch.float64))

    settings = [
        Setting("twice", uniform),
        Setting("once", lambda p, b: uniform(p, b).merged()),
    ]
    table = sweep(router.model, router.guide, [router.batch], settings, [ABSTRACT], timed=1, repeats=1)
    assert table.nll[0] == pytest.approx(table.nll[1])
    assert table.networks.tolist() == [2, 1]
    assert table.front_cost_abstract.tolist() == [False, True]


def test_bad_input_is_refused(make_router: Callable) -> None:
    router = make_router("point", sources=3, experts=0)
    model, guide, batches = router.model, router.guide, [router.batch]
    with pytest.raises(ValueError, match="0 batches, 1 settings, 3 timed; expected some of each"):
        sweep(model, guide, [], [truncation(1)], [ABSTRACT])
    with pytest.raises(ValueError, match="1 batches, 0 settings"):
        sweep(model, guide, batches, [], [ABSTRACT])
    with pytest.raises(ValueError, match="expected different names, and different units"):
        sweep(model, guide, batches, [truncation(1), truncation(1)], [ABSTRACT])
    with pytest.raises(ValueError, match="different units"):
        sweep(model, guide, batches, [truncation(1)], [ABSTRACT, ABSTRACT])
    with pytest.raises(ValueError, match="got 0 sources and 0 experts to keep"):
        truncation(0)
    with pytest.raises(ValueError, match="expected at least 7"):
        sweep(model, guide, batches, [projected(CostModel((1.0,), (0.0,), fixed=6.0), 6.5)], [ABSTRACT])
