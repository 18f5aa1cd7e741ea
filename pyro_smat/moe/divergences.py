r"""Closed KLs that torch lacks: from correlated Gaussians to independent ones, without which Pyro samples silently.

.. math:: \mathrm{KL}\big(N(m, \Sigma) \,\|\, N(\mu, \mathrm{diag}\,\sigma^2)\big) = \tfrac12 \sum_e \Big[
          \frac{\Sigma_{ee} + (m_e - \mu_e)^2}{\sigma_e^2} - 1 + 2 \log \sigma_e \Big] - \tfrac12 \log\det \Sigma

Importing the module registers them with torch.
"""

from __future__ import annotations

from torch import Tensor
from torch.distributions import (
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    register_kl,
)


@register_kl(MultivariateNormal, Independent)
def _kl_full(p: MultivariateNormal, q: Independent) -> Tensor:
    """Of a Gaussian with a full covariance to independent normals ``(..., E)``."""
    tril = p.scale_tril
    return _to_normals(p.loc, tril.square().sum(-1), 2 * tril.diagonal(dim1=-2, dim2=-1).log().sum(-1), q)


@register_kl(LowRankMultivariateNormal, Independent)
def _kl_low_rank(p: LowRankMultivariateNormal, q: Independent) -> Tensor:
    """Of a Gaussian with a low-rank covariance to independent normals ``(..., E)``."""
    capacitance = p._capacitance_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    log_det = 2 * capacitance + p.cov_diag.log().sum(-1)
    return _to_normals(p.loc, p.variance, log_det, q)


def _to_normals(loc: Tensor, variance: Tensor, log_det: Tensor, q: Independent) -> Tensor:
    normal = q.base_dist
    if not isinstance(normal, Normal) or q.reinterpreted_batch_ndims != 1:
        raise NotImplementedError  # how torch says that there is no closed form
    scaled = (variance + (loc - normal.loc).square()) / normal.scale.square()
    return 0.5 * ((scaled - 1 + 2 * normal.scale.log()).sum(-1) - log_det)
