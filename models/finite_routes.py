r"""FiniteRoutes: supports whose true route is known, with the Bayes posterior and what any router can hope for.

.. math:: A \sim \pi, \qquad x_1, \dots, x_n \mid A \;\text{i.i.d.} \sim P_A

for J known distributions on a finite alphabet. The program trains and tests guides against a posterior in closed form;
the functions below it say how often even the best router is wrong (facts about products of distributions: with the
Bhattacharyya coefficient :math:`BC(P, Q) = \sum_v \sqrt{p_v q_v}`, that of n draws is :math:`BC^n`).
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from scipy.optimize import minimize_scalar
from scipy.special import bdtrc, ndtr, ndtri
from torch import Tensor

from pyro_smat.float64 import in_float64
from pyro_smat.routing import CATALOG_SITE
from pyro_smat.routing.distributions.catalog import CatalogCategorical
from pyro_smat.routing.local_module import LocalModule


class FiniteRoutes(LocalModule):
    """p(A) p(x_1..x_n | A).

    Args:
        prior: ``(J,)`` probabilities of the routes.
        likelihoods: ``(J, V)``, row j is the distribution P_j of one observation.

    Raises:
        ValueError: for rows that are no distributions.
    """

    prior: Tensor
    likelihoods: Tensor

    def __init__(self, prior: Tensor, likelihoods: Tensor) -> None:
        super().__init__()
        for what, rows in (("prior", prior.unsqueeze(0)), ("likelihoods", likelihoods)):
            if rows.ndim != 2 or (rows < 0).any() or not torch.allclose(rows.sum(-1), rows.new_ones(len(rows))):
                raise ValueError(f"{what} {tuple(rows.shape)} are no distributions; expected rows >= 0 that sum to 1")
        if len(likelihoods) != len(prior):
            raise ValueError(f"got {len(likelihoods)} likelihoods for {len(prior)} routes; expected one each")
        self.register_buffer("prior", prior)
        self.register_buffer("likelihoods", likelihoods)

    def forward(self, observations: Tensor, mask: Tensor | None = None) -> Tensor:
        """Condition on observations ``(B, n)`` in [0, V), those where ``mask`` ``(B, n)`` is True.

        Returns the sampled routes, one-hot ``(*k, B, 1, J)``: the site that guides over a catalog of J routings sample.
        """
        episodes, count = observations.shape
        with pyro.plate("episodes", episodes, dim=-2):
            route = pyro.sample(CATALOG_SITE, CatalogCategorical(self.prior.log()), infer={"enumerate": "parallel"})
            with pyro.plate("observations", count, dim=-1), pyro.poutine.mask(mask=True if mask is None else mask):
                pyro.sample("x", dist.Categorical(route.to(self.likelihoods) @ self.likelihoods), obs=observations)
        return route

    def draw(self, episodes: int, count: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Routes ``(B,)`` and observations ``(B, n)``."""
        routes = torch.multinomial(self.prior, episodes, replacement=True, generator=generator)
        return routes, torch.multinomial(self.likelihoods[routes], count, replacement=True, generator=generator)

    def posterior(self, observations: Tensor, mask: Tensor | None = None) -> Tensor:
        """p(A | x) ``(B, J)`` by Bayes' rule; arguments as in :meth:`forward`."""
        log_p = self.likelihoods.log()[:, observations]  # (J, B, n)
        log_p = log_p if mask is None else log_p.masked_fill(~mask, 0.0)
        return (self.prior.log() + log_p.sum(-1).T).softmax(-1)


def bhattacharyya_bound(prior: Tensor, likelihoods: Tensor, count: int) -> float:
    r"""An upper bound of the misrouting probability of the Bayes router after n observations.

    .. math:: \sum_{A < A'} \sqrt{\pi_A \pi_{A'}}\, BC(P_A, P_{A'})^n \le \frac{J - 1}{2} \max BC^n

    Args:
        prior: ``(J,)``.
        likelihoods: ``(J, V)``.
        count: n.
    """
    affinity = likelihoods.sqrt() @ likelihoods.sqrt().T
    weights = (prior.unsqueeze(0) * prior.unsqueeze(1)).sqrt()
    return float((weights * affinity.pow(count)).triu(diagonal=1).sum())


def chernoff_bound(prior: Tensor, likelihoods: Tensor, count: int) -> float:
    r"""The same with the best exponent of every pair, :math:`\sum_{A < A'} \min_s \pi_A^s \pi_{A'}^{1-s}
    \bigl(\sum_v p_v^s q_v^{1-s}\bigr)^n`: never above the Bhattacharyya bound, which is s = 1/2."""
    total = 0.0
    for a in range(len(prior)):
        for b in range(a + 1, len(prior)):
            p, q = in_float64(likelihoods[a]), in_float64(likelihoods[b])

            def log_term(s: float, p: Tensor = p, q: Tensor = q, a: int = a, b: int = b) -> float:
                coefficient = float((p.pow(s) * q.pow(1 - s)).sum())
                mixed = s * math.log(float(prior[a])) + (1 - s) * math.log(float(prior[b]))
                return mixed + count * math.log(max(coefficient, 1e-300))

            best = minimize_scalar(log_term, bounds=(0.0, 1.0), method="bounded", options={"xatol": 1e-9})
            total += math.exp(min(best.fun, log_term(0.5)))
    return total


def total_variation_bound(routes: int, distance: float, count: int) -> float:
    r""":math:`\frac{J - 1}{2} (1 - \Delta^2)^{n / 2}` for pairwise total variation of at least Delta: the weakest."""
    return 0.5 * (routes - 1) * (1 - distance**2) ** (count / 2)


def bernoulli_error(distance: float, count: int) -> float:
    r"""Exact error of telling :math:`\mathrm{Bern}((1 \pm \Delta)/2)` apart from n draws, fair coin for ties.

    It lies between :math:`\frac14 (1 - \Delta^2)^n` and :math:`\frac12 (1 - \Delta^2)^{n/2}` (Le Cam).
    """
    wrong, half = (1 - distance) / 2, count / 2
    more, at_least = bdtrc(math.floor(half), count, wrong), bdtrc(math.ceil(half) - 1, count, wrong)
    return float(more + at_least) / 2


def gaussian_error(distance: float, count: int) -> float:
    r"""Exact error of telling N(-a/2, 1) and N(a/2, 1) apart from n draws, :math:`\Phi(-\sqrt n\, a / 2)`.

    a is such that the total variation of one draw, :math:`2 \Phi(a/2) - 1`, is ``distance``.
    """
    return float(ndtr(-math.sqrt(count) * ndtri((1 + distance) / 2)))
