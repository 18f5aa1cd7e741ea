"""Logistic-normal posteriors: KL and density against closed forms and quadrature, and the covariances on offer."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import integrate, linalg
from small_posteriors import SHAPES
from torch import Tensor

from pyro_smat.encoders import EvidenceEncoder
from pyro_smat.guides import LogisticNormalGuide, LogisticNormalPosterior
from pyro_smat.inference import CVaR_ELBO
from pyro_smat.models.priors import LogisticNormalPrior
from pyro_smat.routing import ilr_basis

COVARIANCES = ("diagonal", "low_rank", "full")


def normal(sources: int, experts: int, episodes: int = 2, seed: int = 0) -> LogisticNormalPosterior:
    generator = torch.Generator().manual_seed(seed)
    loc = torch.randn(episodes, sources + experts, generator=generator, dtype=torch.float64)
    scale = 0.4 + torch.rand(episodes, sources + experts, generator=generator, dtype=torch.float64)
    return LogisticNormalPosterior(loc, scale, num_sources=sources)


def prior_of(sources: int, experts: int, scale: float = 1.3) -> LogisticNormalPrior:
    loc = torch.linspace(-1, 0.5, sources + experts, dtype=torch.float64)
    return LogisticNormalPrior(sources, experts, loc=loc, scale=scale).double()


def ilr_kl(mu: Tensor, s: Tensor, mu0: Tensor, s0: Tensor) -> Tensor:
    """KL of the softmaxes of N(mu, diag s^2) and N(mu0, diag s0^2), without any basis of ILR coordinates.

    P0 = S0^-1 - S0^-1 1 1' S0^-1 / (1' S0^-1 1);
    KL = [tr(P0 S) + (mu - mu0)' P0 (mu - mu0) - (n - 1) + ln(det S0 1'S0^-1 1 / (det S 1'S^-1 1))] / 2.
    """
    n = len(mu)
    inverse = torch.diag(s0**-2)
    ones = torch.ones(n, 1, dtype=mu.dtype)
    total = (ones.T @ inverse @ ones).squeeze()
    p0 = inverse - inverse @ ones @ ones.T @ inverse / total
    shift = mu - mu0
    log_ratio = (s0**2).log().sum() + total.log() - (s**2).log().sum() - (s**-2).sum().log()
    return 0.5 * ((p0.diag() * s**2).sum() + shift @ p0 @ shift - (n - 1) + log_ratio)


@pytest.mark.parametrize(("sources", "experts"), SHAPES)
def test_kl_is_the_ilr_formula(sources: int, experts: int) -> None:
    q, p = normal(sources, experts), prior_of(sources, experts)
    for i in range(2):
        expected = torch.zeros((), dtype=torch.float64)
        for part in (slice(0, sources), slice(sources, None)):
            if len(q.loc[i, part]) > 1:
                expected += ilr_kl(q.loc[i, part], q.scale[i, part], p.loc[part], p.scale[part])
        torch.testing.assert_close(q.kl(p)[i], expected, rtol=1e-10, atol=1e-10)


def test_common_shift_of_the_logits_costs_nothing() -> None:
    q, p = normal(4, 3), prior_of(4, 3)
    moved = LogisticNormalPosterior(q.loc + torch.tensor([3.0] * 4 + [-7.0] * 3), q.scale, num_sources=4)
    torch.testing.assert_close(moved.kl(p), q.kl(p), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(moved.mean, q.mean)
    apart = LogisticNormalPosterior(q.loc + torch.tensor([3.0] + [0.0] * 6), q.scale, num_sources=4)
    assert ((apart.kl(p) - q.kl(p)).abs() > 0.1).all()


@pytest.mark.parametrize(("sources", "experts"), [(2, 0), (3, 2), (4, 3)])
def test_kl_by_monte_carlo(sources: int, experts: int) -> None:
    """E_q [log q - log p] over draws of coefficients, both densities from log_prob."""
    q, p = normal(sources, experts), prior_of(sources, experts)
    as_posterior = LogisticNormalPosterior(p.loc.expand(2, -1), p.scale.expand(2, -1), num_sources=sources)
    draws = q.sample(200_000, torch.Generator().manual_seed(1))
    ratio = q.log_prob(draws) - as_posterior.log_prob(draws)
    error = ratio.std(0) / math.sqrt(len(draws))
    assert ((ratio.mean(0) - q.kl(p)).abs() < 5 * error).all()
    assert (error < 0.01).all()


def test_log_prob_is_normalised_for_two_sources() -> None:
    q = normal(2, 0, episodes=1)
    basis = ilr_basis(2, q.loc)

    def density(u: float) -> float:
        weights = (torch.tensor([u], dtype=torch.float64) @ basis.mT).softmax(-1)
        return q.log_prob(weights.expand(1, 2)).exp().item()

    assert integrate.quad(density, -15, 15, points=[0.0])[0] == pytest.approx(1.0, abs=1e-6)


def test_log_prob_is_normalised_for_three_sources() -> None:
    q = normal(3, 0, episodes=1)
    grid = torch.linspace(-12, 12, 481, dtype=torch.float64)
    ilr = torch.cartesian_prod(grid, grid)
    weights = (ilr @ ilr_basis(3, q.loc).mT).softmax(-1)
    density = q.log_prob(weights.unsqueeze(1)).exp().squeeze(1).view(481, 481).numpy()
    total = np.trapezoid(np.trapezoid(density, grid.numpy()), grid.numpy())
    assert total == pytest.approx(1.0, abs=1e-6)


def test_mean_leaves_the_global_generator_alone_and_has_a_gradient() -> None:
    loc = torch.zeros(1, 3, requires_grad=True)
    before = torch.get_rng_state()
    mean = LogisticNormalPosterior(loc, torch.ones(1, 3), num_sources=3).mean
    assert torch.equal(before, torch.get_rng_state())
    mean[0, 0].backward()
    assert loc.grad is not None
    assert loc.grad[0, 0] > 0.05
    torch.testing.assert_close(loc.grad.sum(), torch.tensor(0.0), rtol=0, atol=1e-6)


# --- covariances ------------------------------------------------------------------------------------------------------


def stated_covariance(q: LogisticNormalPosterior, factor: Tensor, kind: str, part: slice) -> Tensor:
    """Of the ILR coordinates of one part of episode 0, as the docstring says, with scipy's matrix exponential."""
    scale, columns = q.scale[0, part], factor[0, part]
    basis = ilr_basis(len(scale), scale).numpy()
    diagonal = np.diag(scale.numpy() ** 2)
    if kind == "diagonal":
        return torch.from_numpy(basis.T @ diagonal @ basis)
    if kind == "low_rank":
        return torch.from_numpy(basis.T @ (diagonal + (columns @ columns.T).numpy()) @ basis)
    first, second = columns.numpy()[:, : columns.shape[1] // 2], columns.numpy()[:, columns.shape[1] // 2 :]
    logarithm = np.diag(np.log(np.diag(diagonal))) + first @ second.T + second @ first.T
    return torch.from_numpy(linalg.expm(basis.T @ logarithm @ basis))


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("kind", COVARIANCES)
def test_covariance_is_as_stated(kind: str, blocks: int) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (2, *(blocks,) * (blocks > 1), 5)
    loc = torch.randn(shape, generator=generator, dtype=torch.float64)
    scale = 0.4 + torch.rand(shape, generator=generator, dtype=torch.float64)
    factor = 0.5 * torch.randn(*shape, 4, generator=generator, dtype=torch.float64)
    q = LogisticNormalPosterior(loc, scale, num_sources=3, factor=factor, covariance=kind)  # type: ignore[arg-type]
    first = (slice(None),) if blocks == 1 else (slice(None), 1)
    flat = LogisticNormalPosterior(loc[first], scale[first], num_sources=3)
    for name, part in (("source_ilr", slice(0, 3)), ("expert_ilr", slice(3, 5))):
        site = q.parts[name]
        found = site.covariance_matrix[0, 0] if blocks == 1 else site.covariance_matrix[0, 0, 1]  # type: ignore[attr-defined]
        torch.testing.assert_close(found, stated_covariance(flat, factor[first], kind, part))
    draws = q.sample(100_000, torch.Generator().manual_seed(3))[(slice(None), 0, *first[1:])][:, :3]
    ilr = draws.log() @ ilr_basis(3, draws)
    expected = stated_covariance(flat, factor[first], kind, slice(0, 3))
    torch.testing.assert_close(ilr.T.cov(), expected, rtol=0.03, atol=0.02)


@pytest.mark.parametrize("kind", COVARIANCES)
def test_guides_covariance_is_equivariant_in_the_sources(kind: str, make_router: Callable) -> None:
    """Variances of logit differences move with the sources."""
    guide, batch = _router(kind, make_router)
    order = [2, 0, 1]
    before = _difference_variances(guide.posterior(batch))
    after = _difference_variances(guide.posterior(batch.with_features(batch.support.features[:, order])))
    torch.testing.assert_close(after, before[:, order][:, :, order], rtol=1e-6, atol=1e-9)
    assert (before.flatten(1).std(-1) > 1e-3).all()


@pytest.mark.parametrize("kind", ["low_rank", "full"])
def test_guides_covariance_is_not_that_of_independent_logits(kind: str, make_router: Callable) -> None:
    """Independent logits have Var(l_0 - l_1) + Var(l_2 - l_3) = Var(l_0 - l_2) + Var(l_1 - l_3)."""
    guide, batch = _router(kind, make_router, sources=4)
    v = _difference_variances(guide.posterior(batch))
    assert ((v[:, 0, 1] + v[:, 2, 3]) - (v[:, 0, 2] + v[:, 1, 3])).abs().min() > 1e-5
    diagonal, batch = _router("diagonal", make_router, sources=4)
    v = _difference_variances(diagonal.posterior(batch))
    torch.testing.assert_close(v[:, 0, 1] + v[:, 2, 3], v[:, 0, 2] + v[:, 1, 3])


def _router(kind: str, make_router: Callable, sources: int = 3) -> tuple:
    router = make_router("logistic_normal", sources, guide_options={"covariance": kind})
    return router.guide, router.batch


def _difference_variances(q: LogisticNormalPosterior) -> Tensor:
    """Var(l_i - l_j), ``(B, R, R)``."""
    covariance = q.parts["source_ilr"].covariance_matrix[:, 0]  # type: ignore[attr-defined]
    basis = ilr_basis(q.num_sources, covariance)
    full = basis @ covariance @ basis.mT
    variance = full.diagonal(dim1=-2, dim2=-1)
    return variance.unsqueeze(-1) + variance.unsqueeze(-2) - 2 * full


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("kind", ["low_rank", "full"])
def test_gradients_reach_the_factors_of_a_fresh_guide(kind: str, blocks: int, make_router: Callable) -> None:
    router = make_router(blocks=blocks)
    torch.manual_seed(0)
    guide = LogisticNormalGuide(3, 2, num_blocks=blocks, encoder=EvidenceEncoder(8), covariance=kind, rank=3).double()  # type: ignore[arg-type]
    CVaR_ELBO(rho=1.0).loss_and_grads(router.model, guide, router.batch)
    columns = {"low_rank": 3, "full": 10}[kind]
    for head, groups in ((guide.router.source_head, blocks), (guide.router.expert_head[-1], 2 * blocks)):
        assert isinstance(head, torch.nn.Linear)
        assert head.weight.grad is not None
        gradient = head.weight.grad.unflatten(0, (groups, 2 + columns))[:, 2:]
        assert torch.isfinite(gradient).all()
        assert (gradient.abs().sum((0, 2)) > 0).all()


def test_refused_covariances() -> None:
    for options in ({"covariance": "banded"}, {"covariance": "low_rank", "rank": 0}):
        with pytest.raises(ValueError, match=r"covariance is .* expected one of \('diagonal', 'low_rank', 'full'\)"):
            LogisticNormalGuide(3, **options)  # type: ignore[arg-type]
