"""A trained router on a pool of images -> :class:`Diagnosis`: draws episodes, attaches features, builds prior, costs.

What ``pyro-smat diagnose`` calls. The posterior is looked at with as many shots as the router was trained on; the same
episodes with more shots serve the look at concentration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.episodes.corruptions import CorruptionLike
from pyro_smat.episodes.index import checked_span
from pyro_smat.episodes.pool import ImagePool
from pyro_smat.inference.assembly.router import Router, build_prior
from pyro_smat.inference.diagnostics.batches import trimmed, with_shots
from pyro_smat.inference.diagnostics.diagnose import SHOTS, Diagnosis, diagnose
from pyro_smat.inference.diagnostics.draws import RoutingDraws
from pyro_smat.inference.evaluation.router import sources_of_routes
from pyro_smat.metrics.arrays import FloatArray
from pyro_smat.models.priors import RoutingPrior
from pyro_smat.registry import choose
from pyro_smat.registry.entries import names

DIAGNOSE_SEED = 3_000_017  # apart from training, validation, evaluation and certificates
BATCH = 16


def diagnose_router(
    router: Router,
    pool: ImagePool,
    *,
    episodes: int = 400,
    num_samples: int = 200,
    shots: Sequence[int] = SHOTS,
    prior: str | Mapping[str, Any] | None = None,
    seeds: Sequence[Router] = (),
    against: Mapping[str, Router] | None = None,
    corruptions: Sequence[CorruptionLike] | None = None,
    seed: int = DIAGNOSE_SEED,
    progress: bool = False,
) -> Diagnosis:
    """Every diagnostic that applies to a router, on fresh episodes of a pool.

    Args:
        router: as deployed.
        pool: images that it has not trained on.
        episodes: N.
        num_samples: K draws an episode.
        shots: numbers of shots to look at; the largest must be there for every class, with the queries.
        prior: name or table of another prior, set against the posterior without retraining.
        seeds: routers of other training seeds over the same sources: chains of the DataTree.
        against: name -> router of another run over the same sources, compared on the same episodes.
        corruptions: of the supports; default: as in training, so that its population is judged.
        seed: of episodes, draws and ties.
        progress: show a bar.

    Raises:
        ValueError: for a pool with too few images a class, routers over other sources, or a prior that cannot be built.
    """
    against = dict(against or {})
    for name, other in {**{f"seed {i}": r for i, r in enumerate(seeds, 1)}, **against}.items():
        _check_sources(router, other, name)
    trained, batches, nested = _episodes(router, pool, episodes, shots, corruptions, seed, progress)
    supply = _prior_supply(router)
    chosen = None
    if prior is not None:
        chosen = _words(prior), build_prior(choose("prior", prior), supply).to(router.device)
    others = {
        name: RoutingDraws.collect(other.model, other.guide, batches, num_samples=num_samples, seed=seed)
        for name, other in against.items()
    }
    return diagnose(
        router.model,
        router.guide,
        batches,
        source_of_route=sources_of_routes(pool, router.library),
        other_guides=[other.guide for other in seeds],
        against=others,
        nested=nested,
        new_prior=chosen,
        costs=_costs(router, None if chosen is None else chosen[1], supply),
        shots=shots,
        num_samples=num_samples,
        config={"shots": str(trained), "episodes": str(episodes), "seed": str(seed)},
        seed=seed,
    )


def _episodes(
    router: Router,
    pool: ImagePool,
    episodes: int,
    shots: Sequence[int],
    corruptions: Sequence[CorruptionLike] | None,
    seed: int,
    progress: bool,
) -> tuple[int, list[EpisodeBatch], list[EpisodeBatch]]:
    """Shots of training, and the episodes with so many and with the most that are looked at."""
    asked = router.config.episodes.shot
    trained = asked if isinstance(asked, int) else asked[1]
    most = max(trained, *shots)
    settings = router.config.episodes.uniform(shot=most)
    sampler = settings.sampler(pool, seed=seed, corruptions=corruptions)
    supports = episodes * checked_span("way", settings.way, 2)[1] * most
    features = router.features(pool, drawn=supports, progress=progress)
    nested = []
    for start in tqdm(range(0, episodes, BATCH), desc="episodes", disable=not progress, leave=False):
        batch = sampler.sample(min(BATCH, episodes - start)).to(router.device)
        features.embed_rows(batch.support.rows)
        nested.append(features.attach(batch))
    batches = nested if most == trained else [trimmed(with_shots(batch, trained)) for batch in nested]
    return trained, batches, nested


def _prior_supply(router: Router) -> dict[str, object]:
    return {
        "guide_class": type(router.guide),
        "num_sources": len(router.library),
        "num_experts": router.config.experts.count,
        "num_blocks": len(router.library.space.block_names),
        "catalog": router.catalog,
    }


def _costs(router: Router, prior: RoutingPrior | None, supply: Mapping[str, object]) -> FloatArray | None:
    """Prices along the prior path: those of the other prior, of the router's own, or 0 for the fallback and 1 else."""
    for each in (prior, router.model.prior):
        found = getattr(each, "costs_of_routings", getattr(each, "costs", None))
        if found is not None:
            return _array(found)
    if router.catalog is not None and "cost_aware" in names("prior"):
        made = build_prior(choose("prior", {"kind": "cost_aware", "beta": 0.0}), supply)
        return _array(made.costs_of_routings)
    return None


def _words(prior: str | Mapping[str, Any]) -> str:
    """ "cost_aware:beta=2", as a command line says it."""
    if isinstance(prior, str):
        return prior
    options = ",".join(f"{key}={value}" for key, value in prior.items() if key != "kind")
    return f"{prior['kind']}:{options}" if options else str(prior["kind"])


def _array(values: torch.Tensor) -> FloatArray:
    return np.asarray(values.detach().cpu().double().numpy())


def _check_sources(router: Router, other: Router, name: str) -> None:
    same = other.library.names == router.library.names and torch.equal(
        other.model.source_basis.cpu(), router.model.source_basis.cpu()
    )
    if not same:
        raise ValueError(
            f"{name} routes over {', '.join(other.library.names)}; expected the sources of the diagnosed run, "
            f"{', '.join(router.library.names)}, with the same weights"
        )
