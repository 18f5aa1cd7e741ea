"""ILRNormal: which Gaussian the logits induce, its KL, and gradients where eigenvalues meet."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_smat.routing import ilr_basis
from pyro_smat.routing.distributions import ILRNormal


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_from_logits_and_from_factor_are_the_contrasts_of_gaussian_logits() -> None:
    loc, scale, factor = numbers(2, 3, 4), numbers(2, 3, 4, seed=1).exp(), numbers(2, 3, 4, 2, seed=2)
    basis = ilr_basis(4, loc)
    dense = torch.diag_embed(scale.square())
    for found, covariance in (
        (ILRNormal.from_logits(loc, scale), dense),
        (ILRNormal.from_factor(loc, scale, factor), dense + factor @ factor.mT),
    ):
        torch.testing.assert_close(found.mean, loc @ basis)
        torch.testing.assert_close(found.covariance_matrix, basis.mT @ covariance @ basis)


def test_from_log_covariance() -> None:
    loc, raw = numbers(3, 5), numbers(3, 5, 5, seed=1)
    symmetric = raw + raw.mT
    basis = ilr_basis(5, loc)
    values, vectors = torch.linalg.eigh(basis.mT @ symmetric @ basis)
    expected = vectors @ torch.diag_embed(values.exp()) @ vectors.mT
    found = ILRNormal.from_log_covariance(loc, symmetric)
    torch.testing.assert_close(found.covariance_matrix, expected)
    skew = raw - raw.mT
    torch.testing.assert_close(ILRNormal.from_log_covariance(loc, symmetric + skew).covariance_matrix, expected)
    identity = ILRNormal.from_log_covariance(loc, torch.zeros_like(raw)).covariance_matrix
    torch.testing.assert_close(identity, torch.eye(4, dtype=torch.float64).expand(3, 4, 4))


def test_log_covariance_has_a_gradient_at_equal_eigenvalues() -> None:
    loc = numbers(3)

    def entropy(log_covariance: Tensor) -> Tensor:
        return ILRNormal.from_log_covariance(loc, log_covariance + log_covariance.mT).entropy()

    assert torch.autograd.gradcheck(entropy, torch.zeros(3, 3, dtype=torch.float64, requires_grad=True))


def test_kl_is_that_of_the_weights() -> None:
    """Against the closed form for weights of correlated logits, which knows nothing of ILR coordinates."""
    n = 4
    loc_q, loc_p, scale_q, scale_p = numbers(n), numbers(n, seed=1), numbers(n, seed=2).exp(), numbers(n, seed=3).exp()
    factor = numbers(n, 2, seed=4)
    q = ILRNormal.from_factor(loc_q, scale_q, factor)
    p = ILRNormal.from_logits(loc_p, scale_p)
    cov_q, precision_p = scale_q.square().diag() + factor @ factor.T, scale_p.square().diag().inverse()
    ones = torch.ones(n, dtype=torch.float64)
    reduced = precision_p - precision_p @ ones.outer(ones) @ precision_p / (ones @ precision_p @ ones)
    gap = loc_q - loc_p

    def log_volume(precision: Tensor) -> Tensor:
        return (ones @ precision @ ones).log() - torch.logdet(precision)

    expected = 0.5 * (
        (reduced @ cov_q).trace()
        + gap @ reduced @ gap
        - (n - 1)
        + log_volume(precision_p)
        - log_volume(cov_q.inverse())
    )
    torch.testing.assert_close(kl_divergence(q, p), expected)
    shifted = ILRNormal.from_factor(loc_q + 3.0, scale_q, factor)
    torch.testing.assert_close(kl_divergence(shifted, p), expected)


def test_deviations_that_differ_by_many_orders_in_float32() -> None:
    loc, scale = torch.tensor([60.0, -60.0, 0.0, 40.0]), torch.tensor([1e-4, 1e-4, 8.0, 1e3])
    q = ILRNormal.from_logits(loc, scale)
    assert q.loc.dtype == torch.float32
    draws = q.sample((100,), torch.Generator().manual_seed(0))
    assert torch.isfinite(draws).all()
    assert torch.isfinite(q.log_prob(draws)).all()
    assert torch.isfinite(q.mean_weights()).all()


def test_draws_have_the_gradient_of_their_parameters() -> None:
    loc, scale = numbers(3).requires_grad_(), numbers(3, seed=1).exp().requires_grad_()

    def draw(loc: Tensor, scale: Tensor) -> Tensor:
        return ILRNormal.from_logits(loc, scale).rsample((2,), torch.Generator().manual_seed(0))

    assert torch.autograd.gradcheck(draw, (loc, scale))


ONES = torch.ones(2, 3)
REFUSED: list[tuple[Callable[[], object], str]] = [
    (lambda: ILRNormal.from_logits(torch.zeros(1), torch.ones(1)), r"loc has shape \(1,\); expected \(\*b, n\)"),
    (lambda: ILRNormal.from_logits(ONES, ONES[0]), r"scale has shape \(3,\); expected that of loc, \(2, 3\)"),
    (lambda: ILRNormal.from_logits(ONES, 0 * ONES), "scale has entries down to 0; expected standard deviations > 0"),
    (lambda: ILRNormal.from_logits(ONES, torch.nan * ONES), "scale has entries down to nan"),
    (lambda: ILRNormal.from_factor(ONES, ONES, ONES), r"factor has shape \(2, 3\); expected \(2, 3, 'k'\)"),
    (
        lambda: ILRNormal.from_log_covariance(ONES, ONES),
        r"log_covariance has shape \(2, 3\); expected \(2, 3, 3\)",
    ),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_refused(number: int) -> None:
    make, message = REFUSED[number]
    with pytest.raises(ValueError, match=message):
        make()
