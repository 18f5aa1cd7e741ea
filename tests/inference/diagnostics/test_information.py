"""Information of posteriors and the three ways to collapse, against exact sums on FiniteRoutes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from conftest import LAWS, PRIOR, sharpen

from pyro_smat.guides import CatalogPosterior, PointPosterior
from pyro_smat.inference.diagnostics.batches import with_permuted_labels, with_shots
from pyro_smat.inference.diagnostics.information import information, negative_control, posterior_information
from pyro_smat.models.finite_routes import FiniteRoutes
from pyro_smat.routing import Catalog

P = PRIOR.numpy()


def posteriors(world: FiniteRoutes, n: int = 4000, shots: int = 5) -> tuple[np.ndarray, np.ndarray]:
    truth, x = world.draw(n, shots, torch.Generator().manual_seed(0))
    return world.posterior(x).numpy(), truth.numpy()


def test_known_truth_is_the_mutual_information_of_the_model(world: FiniteRoutes) -> None:
    """Exact: a sum over all 3^5 supports."""
    x = torch.tensor(list(product(range(3), repeat=5)))
    q, weight = world.posterior(x), (PRIOR * LAWS[:, x].prod(-1).T).sum(1)
    exact = float((weight[:, None] * q * (q / PRIOR).log()).sum())
    q, truth = posteriors(world)
    found = information(q, P, truth=truth)
    assert found.mutual_information == pytest.approx(exact, abs=0.02)
    assert found.aggregate_kl < 0.002  # the aggregate posterior of exact posteriors is the prior
    assert found.kl == pytest.approx(found.mutual_information + found.aggregate_kl)
    assert found.kl == pytest.approx((q * np.log(q / P)).sum(1).mean())
    assert found.collapse == "none"
    assert found.temperature is not None
    assert found.temperature.calibrated


def test_biased_sharp_and_blind(world: FiniteRoutes) -> None:
    q, truth = posteriors(world)
    exact = information(q, P)
    biased = information(sharpen(q / P, 1.0), P)
    assert biased.aggregate_kl > 50 * exact.aggregate_kl
    sharp = information(sharpen(q, 2.0), P, truth=truth)
    assert sharp.mutual_information > 1.2 * exact.mutual_information
    assert sharp.temperature is not None
    assert sharp.temperature.estimate == pytest.approx(2.0, abs=0.15)
    blind = information(np.broadcast_to(P, q.shape), P)
    assert (blind.mutual_information, blind.collapse) == (pytest.approx(0.0, abs=1e-9), "prior")
    point = information(np.eye(4)[q.argmax(1)], P, truth=truth)
    assert point.collapse == "point"
    few = information(np.broadcast_to([0.97, 0.01, 0.01, 0.01], q.shape), P)
    assert few.collapse == "few routings"
    assert few.active.max() == pytest.approx(0)


def test_certainty_is_no_collapse_where_it_is_right() -> None:
    truth = np.random.default_rng(0).integers(0, 4, 300)
    sure = np.where(np.eye(4)[truth] > 0, 0.9997, 0.0001)
    assert information(sure, np.full(4, 0.25), truth=truth).collapse == "none"
    assert information(sure, np.full(4, 0.25)).collapse == "point"  # nobody knows better


def test_negative_control(world: FiniteRoutes) -> None:
    q, _ = posteriors(world, 200, shots=60)
    assert negative_control(q, np.broadcast_to(P, q.shape), P).passed
    habit = negative_control(q, sharpen(q, 1.0), P)  # as sure of permuted supports
    assert not habit.passed
    assert habit.control_information == pytest.approx(habit.information)


def test_permuted_labels_keep_the_images_and_the_counts(make_router: Callable) -> None:
    batch = make_router().batch
    permuted = with_permuted_labels(batch, torch.Generator().manual_seed(1))
    assert torch.equal(permuted.support.images, batch.support.images)
    assert torch.equal(permuted.support.mask, batch.support.mask)
    assert not torch.equal(permuted.support.labels, batch.support.labels)
    for i in range(len(batch)):
        shown = batch.support.mask[i]
        own, theirs = permuted.support.labels[i][shown], batch.support.labels[i][shown]
        assert torch.equal(own.sort().values, theirs.sort().values)
    again = with_permuted_labels(batch, torch.Generator().manual_seed(1))
    assert torch.equal(again.support.labels, permuted.support.labels)


def test_nested_supports_are_prefixes(make_router: Callable) -> None:
    batch = make_router().batch
    one, two = with_shots(batch, 1), with_shots(batch, 2)
    assert (two.support.mask | one.support.mask).equal(two.support.mask)
    assert torch.equal(with_shots(batch, 99).support.mask, batch.support.mask)
    for i in range(len(batch)):
        labels = one.support.labels[i][one.support.mask[i]]
        assert sorted(labels.tolist()) == list(range(int(batch.way[i])))
    with pytest.raises(ValueError, match="at least 1"):
        with_shots(batch, 0)


def test_what_training_logs() -> None:
    catalog = Catalog.k_hot(("a", "b", "c"))
    sure = CatalogPosterior(60 * torch.eye(3, dtype=torch.float64), catalog, num_sources=3)
    found = posterior_information(sure, generator=torch.Generator().manual_seed(0))
    assert found.mutual_information == pytest.approx(np.log(3))
    assert found.effective_routings == pytest.approx(3)
    assert (found.entropy, found.variance) == (pytest.approx(0, abs=1e-9), 0)
    same = posterior_information(CatalogPosterior(torch.zeros(5, 3), catalog, num_sources=3))
    assert same.mutual_information == pytest.approx(0, abs=1e-6)
    assert np.isnan(posterior_information(PointPosterior(torch.zeros(2, 3), 3)).mutual_information)


def test_refused(world: FiniteRoutes) -> None:
    q, _ = posteriors(world, 100)
    with pytest.raises(ValueError, match="at least 50"):
        information(q[:49], P)
    with pytest.raises(ValueError, match="forbids routing 3"):
        information(q, np.array([0.5, 0.3, 0.2, 0.0]))
    with pytest.raises(ValueError, match="no distributions"):
        information(np.full_like(q, np.nan), P)
