"""Posteriors of the same episodes at several numbers of shots, and on supports whose labels were permuted.

guide, batches -> arrays for ``concentration`` and ``negative_control``. Nothing is retrained and no query is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.guides import CatalogPosterior, RoutingGuide, RoutingPosterior
from pyro_smat.inference.diagnostics import batches as fields_of
from pyro_smat.inference.diagnostics.concentration import Concentration, concentration, concentration_of_draws
from pyro_smat.inference.diagnostics.site_draws import draw_sites
from pyro_smat.inference.objective.candidates import as_deployed
from pyro_smat.metrics.arrays import FloatArray
from pyro_smat.models.priors import RoutingPrior


def usable_shots(batches: Sequence[EpisodeBatch], shots: Sequence[int]) -> tuple[int, ...]:
    """Those numbers of shots that the supports have for every class, before label noise moved any."""
    most = min(fields_of.usual_shots(batch) for batch in batches)
    return tuple(sorted({n for n in shots if n <= most}))


def source_probabilities(guide: RoutingGuide, batches: Sequence[EpisodeBatch]) -> FloatArray:
    """Posterior mean of the source weights ``(B, R)``: for routings of one source each, their probabilities."""
    with as_deployed(guide):
        rows = [guide.posterior(batch).source_weights for batch in batches]
    return torch.cat(rows).cpu().double().numpy()


def concentration_over_shots(
    prior: RoutingPrior,
    guide: RoutingGuide,
    batches: Sequence[EpisodeBatch],
    shots: Sequence[int],
    *,
    prior_probabilities: FloatArray,
    truth: np.ndarray | None = None,
    num_samples: int = 200,
    seed: int = 0,
) -> Concentration:
    """Concentration on nested supports, the first ``n`` images of every class for every n of ``shots``.

    Catalogs are summed to sources, which is what routes are known by; on the simplex it is that of the drawn
    coordinates.

    Args:
        prior: of the model.
        guide: as deployed.
        batches: episodes with at least ``max(shots)`` shots a class.
        shots: at least three numbers.
        prior_probabilities: ``(R,)`` of the sources.
        truth: ``(B,)`` source that knows the route, -1 where none is known.
        num_samples: draws on the simplex.
        seed: of these.

    Raises:
        ValueError: for too few shots, see :func:`usable_shots`.
    """
    if usable_shots(batches, shots) != tuple(sorted(shots)):
        raise ValueError(
            f"shots {tuple(shots)} are asked for, but supports have only {usable_shots(batches, shots)} for "
            "every class; sample episodes with more shots"
        )
    generator = torch.Generator().manual_seed(seed)
    levels = [[fields_of.with_shots(batch, n) for batch in batches] for n in sorted(shots)]
    with as_deployed(guide):
        first = guide.posterior(batches[0])
        if isinstance(first, CatalogPosterior):
            q = np.stack([source_probabilities(guide, level) for level in levels])
            return concentration(sorted(shots), q, prior_probabilities, truth=truth, seed=seed)
        draws = np.stack([np.concatenate([_coordinates(guide.posterior(b), num_samples, generator) for b in level], 1)
                          for level in levels])  # fmt: skip
        sites = {name: prior.distribution(name, {}).expand((1, 1)) for name in prior.site_names}
        of_prior = _flat(draw_sites(sites, 4000, generator))[:, 0]
    return concentration_of_draws(sorted(shots), draws, of_prior)


def control_probabilities(guide: RoutingGuide, batches: Sequence[EpisodeBatch], *, seed: int = 0) -> FloatArray:
    """:func:`source_probabilities` on the same supports with permuted labels."""
    generator = torch.Generator().manual_seed(seed)
    return source_probabilities(guide, [fields_of.with_permuted_labels(batch, generator) for batch in batches])


def _coordinates(posterior: RoutingPosterior, count: int, generator: torch.Generator) -> FloatArray:
    return _flat(draw_sites(posterior.sites(), count, generator))


def _flat(latents: dict[str, torch.Tensor]) -> FloatArray:
    """Coordinates of all sites side by side, ``(K, B, D)``."""
    return torch.cat([value.flatten(2) for value in latents.values()], dim=-1).cpu().double().numpy()
