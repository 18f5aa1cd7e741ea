r"""Reference posteriors: what the amortised posterior is set against, always by name, for it matters which one it is.

=========  =================================================  ==================================================
reference  log target (plus log p(c))                         what it cannot judge
=========  =================================================  ==================================================
model      the model's observed sites                         it has seen the queries, which q has not: the gap
                                                              holds what q cannot know
support    minus n times the leave-one-out support loss       noise and confounding: there it is wrong itself, and a
                                                              guide may know better; single shots
=========  =================================================  ==================================================

Known routes are the third ("route"); see ``route_calibration``. Methods: exact enumeration of a catalog, importance
sampling from half prior and half guide on the simplex, and NUTS on the model of one episode as a cross-check.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from torch import Tensor

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.float64 import in_float64
from pyro_smat.guides import CatalogPosterior, RoutingGuide
from pyro_smat.inference.diagnostics import batches as fields_of
from pyro_smat.inference.diagnostics.pareto import khat_threshold
from pyro_smat.inference.diagnostics.pareto_tail import logsumexp, smooth
from pyro_smat.inference.diagnostics.site_draws import draw_sites
from pyro_smat.inference.objective.candidates import as_deployed, candidate_log_likelihoods, support_candidate_losses
from pyro_smat.metrics.arrays import FloatArray
from pyro_smat.models.priors import RoutingPrior
from pyro_smat.models.routed import RoutedModel
from pyro_smat.routing import CATALOG_SITE

Reference = Literal["model", "support"]
REFERENCES: tuple[Reference, ...] = get_args(Reference)
MOST_ROUTINGS = 256
CANNOT_JUDGE = {
    "model": "it has seen the queries: part of the gap is what no support tells",
    "support": "label noise, confounding and single shots: there the support's own likelihood is wrong",
}


@dataclass(frozen=True)
class ReferencePosterior:
    """A posterior by another method.

    Attributes:
        coefficients: ``(K, [L,] C)`` points: the routings of a catalog, draws of importance sampling, or of NUTS.
        weights: ``(B, K)`` of the points, sum 1.
        mean: ``(B, [L,] C)``.
        khat: ``(B,)`` of importance weights, -inf where exact; NaN of NUTS.
        rhat: largest over coefficients, of NUTS with several chains, else NaN.
        reference, method: what was targeted and how.
        cannot_judge: what this reference is no judge of.
    """

    coefficients: FloatArray
    weights: FloatArray
    mean: FloatArray
    khat: FloatArray
    rhat: float
    reference: str
    method: str
    cannot_judge: str

    @property
    def reliable(self) -> np.ndarray:
        """``(B,)`` bool."""
        good = ~(self.khat > khat_threshold(self.weights.shape[1]))
        return good & (np.isnan(self.rhat) | (self.rhat < 1.05))


def enumerated_posterior(
    model: RoutedModel,
    batch: EpisodeBatch,
    reference: Reference = "support",
    *,
    coefficients: Tensor | None = None,
    kl_weight: float = 1.0,
) -> ReferencePosterior:
    """The exact posterior over a catalog, ``(B, J)`` weights.

    Args:
        model: with a prior over a catalog, as deployed.
        batch: B episodes.
        reference: "model" or "support".
        coefficients: ``(J, [L,] C)``, default the prior's catalog.
        kl_weight: of the objective: the data count 1 / kl_weight times, as the optimum of training has it.

    Raises:
        ValueError: for an unknown reference, another prior, or more than 256 routings.
    """
    _check_reference(reference)
    if model.prior.site_names != (CATALOG_SITE,):
        raise ValueError(f"{type(model.prior).__name__} is no prior over a catalog; use importance_posterior")
    logits = model.prior.distribution(CATALOG_SITE, {}).logits
    rows = model.prior.coefficients_of({CATALOG_SITE: torch.eye(len(logits)).to(logits)})
    rows = rows if coefficients is None else coefficients
    if len(rows) > MOST_ROUTINGS:
        raise ValueError(f"the catalog has {len(rows)} routings; enumeration takes at most {MOST_ROUTINGS}")
    log_likelihood = _log_likelihood(model, batch, rows, reference)  # (J, B)
    with torch.no_grad():
        log_p = (in_float64(logits).unsqueeze(-1) + log_likelihood / kl_weight).log_softmax(0).mT.cpu().numpy()
    weights = np.exp(log_p)
    points = rows.detach().cpu().double().numpy()
    exact = np.full(len(weights), -np.inf)
    mean = np.tensordot(weights, points, 1)
    judge = CANNOT_JUDGE[reference]
    return ReferencePosterior(points, weights, mean, exact, float("nan"), reference, "enumeration", judge)


def importance_posterior(
    model: RoutedModel,
    guide: RoutingGuide,
    batch: EpisodeBatch,
    reference: Reference = "model",
    *,
    num_samples: int = 1000,
    kl_weight: float = 1.0,
    seed: int = 0,
) -> ReferencePosterior:
    """The posterior of one episode on the simplex, from draws of half prior and half guide.

    Args:
        model, guide: with the same sites, as deployed.
        batch: one episode.
        reference, kl_weight: as in :func:`enumerated_posterior`.
        num_samples: K networks to run, at least 100.
        seed: of the draws.

    Raises:
        ValueError: for several episodes, a catalog (enumerate it) or a point posterior.
    """
    _check_reference(reference)
    _check_one(batch)
    generator = torch.Generator(model.source_basis.device).manual_seed(seed)
    with as_deployed(model, guide):
        posterior, prior = guide.posterior(batch), model.prior
        sites = posterior.sites()
        if isinstance(posterior, CatalogPosterior) or any(
            isinstance(site, pyro.distributions.Delta) for site in sites.values()
        ):
            raise ValueError(
                f"{type(posterior).__name__} has no density on the simplex; a catalog is enumerated "
                "(enumerated_posterior), and a point has no posterior to sample from"
            )
        half = num_samples // 2
        of_prior = {name: prior.distribution(name, {}).expand((1, 1)) for name in prior.site_names}
        drawn = {
            name: torch.cat([first, second])
            for (name, first), second in zip(
                draw_sites(sites, half, generator).items(),
                draw_sites({name: of_prior[name] for name in sites}, num_samples - half, generator).values(),
                strict=True,
            )
        }
        log_q = sum(sites[name].log_prob(value).squeeze(-1) for name, value in drawn.items())
        log_prior = prior.log_prob(drawn).squeeze(-1)
        proposal = torch.stack([torch.as_tensor(log_q), log_prior]).logsumexp(0) - np.log(2)
        rows = prior.coefficients_of(drawn)[:, 0, 0]  # (K, [L,] C)
    log_likelihood = _log_likelihood(model, batch, rows, reference)
    ratios = (log_prior + log_likelihood / kl_weight - proposal).mT.detach().cpu().double().numpy()
    log_weights, khat = smooth(ratios)
    weights, points = np.exp(log_weights), rows.detach().cpu().double().numpy()
    mean, judge = np.tensordot(weights, points, 1), CANNOT_JUDGE[reference]
    return ReferencePosterior(points, weights, mean, khat, float("nan"), reference, "importance", judge)


def nuts_posterior(
    model: RoutedModel,
    batch: EpisodeBatch,
    *,
    num_samples: int = 200,
    warmup: int = 100,
    chains: int = 1,
    seed: int = 0,
) -> ReferencePosterior:
    """The model's posterior of one episode by the No-U-Turn sampler: slow, and independent of the guide.

    The model is Pyro's own program, with its queries observed (reference "model"). Chains run one after the other.

    Args:
        model: with a prior on the simplex, as deployed.
        batch: one episode.
        num_samples, warmup: of every chain.
        chains: two or more give an R-hat.
        seed: of the chains.

    Raises:
        ValueError: for several episodes or a catalog, whose sites are discrete.
    """
    _check_one(batch)
    prior: RoutingPrior = model.prior
    if CATALOG_SITE in prior.site_names:
        raise ValueError("NUTS needs continuous sites and a catalog is discrete; use enumerated_posterior")
    found = []
    modes = [(part, part.training) for part in model.modules()]
    gradients = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        for parameter, _ in gradients:
            parameter.requires_grad_(False)
        for chain in range(chains):
            with torch.random.fork_rng():
                pyro.set_rng_seed(seed + chain)
                kernel = NUTS(poutine.block(model, hide_types=["param"]), jit_compile=False)
                sampler = MCMC(kernel, num_samples=num_samples, warmup_steps=warmup, disable_progbar=True)
                sampler.run(batch)
            drawn = sampler.get_samples()
            with torch.no_grad():
                found.append(prior.coefficients_of({name: drawn[name] for name in prior.site_names})[:, 0, 0])
    finally:
        for part, training in modes:
            part.training = training
        for parameter, needed in gradients:
            parameter.requires_grad_(needed)
    points = torch.cat(found).cpu().double().numpy()
    rhat = float("nan")
    if chains > 1:
        from arviz_stats.base import array_stats

        each = np.stack([part.cpu().double().numpy().reshape(num_samples, -1) for part in found])
        rhat = float(np.max(array_stats.rhat(each, chain_axis=0, draw_axis=1)))
    weights = np.full((1, len(points)), 1 / len(points))
    mean, nan = points.mean(0)[None], np.full(1, np.nan)
    return ReferencePosterior(points, weights, mean, nan, rhat, "model", "NUTS", CANNOT_JUDGE["model"])


def effective_draws(reference: ReferencePosterior) -> FloatArray:
    """Effective number of points ``(B,)``, :math:`1 / \\sum_k w_k^2`."""
    with np.errstate(divide="ignore"):
        return np.exp(-logsumexp(2 * np.log(reference.weights)))


def _log_likelihood(model: RoutedModel, batch: EpisodeBatch, rows: Tensor, reference: Reference) -> Tensor:
    """``(K, B)`` in nats."""
    rows = rows.to(model.source_basis)
    if reference == "support":
        shots = fields_of.support_size(batch).to(model.source_basis.device)
        return -in_float64(shots * support_candidate_losses(model, batch, rows))
    with torch.no_grad():
        log_p = candidate_log_likelihoods(model, batch, rows)
    _, mask = fields_of.label_targets(batch)
    return in_float64(torch.where(mask.to(log_p.device), log_p, 0.0).sum(-1))


def _check_reference(reference: str) -> None:
    if reference not in REFERENCES:
        raise ValueError(f"reference is {reference!r}; expected one of {REFERENCES}")


def _check_one(batch: EpisodeBatch) -> None:
    if len(batch) != 1:
        raise ValueError(f"got {len(batch)} episodes; expected one, batch[i : i + 1]: each has a posterior of its own")
