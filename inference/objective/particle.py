"""The terms of one particle: from a pair of traces to episode losses, KL and penalties.

The arithmetic half of :class:`~pyro_smat.inference.CVaR_ELBO`; which sites may stand where is in ``sites``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from pyro.distributions import Unit
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_smat.inference.objective.losses import NLL, EpisodeLoss, OfExpectation, points_of
from pyro_smat.inference.objective.score_function import Costs, CostTerm, refuse_score_sites
from pyro_smat.inference.objective.sites import (
    Layout,
    Site,
    enumerated_sites,
    expectation,
    latent_order,
    needs_score_function,
    particle_dim,
    per_particle,
    refuse_missing_latents,
    sample_sites,
)


class EpisodePenalty(Protocol):
    """An optional term of the objective, e.g. distillation: ``weight`` x its mean over episodes is added.

    Called once a particle with the pair of traces and the model's arguments; returns a site and a term in the shape of
    that site's plates (enumerated dims are summed out by the ELBO).
    """

    weight: float

    def __call__(
        self, model_trace: Trace, guide_trace: Trace, *args: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], Tensor]: ...


@dataclass(frozen=True)
class TermOptions:
    """What of the ELBO's arguments the terms depend on; see :class:`~pyro_smat.inference.CVaR_ELBO`."""

    episode_plate: str
    episode_loss: EpisodeLoss
    kl: Literal["exact", "sampled"]
    kl_weight: float
    entropy_weight: float | None
    penalties: Mapping[str, EpisodePenalty]


class Particle:
    """The terms of one pair of traces, which holds k vectorised particles (1 where they are not vectorised).

    Attributes:
        losses, nll, kl: ``(k, B)`` episode losses, plain summed NLL, KL.
        global_kl: ``(k,)``.
        extra, global_extra: ``(k,)``, weighted and summed over the episodes, or of global sites: penalties, and what an
            entropy_weight of its own changes.
        penalties: name -> mean penalty, a scalar.
        scored: the guide sites that need the score function.
    """

    def __init__(
        self, options: TermOptions, model_trace: Trace, guide_trace: Trace, args: tuple, kwargs: dict[str, Any]
    ) -> None:
        self.options, self.model_trace, self.guide_trace = options, model_trace, guide_trace
        self.enumerated = enumerated_sites(guide_trace)
        observed, factors = _observations(model_trace, options.episode_plate)
        self.layout = Layout.of(options.episode_plate, observed[0])
        refuse_missing_latents(model_trace, guide_trace)
        self.scored = [site for site in sample_sites(guide_trace) if needs_score_function(site)]
        if self.scored:
            refuse_score_sites(self.scored, self.enumerated, options.episode_loss)
        self._loss_costs: list[CostTerm] = []
        self._regulariser_costs: list[CostTerm] = []

        zero = observed[0]["log_prob"].new_zeros(())
        self.losses = self.nll = self.kl = zero.expand(1, self.layout.size)
        self.global_kl = self.extra = self.global_extra = zero.expand(1)
        for site in observed:
            Layout.of(options.episode_plate, site)
            self._observe(site)
        for site, kl, entropy, silent in self._kl_terms():
            self._regularise(site, kl, silent)
            if entropy is not None and options.entropy_weight is not None:
                self._reweigh(site, entropy, options.entropy_weight - options.kl_weight, silent)
        for site in factors:
            self._regularise(site, -site["log_prob"])
        self.penalties = {}
        for name, penalty in options.penalties.items():
            site, term = penalty(model_trace, guide_trace, *args, **kwargs)
            term = expectation(term, site, self.enumerated)
            self._cost(self._regulariser_costs, site, term, penalty.weight)
            each = self.layout.per_episode(term, site)
            self.extra = self.extra + penalty.weight * each.sum(-1)
            self.penalties[name] = each.mean()

    def costs(self) -> Costs:
        """What score-function sites are weighed with."""
        return Costs(self.layout, self.scored, self._loss_costs, self._regulariser_costs)

    def _observe(self, site: Site) -> None:
        """Add the loss of an observed site: the expectation of its points, summed over inner plates."""
        nll = self._expect(-site["log_prob"], site)
        points = nll if type(self.options.episode_loss) is NLL else self._points(site)
        self._cost(self._loss_costs, site, points)
        losses = self.layout.per_episode(points, site)
        self.losses = self.losses + losses
        self.nll = self.nll + (losses if points is nll else self.layout.per_episode(nll, site)).detach()

    def _points(self, site: Site) -> Tensor:
        """The points of an observed site under the posterior."""
        loss = self.options.episode_loss
        over_particles = _over_particles if isinstance(loss, OfExpectation) else _of_each_particle
        try:
            return points_of(
                loss,
                site["fn"],
                site["value"],
                site["mask"],
                inner=self.layout.inner_dims(site),
                scale=site["scale"],
                expectation=lambda points: over_particles(self._expect(points, site), site),
            )
        except ValueError as error:
            name = getattr(loss, "__name__", type(loss).__name__)
            raise ValueError(f"episode_loss {name} at site {site['name']!r}: {error}") from error

    def _expect(self, term: Tensor, site: Site) -> Tensor:
        return expectation(term, site, self.enumerated)

    def _regularise(self, site: Site, kl: Tensor, silent_for: str | None = None) -> None:
        """Add a KL term."""
        kl = self._expect(kl, site)
        self._cost(self._regulariser_costs, site, kl, self.options.kl_weight, silent_for)
        if self.layout.is_local(site):
            self.kl = self.kl + self.layout.per_episode(kl, site)
        else:
            self.global_kl = self.global_kl + per_particle(kl, site)

    def _reweigh(self, site: Site, part: Tensor, weight: float, silent_for: str | None) -> None:
        """Add more weight to a part of a KL term."""
        part = self._expect(part, site)
        self._cost(self._regulariser_costs, site, part, weight, silent_for)
        if self.layout.is_local(site):
            self.extra = self.extra + weight * self.layout.per_episode(part, site).sum(-1)
        else:
            self.global_extra = self.global_extra + weight * per_particle(part, site)

    def _cost(
        self, terms: list[CostTerm], site: Site, term: Tensor, weight: float = 1.0, silent_for: str | None = None
    ) -> None:
        if self.scored:
            terms.append(CostTerm(site, weight * term.detach(), silent_for))

    def _kl_terms(self) -> Iterator[tuple[Site, Tensor, Tensor | None, str | None]]:
        """For every latent site: log q - log p or the exact KL; E[log q] or log q; the site it is exact for."""
        split = self.options.entropy_weight is not None
        for site in sample_sites(self.model_trace):
            if site["is_observed"]:
                continue
            guide_site = self.guide_trace.nodes[site["name"]]
            log_q = _log_q(guide_site)
            if self.options.kl == "exact" and site["name"] not in self.enumerated:
                try:
                    exact = kl_divergence(guide_site["fn"], site["fn"])
                    entropy = _negative_entropy(guide_site, log_q) if split else None
                except NotImplementedError:  # how torch says that no closed form is registered: sampled below
                    pass
                else:
                    yield guide_site, _scaled(exact, guide_site), entropy, site["name"]
                    continue
            yield guide_site, log_q - site["log_prob"], log_q if split else None, None
        for guide_site in sample_sites(self.guide_trace):
            if guide_site["name"] not in self.model_trace.nodes:  # Pyro itself insists on is_auxiliary
                log_q = _log_q(guide_site)
                yield guide_site, log_q, log_q if split else None, None

    def latent_orders(self) -> tuple[list[str], list[str]]:
        """The sites whose exact KLs are added up, in the order of the model and in that of the guide."""
        model, guide = self.model_trace, self.guide_trace
        return latent_order(model, guide, self.enumerated), latent_order(guide, model, self.enumerated)


