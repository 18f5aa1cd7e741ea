"""Held-out elpd, checks of query labels, and supports unlike those of training."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import arviz as az
import numpy as np
import pytest
import torch
import xarray as xr

from pyro_smat.inference.diagnostics.batches import with_permuted_labels
from pyro_smat.inference.diagnostics.datatree import to_datatree
from pyro_smat.inference.diagnostics.draws import RoutingDraws
from pyro_smat.inference.diagnostics.label_checks import flatten_queries, label_calibration
from pyro_smat.inference.diagnostics.misspecification import SupportNovelty, support_summaries
from pyro_smat.inference.diagnostics.predictive import episode_elpd, predictive_comparison

EPISODES, QUERIES, CLASSES = 300, 6, 4


def made_draws(power: float = 1.0, bias: float = 0.0, draws: int = 200, seed: int = 0) -> RoutingDraws:
    """Two routings; the routing says how likely class 0..3 is, and queries of an episode share it.

    Labels come from a routing drawn with the true probabilities; the program says them to a power, or with class 0
    lifted.
    """
    rng = np.random.default_rng(seed)
    laws = rng.dirichlet(np.ones(CLASSES), (2, EPISODES, QUERIES))
    q = rng.dirichlet(np.ones(2), EPISODES)

    def choose(p: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return (p.cumsum(-1) < generator.random((*p.shape[:-1], 1))).sum(-1).clip(max=p.shape[-1] - 1)

    true = choose(q, rng)
    labels = choose(laws[true, np.arange(EPISODES)], rng)
    said = laws**power + bias * (np.arange(CLASSES) == 0)
    said /= said.sum(-1, keepdims=True)
    rows = choose(np.broadcast_to(q, (draws, EPISODES, 2)), rng)
    each = said[rows, np.arange(EPISODES)]  # (K, B, Q, W)
    predicted = choose(each, rng)
    log_p = np.log(np.take_along_axis(each, np.broadcast_to(labels, (draws, *labels.shape))[..., None], -1)[..., 0])
    zero = np.zeros((draws, EPISODES))
    return RoutingDraws(
        coefficients=np.eye(2)[rows], prior_coefficients=np.eye(2)[rows], log_q=zero, log_prior=zero,
        log_likelihood=log_p, predicted=predicted, labels=labels, route=true, shots=np.ones(EPISODES, int),
        condition=np.full(EPISODES, "clean"), sources=("a", "b"), routing=rows, probabilities=q,
        prior_probabilities=np.array([0.5, 0.5]), routings=("a", "b"),
    )  # fmt: skip


def test_elpd_by_hand() -> None:
    log_p = np.log(np.array([[[0.5, 0.2]], [[0.1, 0.4]]]))  # two draws, one episode, two queries
    assert episode_elpd(log_p) == pytest.approx(np.log(0.3) + np.log(0.3))
    log_p[:, :, 1] = np.nan
    assert episode_elpd(log_p) == pytest.approx(np.log(0.3))


def test_the_true_law_wins_and_arviz_says_by_how_much() -> None:
    programs = {"true": made_draws(), "sharp": made_draws(3.0), "biased": made_draws(bias=2.0)}
    found = predictive_comparison({name: draws.log_likelihood for name, draws in programs.items()})
    assert found.table.index[0] == "true"
    points = {name: episode_elpd(draws.log_likelihood) for name, draws in programs.items()}
    for name in ("sharp", "biased"):
        difference = points["true"] - points[name]
        assert abs(float(found.table.loc[name, "elpd_diff"])) == pytest.approx(difference.sum(), rel=0.02, abs=1.0)
        assert difference.mean() > 2 * difference.std() / np.sqrt(EPISODES)
    assert found.episodes == EPISODES
    with pytest.raises(ValueError, match="at least two"):
        predictive_comparison({"one": programs["true"].log_likelihood})
    with pytest.raises(ValueError, match="same episodes"):
        predictive_comparison({"a": programs["true"].log_likelihood, "b": programs["true"].log_likelihood[:, :-1]})


def test_held_out_elpd_is_not_leave_one_out(make_router: Callable) -> None:
    """az.loo takes queries out of a posterior that they never entered."""
    router = make_router("logistic_normal", sources=3, experts=0)
    draws = RoutingDraws.collect(router.model, router.guide, [router.batch], num_samples=300)
    tree = to_datatree(draws)
    flat = tree["log_likelihood"]["labels"].stack(point=("episode", "query")).dropna("point").drop_vars(
        ["point", "episode", "query"]
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loo = az.loo(
            xr.DataTree.from_dict({"/posterior": tree["posterior"].to_dataset(), "/log_likelihood": flat.to_dataset()})
        )
    assert loo.elpd < episode_elpd(draws.log_likelihood).sum()


def test_labels_known_biased_and_sharp() -> None:
    good = label_calibration(made_draws(), power_repeats=0)
    assert good.p_value > 0.05
    assert good.reference == "query labels"
    assert label_calibration(made_draws(3.0), power_repeats=0).p_value < 1e-3
    assert label_calibration(made_draws(bias=2.0), power_repeats=0).p_value < 1e-3
    with pytest.raises(ValueError, match="at least 20"):
        label_calibration(made_draws(draws=10))
    few = made_draws()
    with pytest.raises(ValueError, match="at least 100"):
        label_calibration(replace(few, labels=few.labels[:50], predicted=few.predicted[:, :50]))


def test_flat_labels_for_arviz() -> None:
    tree = to_datatree(made_draws())
    flat = flatten_queries(tree)
    assert flat["observed_data"]["labels"].sizes == {"point": EPISODES}
    assert flatten_queries(tree, one_each=False)["observed_data"]["labels"].sizes == {"point": EPISODES * QUERIES}
    plot = az.plot_ppc_pava(flat, data_type="categorical", backend="matplotlib")
    assert plot.viz["figure"].item().axes


def test_strange_supports_are_told_and_usual_ones_are_not() -> None:
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((4, 4))
    train, usual = rng.standard_normal((800, 4)) @ mixing, rng.standard_normal((500, 4)) @ mixing
    novelty = SupportNovelty.fit(train)
    assert (novelty.p_value(usual) < 0.05).mean() == pytest.approx(0.05, abs=0.03)
    strange = usual + 6 * np.linalg.eigh(mixing.T @ mixing)[1][:, 0]
    assert (novelty.p_value(strange) < 0.05).mean() > 0.9
    narrow = 0.8 * usual  # nearer to the middle than training: not strange
    assert (novelty.p_value(narrow) < 0.05).mean() < 0.05
    again = SupportNovelty.from_dict(novelty.to_dict())
    np.testing.assert_array_equal(again.score(strange), novelty.score(strange))
    with pytest.raises(ValueError, match="at least 4 D"):
        SupportNovelty.fit(train[:50])
    with pytest.raises(ValueError, match="finite numbers"):
        SupportNovelty.fit(np.where(train > 5, np.nan, train))


def test_summaries_of_a_guide(make_router: Callable) -> None:
    router = make_router("catalog", sources=3)
    found = support_summaries(router.guide, [router.batch[:2], router.batch[2:]])
    assert found.shape == (4, 9)
    other = replace(router.batch, query=replace(router.batch.query, images=torch.zeros_like(router.batch.query.images)))
    np.testing.assert_allclose(support_summaries(router.guide, [other]), found, atol=1e-9)
    permuted = with_permuted_labels(router.batch, torch.Generator().manual_seed(0))
    assert np.abs(support_summaries(router.guide, [permuted]) - found).max() > 1e-3
