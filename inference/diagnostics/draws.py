"""RoutingDraws: everything that the diagnostics need of a model and a guide, as plain arrays.

model, guide, batches of episodes -> draws of the routings with their densities and likelihoods -> DataTree, k-hat,
prior swaps, predictive comparison. Nothing downstream of this file runs a network.

Shapes: K draws, B episodes, Q queries, J routings of a catalog, coefficients ``([L,] C)``, C = R + M.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from pyro.distributions import Delta
from torch import Tensor

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.guides import CatalogPosterior, RoutingGuide, RoutingPosterior
from pyro_smat.inference.diagnostics import batches as fields_of
from pyro_smat.inference.diagnostics.site_draws import draw_sites
from pyro_smat.inference.objective.candidates import as_deployed
from pyro_smat.metrics.arrays import FloatArray, IntArray
from pyro_smat.models.priors import RoutingPrior
from pyro_smat.models.routed import RoutedModel
from pyro_smat.networks.basis import Basis
from pyro_smat.routing import CATALOG_SITE, straight_through

CHUNK_BYTES = 256 * 2**20
OVER_EPISODES = ("labels", "route", "shots", "condition", "probabilities")  # the rest has draws first
LATENT = "latent "


@dataclass(frozen=True)
class RoutingDraws:
    """Independent draws of q(c | S) for B episodes.

    Attributes:
        coefficients: ``(K, B, [L,] C)``.
        prior_coefficients: likewise, draws of the prior.
        log_q, log_prior: ``(K, B)``, log density at the draws: of the latent sites, in nats. NaN of a point posterior.
        log_likelihood: ``(K, B, Q)``, log p of the true label of every query, NaN where there is no query.
        predicted: ``(K, B, Q)`` labels drawn from the likelihood, -1 where there is no query.
        labels: ``(B, Q)``, -1 where there is no query.
        route, shots: ``(B,)``; route -1 where it is not known; shots of the class that has fewest.
        condition: ``(B,)`` strings.
        routing: ``(K, B)`` row of the catalog, None on the simplex; probabilities, prior_probabilities: ``(B, J)`` and
            ``(J,)`` likewise.
        catalog: ``(J, [L,] C)`` coefficients of the routings, and routing_log_likelihood ``(J, B, Q)``, likewise.
        latents: site -> ``(K, B, 1, *event)`` drawn coordinates, on the simplex.
        sources, experts, routings, blocks: names, of the R sources, M experts, J routings, L blocks.
        seed: of the draws.
        config: what else to remember, such as the run's configuration.
        reference: what ``log_prior`` plus the sum of ``log_likelihood`` is: "model", which has seen the queries.
    """

    coefficients: FloatArray
    prior_coefficients: FloatArray
    log_q: FloatArray
    log_prior: FloatArray
    log_likelihood: FloatArray
    predicted: IntArray
    labels: IntArray
    route: IntArray
    shots: IntArray
    condition: np.ndarray
    sources: tuple[str, ...]
    experts: tuple[str, ...] = ()
    routings: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()
    routing: IntArray | None = None
    probabilities: FloatArray | None = None
    prior_probabilities: FloatArray | None = None
    catalog: FloatArray | None = None
    routing_log_likelihood: FloatArray | None = None
    latents: Mapping[str, FloatArray] = field(default_factory=dict)
    seed: int = 0
    config: Mapping[str, str] = field(default_factory=dict)
    reference: str = "model"

    @property
    def num_draws(self) -> int:
        return self.log_q.shape[0]

    @property
    def num_episodes(self) -> int:
        return self.log_q.shape[1]

    @property
    def log_joint(self) -> FloatArray:
        """log p(c, y | S) ``(K, B)``: the prior and all queries."""
        return self.log_prior + np.nansum(self.log_likelihood, axis=-1)

    @property
    def source_probabilities(self) -> FloatArray:
        """Posterior mean of the source weights ``(B, R)``, mean over blocks: exact for a catalog, else of the draws.

        Where every routing opens one source these are the probabilities of the sources.
        """
        count = len(self.sources)
        if self.probabilities is not None and self.catalog is not None:
            return self.probabilities @ _over_blocks(self.catalog)[..., :count]
        return _over_blocks(self.coefficients.mean(0), bool(self.blocks))[..., :count]

    @property
    def prior_source_probabilities(self) -> FloatArray:
        """The same of the prior, ``(R,)``."""
        count = len(self.sources)
        if self.prior_probabilities is not None and self.catalog is not None:
            return self.prior_probabilities @ _over_blocks(self.catalog)[..., :count]
        return _over_blocks(self.prior_coefficients.mean((0, 1))[None], bool(self.blocks))[0, :count]

    @classmethod
    def collect(
        cls,
        model: RoutedModel,
        guide: RoutingGuide,
        batches: Sequence[EpisodeBatch],
        *,
        num_samples: int = 200,
        seed: int = 0,
        config: Mapping[str, str] | None = None,
    ) -> RoutingDraws:
        """Draw routings of every episode and score them, as deployed.

        A catalog's J networks are run once an episode, however many draws; on the simplex every draw is a network.

        Args:
            model: its prior must have the sites of the guide.
            guide: the amortised posterior.
            batches: held-out episodes with support features, padded apart.
            num_samples: K.
            seed: of the draws; the global generator is left alone.
            config: strings to keep with the draws.

        Raises:
            ValueError: for no batches, fewer than one draw, or a prior with other sites than the guide's.
        """
        if not batches or num_samples < 1:
            raise ValueError(f"got {len(batches)} batches and num_samples {num_samples}; expected at least one of each")
        generator = torch.Generator(model.source_basis.device).manual_seed(seed)
        with as_deployed(model, guide):
            basis = model.basis()
            parts = [_draw(model, guide, batch, basis, num_samples, generator) for batch in batches]
        width = max(part["labels"].shape[-1] for part in parts)
        filled = [_pad_queries(part, width) for part in parts]
        stacked: dict[str, Any] = {
            name: np.concatenate([part[name] for part in filled], axis=0 if name in OVER_EPISODES else 1)
            for name in filled[0]
        }
        latents = {name.removeprefix(LATENT): stacked.pop(name) for name in list(stacked) if name.startswith(LATENT)}
        routed = stacked.get("probabilities") is not None
        rows = stacked["coefficients"].shape[-1]
        names = model.source_names
        return cls(
            **stacked,
            latents=latents,
            catalog=guide.catalog.coefficients.cpu().double().numpy() if routed else None,
            sources=tuple(names),
            experts=tuple(f"expert{m}" for m in range(rows - len(names))),
            routings=tuple(guide.catalog.names) if routed else (),
            blocks=tuple(model.network.space.block_names) if len(model.network.space.block_names) > 1 else (),
            prior_probabilities=_prior_probabilities(model.prior) if routed else None,
            seed=seed,
            config={"family": type(guide).__name__, "prior": type(model.prior).__name__, **(config or {})},
        )


def _over_blocks(coefficients: FloatArray, blocks: bool | None = None) -> FloatArray:
    """``(n, C)`` from ``(n, [L,] C)``."""
    return coefficients.mean(1) if (coefficients.ndim == 3 if blocks is None else blocks) else coefficients


def _draw(
    model: RoutedModel,
    guide: RoutingGuide,
    batch: EpisodeBatch,
    basis: Basis,
    count: int,
    generator: torch.Generator,
) -> dict[str, np.ndarray]:
    """The arrays of one batch."""
    posterior, prior = guide.posterior(batch), model.prior
    sites = draw_sites(posterior.sites(), count, generator)
    log_q = _log_density(posterior, sites)
    episodes, _ = fields_of.class_logits_shape(batch)
    coefficients = _coefficients(prior, sites, (count, episodes), model, posterior)
    of_prior = {name: prior.distribution(name, {}).expand((episodes, 1)) for name in prior.site_names}
    prior_sites = draw_sites(of_prior, count, generator)
    arrays: dict[str, Tensor] = {
        "coefficients": coefficients,
        "prior_coefficients": _coefficients(prior, prior_sites, (count, episodes), model, posterior),
        "log_q": log_q,
        "log_prior": prior.log_prob(sites).squeeze(-1).expand(count, episodes) if sites else torch.zeros_like(log_q),
    }
    if isinstance(posterior, CatalogPosterior):
        rows = sites[CATALOG_SITE].squeeze(2).argmax(-1)  # (K, B)
        each = posterior.coefficients.unsqueeze(1)  # (J, 1, [L,] C)
        log_likelihood, probabilities = _score(model, each, batch, basis)
        index = rows.unsqueeze(-1).expand(-1, -1, log_likelihood.shape[-1])
        arrays["log_likelihood"] = log_likelihood.gather(0, index)
        wide = index.unsqueeze(-1).expand(*index.shape, probabilities.shape[-1])
        drawn = [_labels(probabilities.gather(0, part), generator) for part in wide.split(16)]
        arrays["predicted"] = torch.cat(drawn)
        arrays |= {
            "routing": rows,
            "routing_log_likelihood": log_likelihood,
            "probabilities": posterior.logits.softmax(-1),
        }
    else:
        size = max(1, CHUNK_BYTES // (episodes * basis.shape[-1] * basis.element_size()))
        scored = [_score(model, part, batch, basis) for part in coefficients.split(size)]
        arrays["log_likelihood"] = torch.cat([log_p for log_p, _ in scored])
        arrays["predicted"] = torch.cat([_labels(probabilities, generator) for _, probabilities in scored])
        arrays |= {LATENT + name: value for name, value in sites.items()}
    found = {name: value.cpu().numpy() for name, value in arrays.items()}
    found = {k: v.astype(np.float64) if v.dtype.kind == "f" else v for k, v in found.items()}
    labels = fields_of.query_labels(batch)
    found["log_likelihood"] = np.where(labels >= 0, found["log_likelihood"], np.nan)
    if "routing_log_likelihood" in found:
        found["routing_log_likelihood"] = np.where(labels >= 0, found["routing_log_likelihood"], np.nan)
    found["predicted"] = np.where(labels >= 0, found["predicted"], -1)
    return found | {
        "labels": labels,
        "route": fields_of.true_routes(batch),
        "shots": fields_of.shots_per_class(batch),
        "condition": fields_of.conditions(batch),
    }


def _log_density(posterior: RoutingPosterior, sites: Mapping[str, Tensor]) -> Tensor:
    distributions = posterior.sites()
    if any(isinstance(distribution, Delta) for distribution in distributions.values()):
        return torch.full_like(next(iter(sites.values())).flatten(2)[..., 0], torch.nan)
    terms = [distributions[name].log_prob(value).squeeze(-1) for name, value in sites.items()]
    return torch.stack(terms).sum(0)


def _coefficients(
    prior: RoutingPrior, sites: Mapping[str, Tensor], shape: tuple[int, int], model: RoutedModel, posterior: object
) -> Tensor:
    """``(K, B, [L,] C)``, one-hot where the model or the posterior composes them so."""
    found = prior.coefficients_of(sites)
    found = found.squeeze(2) if sites else found.expand(*shape, *found.shape)
    hard = model.straight_through or getattr(posterior, "hard", False)
    return straight_through(found, len(model.source_names)) if hard else found


def _score(model: RoutedModel, coefficients: Tensor, batch: EpisodeBatch, basis: Basis) -> tuple[Tensor, Tensor]:
    """log p of the true labels ``(k, B, Q)`` and the class probabilities ``(k, B, Q, W)``, in parts that fit."""
    labels, _ = fields_of.label_targets(batch)
    log_likelihoods, probabilities = [], []
    for part in _split(coefficients, basis, len(batch)):
        likelihood = model.likelihood(model.logits(part, batch, basis), batch)
        log_likelihoods.append(likelihood.log_prob(labels))
        probabilities.append(likelihood.probs)
    return torch.cat(log_likelihoods), torch.cat(probabilities)


def _split(coefficients: Tensor, basis: Basis, episodes: int) -> Iterator[Tensor]:
    networks = coefficients.shape[1]
    size = max(1, CHUNK_BYTES // (networks * basis.shape[-1] * basis.element_size()))
    yield from coefficients.split(size)


def _labels(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """One label ``(*b)`` from every row ``(*b, W)``."""
    flat = torch.multinomial(probabilities.flatten(0, -2), 1, generator=generator)
    return flat.reshape(probabilities.shape[:-1])


def _prior_probabilities(prior: RoutingPrior) -> FloatArray:
    logits = prior.distribution(CATALOG_SITE, {}).logits
    return logits.softmax(-1).detach().cpu().double().numpy()


def _pad_queries(part: dict[str, np.ndarray], width: int) -> dict[str, np.ndarray]:
    """Arrays over queries filled up to ``width``."""
    missing = width - part["labels"].shape[-1]
    fill = {"labels": -1, "predicted": -1, "log_likelihood": np.nan, "routing_log_likelihood": np.nan}
    return {
        name: np.pad(value, [(0, 0)] * (value.ndim - 1) + [(0, missing)], constant_values=fill[name])
        if name in fill
        else value
        for name, value in part.items()
    }