def _observations(model_trace: Trace, plate: str) -> tuple[list[Site], list[Site]]:
    """The observed sites, and apart from them pyro.factor statements outside all plates (hyperpriors).

    Raises:
        ValueError: when nothing is observed.
    """
    observed = [site for site in sample_sites(model_trace) if site["is_observed"]]
    factors = [s for s in observed if isinstance(s["fn"], Unit) and not _named_plates(s)]
    observed = [s for s in observed if all(s is not f for f in factors)]
    if not observed:
        raise ValueError("the model observed nothing; expected at least one observed site inside the episode plate")
    return observed, factors


def _named_plates(site: Site) -> list[str]:
    dim = particle_dim(site)
    return [frame.name for frame in site["cond_indep_stack"] if frame.dim != dim or dim is None]


def _log_q(guide_site: Site) -> Tensor:
    """log q with the value of the draw and the gradient of its entropy term: none where E[grad log q] = 0 is known."""
    log_q, entropy_term = guide_site["log_prob"], guide_site["score_parts"].entropy_term
    if not needs_score_function(guide_site):
        return log_q
    gradient = torch.zeros_like(log_q) if is_identically_zero(entropy_term) else entropy_term - entropy_term.detach()
    return log_q.detach() + gradient


def _negative_entropy(guide_site: Site, log_q: Tensor) -> Tensor:
    """E[log q], exact where the distribution knows its entropy, log q of the draw elsewhere.

    Raises:
        NotImplementedError: where log q would need the score function, which an exact KL does not feel.
    """
    try:
        return _scaled(-guide_site["fn"].entropy(), guide_site)
    except NotImplementedError:
        if needs_score_function(guide_site):
            raise
        return log_q


def _scaled(term: Tensor, site: Site) -> Tensor:
    return scale_and_mask(term, scale=site["scale"], mask=site["mask"])


def _of_each_particle(term: Tensor, site: Site) -> Tensor:
    return term


def _over_particles(term: Tensor, site: Site) -> Tensor:
    dim = particle_dim(site)
    return term.mean(dim, keepdim=True) if dim is not None and term.dim() >= -dim else term
