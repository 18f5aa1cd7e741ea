"""Temperature scaling: known temperatures are recovered, and nothing gets worse on the episodes it is fitted on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import astuple

import pytest
import torch
from torch import Tensor

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.inference.decision import predict
from pyro_smat.inference.training.temperature_scaling import calibrate_guide, ensemble_loss, fit_temperature

Arrays = tuple[Tensor, Tensor, Tensor]


def simulated(episodes: int = 4000, routings: int = 5, queries: int = 6, seed: int = 0) -> Arrays:
    """Labels of the mixture itself: a routing from softmax(logits), then the classes of the queries from it.

    Returns calibrated logits ``(N, J)``, log-likelihoods ``(N, J, Q)`` of the drawn labels, and a mask ``(N, Q)``.
    """
    generator = torch.Generator().manual_seed(seed)
    logits = 1.5 * torch.randn(episodes, routings, generator=generator, dtype=torch.float64)
    route = torch.multinomial(logits.softmax(-1), queries, replacement=True, generator=generator)  # (N, Q)
    classes = (3 * torch.randn(episodes, routings, queries, 4, generator=generator, dtype=torch.float64)).softmax(-1)
    drawn_from = classes.gather(1, route[:, None, :, None].expand(-1, 1, -1, 4)).squeeze(1)  # (N, Q, 4)
    labels = torch.multinomial(drawn_from.flatten(0, 1), 1, generator=generator).view(episodes, 1, queries, 1)
    log_likelihoods = classes.gather(-1, labels.expand(-1, routings, -1, -1)).squeeze(-1).log()
    mask = torch.rand(episodes, queries, generator=generator) < 0.7
    mask[:, 0] = True
    return logits, log_likelihoods, mask


@pytest.mark.parametrize("wrong_by", [1 / 3, 1.0, 3.0])
def test_the_true_temperature_is_recovered(wrong_by: float) -> None:
    logits, log_likelihoods, mask = simulated()
    fit = fit_temperature(wrong_by * logits, log_likelihoods, mask)
    assert fit.temperature == pytest.approx(wrong_by, rel=0.08)
    calibrated = ensemble_loss(logits, log_likelihoods, mask).item()
    assert fit.loss_after <= calibrated
    assert fit.loss_after == pytest.approx(calibrated, abs=1e-3)
    if wrong_by == 1.0:
        assert fit.loss_before == pytest.approx(calibrated, abs=1e-12)
    else:
        assert fit.loss_before > calibrated + 0.02


def test_the_loss_by_loop() -> None:
    logits, log_likelihoods, mask = simulated(5)
    for temperature in (0.5, 1.0, 4.0):
        losses = []
        for i in range(5):
            weights = (logits[i] / temperature).exp() / (logits[i] / temperature).exp().sum()
            nlls = [-math.log(weights @ log_likelihoods[i, :, q].exp()) for q in range(6) if mask[i, q]]
            losses.append(sum(nlls) / len(nlls))
        found = ensemble_loss(logits, log_likelihoods, mask, temperature).item()
        assert found == pytest.approx(sum(losses) / 5, rel=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_never_worse_than_no_scaling_and_than_a_fine_grid(seed: int) -> None:
    """Few episodes whose logits say nothing true: L(T) may have several minima."""
    generator = torch.Generator().manual_seed(seed)
    logits = 6 * torch.randn(3, 4, generator=generator)
    log_likelihoods = -3 * torch.rand(3, 4, 2, generator=generator) * (1 + 4 * torch.rand(3, 4, 1, generator=generator))
    mask = torch.ones(3, 2, dtype=torch.bool)
    fit = fit_temperature(logits, log_likelihoods, mask)
    arrays = logits.double(), log_likelihoods.double(), mask
    grid = [ensemble_loss(*arrays, math.exp(t)).item() for t in torch.linspace(-4, 4, 2001).tolist()]
    assert fit.loss_before == pytest.approx(ensemble_loss(*arrays).item(), rel=1e-12)
    assert fit.loss_after == pytest.approx(ensemble_loss(*arrays, fit.temperature).item(), rel=1e-12)
    assert fit.loss_after <= fit.loss_before
    assert fit.loss_after <= min(grid) + 1e-6
    assert -4 <= math.log(fit.temperature) <= 4


def test_the_ends_of_the_range() -> None:
    """Logits that are always right want T to 0, logits that are always wrong want it to infinity."""
    right = torch.tensor([[0.1, 0.0]]).expand(3, 2)
    log_likelihoods = torch.tensor([0.9, 0.1]).log().view(1, 2, 1).expand(3, 2, 2)
    mask = torch.ones(3, 2, dtype=torch.bool)
    assert math.log(fit_temperature(right, log_likelihoods, mask).temperature) == pytest.approx(-4, abs=0.01)
    assert math.log(fit_temperature(-right, log_likelihoods, mask).temperature) == pytest.approx(4, abs=0.01)


def test_where_the_temperature_does_not_matter_it_stays_one() -> None:
    mask = torch.ones(2, 3, dtype=torch.bool)
    log_likelihoods = torch.tensor([-1.0, -2.0, -0.5]).expand(2, 1, 3)
    assert fit_temperature(torch.ones(2, 1), log_likelihoods, mask).temperature == 1.0
    assert fit_temperature(torch.zeros(2, 4), log_likelihoods.expand(2, 4, 3), mask).temperature == 1.0


def test_only_differences_of_logits_and_shown_queries_count() -> None:
    logits, log_likelihoods, mask = simulated(50)
    fit = fit_temperature(logits, log_likelihoods, mask)
    shifted = fit_temperature(logits + torch.arange(50.0).unsqueeze(-1), log_likelihoods, mask)
    hidden = torch.where(mask.unsqueeze(1), log_likelihoods, torch.nan)
    for other in (shifted, fit_temperature(logits, hidden, mask)):
        assert other.temperature == pytest.approx(fit.temperature, rel=1e-4)
        assert other.loss_after == pytest.approx(fit.loss_after, rel=1e-9)


def test_impossible_labels_and_forbidden_routings_stay_finite() -> None:
    """Likelihoods far below what a float holds, and a routing whose posterior mass is 0."""
    logits = torch.tensor([[2.0, 0.0, -torch.inf], [1.0, 0.0, -torch.inf]])
    log_likelihoods = torch.tensor([[-900.0, -1000.0, -1.0], [-900.0, -5.0, -1.0]]).unsqueeze(-1)
    fit = fit_temperature(logits, log_likelihoods, torch.ones(2, 1, dtype=torch.bool))
    assert math.isfinite(fit.loss_after)
    assert fit.loss_after > 400  # nothing but the forbidden routing explains the first episode


def test_arrays_that_do_not_fit_are_refused() -> None:
    logits, log_likelihoods, mask = simulated(4)
    bad: list[Arrays] = [
        (logits[:3], log_likelihoods, mask),
        (logits, log_likelihoods[..., 0], mask),
        (logits, log_likelihoods, mask[:, :3]),
        (logits, log_likelihoods, mask & (torch.arange(4) > 0).unsqueeze(-1)),
    ]
    for arrays in bad:
        with pytest.raises(ValueError, match=r"expected \(N, J\), \(N, J, Q\) and \(N, Q\) with at least one query"):
            fit_temperature(*arrays)
    with pytest.raises(ValueError, match="loss is nan before scaling"):
        fit_temperature(logits * torch.nan, log_likelihoods, mask)


def deployed_loss(router, batches: list[EpisodeBatch]) -> float:  # type: ignore[no-untyped-def]
    """What the ensemble over the whole catalog loses, by way of its predictions."""
    router.model.eval()
    router.guide.eval()
    losses = []
    for batch in batches:
        p = predict(router.model, router.guide.posterior(batch), batch, {"kind": "top_k", "k": 10_000})
        nll = -p.gather(-1, batch.query.labels.unsqueeze(-1)).squeeze(-1).log() * batch.query.mask
        losses.append(nll.sum(-1) / batch.query.mask.sum(-1))
    return torch.cat(losses).detach().mean().item()


def test_a_guide_is_calibrated(make_router: Callable) -> None:
    """Batches of different sizes; the stored temperature does to the deployed predictions what the fit says."""
    router = make_router("catalog", episodes=6)
    batches = [router.batch[:2], router.batch[2:], make_router("catalog", episodes=3, seed=5).batch]
    router.model.train()
    router.guide.train()
    raw = router.guide.posterior(router.batch).routing_probabilities().detach()
    fit = calibrate_guide(router.model, router.guide, batches)
    assert router.model.training
    assert router.guide.training
    assert router.guide.temperature_scale.item() == pytest.approx(fit.temperature)
    assert fit.loss_after < fit.loss_before - 1e-4
    scaled = (raw.log() / fit.temperature).softmax(-1)
    torch.testing.assert_close(
        router.guide.posterior(router.batch).routing_probabilities().detach(), scaled, rtol=1e-5, atol=1e-7
    )
    assert deployed_loss(router, batches) == pytest.approx(fit.loss_after, rel=1e-5)
    again = calibrate_guide(router.model, router.guide, batches)  # replaced, not multiplied
    assert astuple(again) == pytest.approx(astuple(fit), rel=1e-6)
    router.guide.temperature_scale.fill_(1.0)
    assert deployed_loss(router, batches) == pytest.approx(fit.loss_before, rel=1e-5)


def test_calibration_needs_batches(make_router: Callable) -> None:
    router = make_router("catalog")
    with pytest.raises(ValueError, match="got no batches; expected held-out episodes"):
        calibrate_guide(router.model, router.guide, [])
