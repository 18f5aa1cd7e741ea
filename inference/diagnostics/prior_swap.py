r"""Another prior without retraining: :math:`q'(c \mid S) \propto q(c \mid S)\, p'(c) / p(c)`.

Exact for a catalog; on the simplex by Pareto-smoothed importance weights of the draws, refused for every episode whose
k-hat says that the draws do not reach the new posterior. Valid as far as q is near Bayes under p. The weights are put
on the *finished* posterior: a temperature fitted on its logits is not applied to the new prior, as it would be by
exchanging the guide's prior.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pyro_smat.inference.diagnostics.draws import RoutingDraws
from pyro_smat.inference.diagnostics.pareto import khat_per_episode
from pyro_smat.inference.diagnostics.pareto_tail import logsumexp
from pyro_smat.metrics.arrays import FloatArray
from pyro_smat.models.priors import RoutingPrior
from pyro_smat.routing import CATALOG_SITE


@dataclass(frozen=True)
class SwappedPosterior:
    """Posteriors of B episodes under another prior.

    Attributes:
        weights: ``(K, B)`` of the draws, or of the J routings ``(J, B)`` of a catalog, sum 1 over the first dim; NaN
            where refused.
        mean: ``(B, [L,] C)`` of the coefficients, NaN where refused.
        khat: ``(B,)``, -inf for a catalog, whose swap is exact.
        refused: ``(B,)`` bool.
        method: "exact" or "importance".
        log_predictive: ``(B,)`` log predictive density of the queries under the new posterior, NaN where refused.
    """

    weights: FloatArray
    mean: FloatArray
    khat: FloatArray
    refused: np.ndarray
    method: str
    log_predictive: FloatArray


def swap_catalog_prior(probabilities: FloatArray, prior: FloatArray, new_prior: FloatArray) -> FloatArray:
    """Posteriors ``(B, J)`` under another prior over the same catalog.

    Args:
        probabilities: ``(B, J)``; prior, new_prior: ``(J,)``.

    Raises:
        ValueError: where the new prior allows a routing that the old one forbids: no posterior says anything of it.

    Example:
        >>> swap_catalog_prior(np.array([[0.5, 0.5]]), np.array([0.5, 0.5]), np.array([0.9, 0.1])).round(2).tolist()
        [[0.9, 0.1]]
    """
    q, old, new = (np.asarray(a, dtype=np.float64) for a in (probabilities, prior, new_prior))
    if old.shape != new.shape or q.shape[-1:] != old.shape:
        raise ValueError(f"posteriors are {q.shape}, priors {old.shape} and {new.shape}; expected one catalog for all")
    lost = (old == 0) & (new > 0)
    if lost.any():
        raise ValueError(
            f"the new prior allows routings {np.flatnonzero(lost).tolist()} that the old one forbids; retrain, "
            "or forbid them too"
        )
    with np.errstate(divide="ignore"):
        log_weights = np.log(q) + np.where(new > 0, np.log(new), -np.inf) - np.where(old > 0, np.log(old), 0.0)
    return np.exp(log_weights - logsumexp(log_weights)[:, None])


@torch.no_grad()
def swap_prior(draws: RoutingDraws, new_prior: RoutingPrior) -> SwappedPosterior:
    """The posteriors of the draws under another prior.

    Args:
        draws: of the trained guide.
        new_prior: with the same sites.

    Raises:
        ValueError: for a prior with other sites, one with mass where the old has none, or draws of a point posterior.
    """
    sites = set(new_prior.site_names)
    if draws.probabilities is not None and draws.prior_probabilities is not None:
        if sites != {CATALOG_SITE}:
            raise ValueError(
                f"the new prior has sites {sorted(sites)}; expected {[CATALOG_SITE]}, a prior over a catalog"
            )
        new = new_prior.distribution(CATALOG_SITE, {}).logits.softmax(-1).cpu().double().numpy()
        q = swap_catalog_prior(draws.probabilities, draws.prior_probabilities, new)
        return _of_catalog(draws, q)
    if sites != set(draws.latents):
        raise ValueError(
            f"the new prior has sites {sorted(sites)} and the draws {sorted(draws.latents)}; expected the same"
        )
    like = next(new_prior.buffers(), torch.empty(0))
    latents = {name: torch.as_tensor(value).to(like) for name, value in draws.latents.items()}
    log_new = new_prior.log_prob(latents).squeeze(-1).cpu().double().numpy()
    return reweighted(draws, log_new)


def reweighted(draws: RoutingDraws, log_new_prior: FloatArray) -> SwappedPosterior:
    """Draws on the simplex weighted from their prior to ``log_new_prior`` ``(K, B)`` at the draws.

    Raises:
        ValueError: for draws of a point posterior or fewer than 100 of them.
    """
    if np.isnan(draws.log_q).any():
        raise ValueError("a point posterior has no weights to swap a prior by; expected draws of a density")
    found = khat_per_episode(log_new_prior, draws.log_prior, reference="new prior")
    refused = ~found.reliable
    weights = np.where(refused, np.nan, np.exp(found.log_weights))
    mean = np.einsum("kb,kb...->b...", weights, draws.coefficients)
    likelihood = draws.log_likelihood
    return SwappedPosterior(weights, mean, found.khat, refused, "importance", _log_predictive(weights, likelihood))


def _of_catalog(draws: RoutingDraws, q: FloatArray) -> SwappedPosterior:
    assert draws.catalog is not None
    assert draws.routing_log_likelihood is not None
    return SwappedPosterior(
        weights=q.T,
        mean=np.tensordot(q, draws.catalog, 1),
        khat=np.full(len(q), -np.inf),
        refused=np.zeros(len(q), dtype=bool),
        method="exact",
        log_predictive=_log_predictive(q.T, draws.routing_log_likelihood),
    )


def _log_predictive(weights: FloatArray, log_likelihood: FloatArray) -> FloatArray:
    """Sum over queries of log sum_k w_k p(y | c_k), ``(B,)``."""
    shown = ~np.isnan(log_likelihood)
    with np.errstate(divide="ignore"):
        mixed = np.log(weights)[..., None] + np.where(shown, log_likelihood, 0.0)
    refused = np.isnan(weights).any(0)
    per_query = logsumexp(np.moveaxis(np.nan_to_num(mixed, nan=0.0, neginf=-np.inf), 0, -1))
    return np.where(refused, np.nan, np.where(shown[0], per_query, 0.0).sum(-1))


@dataclass(frozen=True)
class PriorComparison:
    """One other prior beside the router's own, without retraining.

    Attributes:
        name: of the prior.
        loss, new_loss: mean negative log predictive density, in nats per query, over episodes that are not refused.
        difference, difference_se: new minus old and its standard error over episodes.
        weights, new_weights: ``(C,)`` mean coefficients, mean over blocks.
        refused: share of episodes that importance weights cannot reach.
    """

    name: str
    loss: float
    new_loss: float
    difference: float
    difference_se: float
    weights: FloatArray
    new_weights: FloatArray
    refused: float


def compare_prior(draws: RoutingDraws, new_prior: RoutingPrior, name: str = "new prior") -> PriorComparison:
    """What the posterior under another prior would say and lose; errors as in :func:`swap_prior`."""
    found = swap_prior(draws, new_prior)
    if draws.probabilities is not None and draws.routing_log_likelihood is not None:
        old = _log_predictive(draws.probabilities.T, draws.routing_log_likelihood)
    else:
        old = _log_predictive(np.full(draws.log_q.shape, 1 / draws.num_draws), draws.log_likelihood)
    kept = ~found.refused
    queries = (draws.labels >= 0).sum(1)[kept]
    losses, new_losses = -old[kept] / queries, -found.log_predictive[kept] / queries
    change = new_losses - losses
    weights = draws.coefficients.mean(0)[kept]
    means = [np.atleast_2d(part.mean(0) if kept.any() else part.sum(0)).mean(0) for part in (weights, found.mean[kept])]
    some = kept.any()
    return PriorComparison(
        name=name,
        loss=float(losses.mean()) if some else float("nan"),
        new_loss=float(new_losses.mean()) if some else float("nan"),
        difference=float(change.mean()) if some else float("nan"),
        difference_se=float(change.std(ddof=1) / np.sqrt(len(change))) if len(change) > 1 else float("nan"),
        weights=means[0],
        new_weights=means[1],
        refused=float(found.refused.mean()),
    )


@dataclass(frozen=True)
class PriorPath:
    r"""Expected cost against loss along :math:`p_\beta \propto p\, e^{-\beta\,\mathrm{cost}}`, without retraining.

    Attributes:
        betas: ``(n,)``; cost: ``(n,)`` mean expected cost of a task's routing, in units of the costs.
        loss: ``(n,)`` mean negative log predictive density, in nats per query; loss_se: its standard error over
        episodes.
        refused: ``(n,)`` share of episodes that importance weights cannot reach; they are left out of cost and loss.
    """

    betas: FloatArray
    cost: FloatArray
    loss: FloatArray
    loss_se: FloatArray
    refused: FloatArray


def prior_path(draws: RoutingDraws, costs: FloatArray, betas: Sequence[float]) -> PriorPath:
    """What a cost-aware prior of every beta would pay and lose.

    Args:
        draws: of the guide under its own prior.
        costs: ``(J,)`` of a catalog's routings; on the simplex ``(C,)`` a unit of weight.
        betas: from 0 up, in nats a unit of cost.

    Raises:
        ValueError: for costs of another shape, or as :func:`swap_prior`.
    """
    costs = np.asarray(costs, dtype=np.float64)
    expected = len(draws.routings) if draws.probabilities is not None else draws.coefficients.shape[-1]
    if costs.shape != (expected,):
        raise ValueError(f"costs have shape {costs.shape}; expected ({expected},)")
    queries = (draws.labels >= 0).sum(1)
    rows: list[tuple[float, float, float, float]] = []
    for beta in betas:
        if draws.probabilities is not None and draws.prior_probabilities is not None:
            tilted = draws.prior_probabilities * np.exp(-beta * (costs - costs.min()))
            q = swap_catalog_prior(draws.probabilities, draws.prior_probabilities, tilted / tilted.sum())
            found, cost = _of_catalog(draws, q), q @ costs
        else:
            of_draw = draws.coefficients @ costs
            of_draw = of_draw.mean(-1) if of_draw.ndim == 3 else of_draw  # blocks
            found = reweighted(draws, draws.log_prior - beta * of_draw)
            cost = (found.weights * of_draw).sum(0)
        kept = ~found.refused
        loss = -found.log_predictive[kept] / queries[kept]
        if not kept.any():
            rows.append((np.nan, np.nan, np.nan, 1.0))
            continue
        error = loss.std(ddof=1) / np.sqrt(len(loss)) if len(loss) > 1 else np.nan
        rows.append((cost[kept].mean(), loss.mean(), error, found.refused.mean()))
    return PriorPath(np.asarray(betas, dtype=np.float64), *np.array(rows).T)
