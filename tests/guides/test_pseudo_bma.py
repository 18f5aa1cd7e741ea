"""Pseudo-BMA and stacking: against their definitions, and as a guide like the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from pyro_smat.episodes import EpisodeBatch, EpisodeSampler, glyph_pool
from pyro_smat.guides.pseudo_bma import PseudoBMAGuide, stacked_weights
from pyro_smat.inference.assembly.config import RunConfig
from pyro_smat.inference.assembly.router import Router, build_router
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.objective.cvar_elbo import CVaR_ELBO
from pyro_smat.inference.training.temperature_scaling import calibrate_guide
from pyro_smat.models.priors import CatalogPrior
from pyro_smat.networks.heads import leave_one_out_loss
from pyro_smat.routing import Catalog

NAMES = ("a", "b", "c", "d")


@pytest.fixture(scope="module")
def batch() -> EpisodeBatch:
    drawn = EpisodeSampler(glyph_pool("validation"), (2, 4), (2, 4), 2, seed=3).sample(5)
    generator = torch.Generator().manual_seed(0)
    shots = drawn.support.labels.shape[1]
    centres = torch.randn(5, 4, drawn.max_way, 8, generator=generator)
    own = centres.gather(2, drawn.support.labels.clamp(min=0)[:, None, :, None].expand(-1, 4, -1, 8))
    spread = torch.tensor([0.3, 1.0, 2.0, 4.0]).view(1, 4, 1, 1)
    return drawn.with_features(own + spread * torch.randn(5, 4, shots, 8, generator=generator))


def losses(batch: EpisodeBatch) -> torch.Tensor:
    support = batch.support
    assert support.features is not None
    return leave_one_out_loss(
        support.features, support.labels.unsqueeze(1), support.mask.unsqueeze(1), batch.class_mask.unsqueeze(1)
    )


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_it_is_the_softmax_of_the_loss(batch: EpisodeBatch, temperature: float) -> None:
    guide = PseudoBMAGuide(Catalog.k_hot(NAMES), 4, temperature=temperature)
    expected = (-losses(batch) / temperature).softmax(-1)
    torch.testing.assert_close(guide.posterior(batch).routing_probabilities(), expected, rtol=1e-4, atol=1e-6)


def test_cold_is_the_best_source_and_hot_is_the_prior(batch: EpisodeBatch) -> None:
    catalog = Catalog.k_hot(NAMES)
    prior = CatalogPrior(catalog, logits=[1.0, 0.0, 0.0, -1.0])
    cold = PseudoBMAGuide(catalog, 4, temperature=1e-4).posterior(batch)
    assert torch.equal(cold.logits.argmax(-1), losses(batch).argmin(-1))
    hot = PseudoBMAGuide(catalog, 4, prior=prior, temperature=1e6).posterior(batch).routing_probabilities()
    torch.testing.assert_close(hot, prior.base_logits().softmax(-1).expand_as(hot), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("weights", ["pseudo_bma", "stacking"])
def test_a_forbidden_source_stays_forbidden(batch: EpisodeBatch, weights: str) -> None:
    catalog = Catalog.k_hot(NAMES)
    prior = CatalogPrior(catalog, logits=[-torch.inf, 0.0, 0.0, 0.0])
    guide = PseudoBMAGuide(catalog, 4, prior=prior, weights=weights)  # type: ignore[arg-type]  # one of the two
    probabilities = guide.posterior(batch).routing_probabilities()
    assert (probabilities[:, 0] == 0).all()
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(5))


def test_stacking_is_the_best_mixture_of_predictions() -> None:
    log_likelihoods = torch.randn(6, 3, 12, generator=torch.Generator().manual_seed(2)).mul(2).double() - 1
    found = stacked_weights(log_likelihoods, torch.ones(6, 12, dtype=torch.bool)).numpy()
    for own, weights in zip(log_likelihoods.exp().numpy(), found, strict=True):

        def score(free: np.ndarray, own: np.ndarray = own) -> float:
            return -float(np.log(free @ own).mean())

        best = minimize(
            score, np.full(3, 1 / 3), bounds=[(1e-9, 1)] * 3, constraints={"type": "eq", "fun": lambda w: w.sum() - 1}
        )
        assert score(weights) <= best.fun + 2e-3


def test_mixtures_of_weights_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"the catalog mixes weights \(a\+b, a\+c.*expected single sources"):
        PseudoBMAGuide(Catalog.k_hot(NAMES, max_sources=2), 4)
    with pytest.raises(ValueError, match=r"temperature is 0; expected a number of nats > 0"):
        PseudoBMAGuide(Catalog.k_hot(NAMES), 4, temperature=0)


@pytest.fixture(scope="module")
def router() -> Router:
    noise = {"label_noise": 0.1}
    return build_router(
        RunConfig(guide={"kind": "pseudo_bma", **noise}, model={"kind": "routed", **noise}, experts={"count": 0})
    )


def test_the_objective_sums_it_exactly(router: Router) -> None:
    batch = router.features().attach(EpisodeSampler(glyph_pool("validation"), 3, 2, 2).sample(4))
    terms = [CVaR_ELBO(rho=1.0).terms(router.model, router.guide, batch).loss for _ in range(2)]
    assert torch.isfinite(terms[0])
    assert torch.equal(terms[0], terms[1])  # nothing is drawn


def test_it_is_saved_calibrated_and_loaded_like_any_guide(router: Router, tmp_path: Path) -> None:
    sampler = EpisodeSampler(glyph_pool("validation"), 3, 4, 4, seed=1)
    batch = router.features().attach(sampler.sample(6))
    assert isinstance(router.guide, PseudoBMAGuide)
    fit = calibrate_guide(router.model, router.guide, [batch])
    assert fit.loss_after <= fit.loss_before
    RoutedClassifier(router).save(tmp_path)
    again = RoutedClassifier.load(tmp_path)
    expected = router.guide.posterior(batch).routing_probabilities()
    torch.testing.assert_close(again.router.guide.posterior(batch).routing_probabilities(), expected)
    router.guide.temperature_scale.fill_(1.0)
