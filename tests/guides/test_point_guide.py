"""Point posteriors: one routing, and a KL that is minus the log prior density."""

from __future__ import annotations

import math

import pytest
import torch
from small_posteriors import SHAPES, prior_of_sites

from pyro_smat.guides import LogisticNormalPosterior, PointPosterior
from pyro_smat.models.priors import DirichletPrior, LogisticNormalPrior
from pyro_smat.routing import ilr_basis


@pytest.mark.parametrize(("sources", "experts"), SHAPES)
def test_point_is_its_softmax(sources: int, experts: int) -> None:
    logits = torch.randn(2, sources + experts, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q = PointPosterior(logits, sources)
    expected = torch.cat([logits[:, :sources].softmax(-1), logits[:, sources:].softmax(-1)], -1)
    torch.testing.assert_close(q.mean, expected)
    torch.testing.assert_close(q.mode, expected)
    torch.testing.assert_close(q.sample(3), expected.expand(3, -1, -1))
    assert (q.log_prob(expected) == 0).all()
    assert (q.sample(64).var(0) == 0).all()
    if sources > 1:
        assert (q.log_prob(expected.roll(1, -1)) == -math.inf).all()


@pytest.mark.parametrize(("sources", "experts"), [(2, 0), (3, 2), (1, 3)])
def test_kl_is_minus_the_log_density_of_a_gaussian(sources: int, experts: int) -> None:
    logits = torch.randn(2, sources + experts, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = prior_of_sites("point", sources, experts)
    assert isinstance(p, LogisticNormalPrior)
    as_posterior = LogisticNormalPosterior(p.loc.expand(2, -1), p.scale.expand(2, -1), num_sources=sources)
    q = PointPosterior(logits, sources)
    torch.testing.assert_close(q.kl(p), -as_posterior.log_prob(q.mean))


@pytest.mark.parametrize("blocks", [1, 2])
def test_kl_is_minus_the_log_density_of_a_dirichlet(blocks: int) -> None:
    """The density of weights times their Jacobian sqrt(n) prod w; blocks are independent."""
    logits = torch.randn(2, blocks, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a = torch.tensor([0.5, 1.5, 3.0], dtype=torch.float64)
    q = PointPosterior(logits.squeeze(1), 3)
    w = logits.softmax(-1)
    log_density = torch.distributions.Dirichlet(a).log_prob(w) + w.log().sum(-1) + 0.5 * math.log(3)
    torch.testing.assert_close(q.kl(DirichletPrior(3, 0, concentration=a, num_blocks=blocks)), -log_density.sum(-1))


def test_the_site_is_the_contrasts_of_the_logits() -> None:
    logits = torch.tensor([[1.0, -2.0, 0.5, 3.0, 1.0]], dtype=torch.float64)
    sites = PointPosterior(logits, 3).sites()
    expected = logits[:, :3] @ ilr_basis(3, logits)
    torch.testing.assert_close(sites["source_ilr"].v, expected.unsqueeze(1))
    shifted = PointPosterior(logits + 7.0, 3).sites()
    torch.testing.assert_close(shifted["source_ilr"].v, expected.unsqueeze(1))
