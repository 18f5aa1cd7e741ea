"""to_datatree: draws of routings as the DataTree that ArviZ reads, writes and plots.

The chain is the *training seed*: draws of one guide are independent, so R-hat and ESS within one mean nothing, but
R-hat over several trained guides says where they disagree. Dims have names: episode, source, expert, block, query,
routing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_smat.inference.diagnostics.draws import RoutingDraws
from pyro_smat.inference.diagnostics.pareto import FEWEST_DRAWS, khat_per_episode

if TYPE_CHECKING:
    import xarray as xr

Variable = tuple[tuple[str, ...], np.ndarray]


def to_datatree(
    draws: RoutingDraws | Sequence[RoutingDraws], *, pits: Mapping[str, np.ndarray] | None = None
) -> xr.DataTree:
    """Groups for ArviZ from the draws of one trained guide, or of several (one chain each).

    ==================== ======================================================================================
    posterior, prior     source_weight (chain, draw, episode, [block,] source), expert_weight, routing (its row)
    log_prior            routing_prior (chain, draw, episode)
    log_likelihood       labels (chain, draw, episode, query), NaN where there is no query
    sample_stats         log_p (prior and all queries), log_q (chain, draw, episode); khat, entropy (chain, episode)
    posterior_predictive labels (chain, draw, episode, query), -1 where there is no query
    observed_data        labels (episode, query)
    constant_data        route, shots, condition (episode); probability (chain, episode, routing) of a catalog
    prior_sbc            PIT values (simulation), when they are given
    ==================== ======================================================================================

    Args:
        draws: of the same episodes, sources and number of draws where there are several.
        pits: name -> ``(N,)`` PIT values in [0, 1], for ``plot_ecdf_pit``.

    Returns:
        A DataTree with attributes ``reference``, ``family``, ``draw_seeds`` and the config of the draws. It goes to a
        file with ``to_netcdf(path, engine="h5netcdf")`` or ``to_zarr(path)``.

    Raises:
        ValueError: for draws of other episodes, names, or another number of draws.
    """
    import xarray as xr

    chains = [draws] if isinstance(draws, RoutingDraws) else list(draws)
    _check_same(chains)
    first = chains[0]
    coords: dict[str, Any] = {
        "chain": np.arange(len(chains)),
        "draw": np.arange(first.num_draws),
        "episode": np.arange(first.num_episodes),
        "query": np.arange(first.labels.shape[1]),
        "source": list(first.sources),
        "expert": list(first.experts),
        "block": list(first.blocks),
        "routing_name": list(first.routings),
    }

    def dataset(variables: Mapping[str, Variable]) -> xr.Dataset:
        used = {dim for dims, _ in variables.values() for dim in dims}
        return xr.Dataset(dict(variables), {name: values for name, values in coords.items() if name in used})

    def stacked(name: str, *dims: str) -> Variable:
        return ("chain", "draw", "episode", *dims), np.stack([getattr(each, name) for each in chains])

    groups = {
        "posterior": dataset(_weights(chains, "coefficients") | _rows(chains)),
        "prior": dataset(_weights(chains, "prior_coefficients")),
        "log_prior": dataset({"routing_prior": stacked("log_prior")}),
        "log_likelihood": dataset({"labels": stacked("log_likelihood", "query")}),
        "sample_stats": dataset(
            {
                "log_p": stacked("log_joint"),
                "log_q": stacked("log_q"),
                "khat": (("chain", "episode"), np.stack([_khat(each) for each in chains])),
                "entropy": (("chain", "episode"), np.stack([_entropy(each) for each in chains])),
            }
        ),
        "posterior_predictive": dataset({"labels": stacked("predicted", "query")}),
        "observed_data": dataset({"labels": (("episode", "query"), first.labels)}),
        "constant_data": dataset(_constants(chains)),
    }
    if pits:
        size = len(next(iter(pits.values())))
        groups["prior_sbc"] = xr.Dataset(
            {name: (("chain", "draw"), np.asarray(values)[None]) for name, values in pits.items()},
            {"chain": [0], "draw": np.arange(size)},
        )
    tree = xr.DataTree.from_dict({f"/{name}": group for name, group in groups.items()})
    tree.attrs |= {
        "reference": first.reference,
        "draw_seeds": [each.seed for each in chains],
        "config": json.dumps(dict(first.config)),
        "inference_library": "pyro_smat",
    }
    return tree


def _weights(chains: Sequence[RoutingDraws], name: str) -> dict[str, Variable]:
    first = chains[0]
    values = np.stack([getattr(each, name) for each in chains])
    dims = ("chain", "draw", "episode") + (("block",) if first.blocks else ())
    count = len(first.sources)
    found = {"source_weight": ((*dims, "source"), values[..., :count])}
    return found | ({"expert_weight": ((*dims, "expert"), values[..., count:])} if first.experts else {})


def _rows(chains: Sequence[RoutingDraws]) -> dict[str, Variable]:
    drawn = [each.routing for each in chains if each.routing is not None]  # of a catalog; all chains are of one kind
    return {"routing": (("chain", "draw", "episode"), np.stack(drawn))} if drawn else {}


def _constants(chains: Sequence[RoutingDraws]) -> dict[str, Variable]:
    first = chains[0]
    found: dict[str, Variable] = {
        "route": (("episode",), first.route),
        "shots": (("episode",), first.shots),
        "condition": (("episode",), first.condition),
    }
    if first.probabilities is not None and first.prior_probabilities is not None:
        values = np.stack([each.probabilities for each in chains if each.probabilities is not None])
        found["routing_probability"] = (("chain", "episode", "routing_name"), values)
        found["routing_prior_probability"] = (("routing_name",), first.prior_probabilities)
    return found


def _khat(draws: RoutingDraws) -> np.ndarray:
    """Of the queries' posterior; NaN where k-hat means nothing: catalogs, points, few draws."""
    if draws.routing is not None or draws.num_draws < FEWEST_DRAWS or np.isnan(draws.log_q).any():
        return np.full(draws.num_episodes, np.nan)
    return khat_per_episode(draws.log_joint, draws.log_q, reference=draws.reference).khat


def _entropy(draws: RoutingDraws) -> np.ndarray:
    """Entropy of the latent, in nats: exact for a catalog, a mean over draws (and relative to Lebesgue) otherwise."""
    if draws.probabilities is None:
        return -draws.log_q.mean(0)
    p = draws.probabilities
    return -np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0)), 0.0).sum(-1)


def _check_same(chains: Sequence[RoutingDraws]) -> None:
    if not chains:
        raise ValueError("got no draws; expected RoutingDraws of at least one training seed")
    first = chains[0]
    for number, other in enumerate(chains[1:], start=1):
        if other.log_q.shape != first.log_q.shape:
            raise ValueError(
                f"draws 0 are {first.log_q.shape} (draws, episodes) and draws {number} are {other.log_q.shape}; chains "
                "need the same number of draws of the same episodes"
            )
        if not (np.array_equal(other.labels, first.labels) and np.array_equal(other.route, first.route)):
            raise ValueError(
                f"draws {number} are of other episodes than draws 0 (labels or routes differ); collect both from the "
                "same batches"
            )
        for what in ("sources", "experts", "blocks", "routings"):
            if getattr(other, what) != getattr(first, what):
                raise ValueError(
                    f"draws {number} have {what} {getattr(other, what)} and draws 0 {getattr(first, what)}; "
                    "expected the same names"
                )
