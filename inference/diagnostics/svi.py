"""Diagnostics for any Pyro model and guide with a plate of independent episodes, not only routers.

model, guide and their arguments -> draws of the guide, replayed in the model -> log weights of every episode, latents
and pointwise likelihoods with named dims -> k-hat per episode, a DataTree, a prior swap. Pyro's own diagnostic adds the
log weights of all episodes up, which makes every guide look bad once there are enough of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer.util import site_is_subsample
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_smat.float64 import in_float64
from pyro_smat.inference.diagnostics.pareto import FEWEST_DRAWS, ParetoDiagnostic, khat_per_episode
from pyro_smat.metrics.arrays import FloatArray

if TYPE_CHECKING:
    import xarray as xr

Program = Callable[..., Any]
Site = dict[str, Any]


@dataclass(frozen=True)
class EpisodeDraws:
    """K draws of a guide over B episodes, scored by a model.

    Attributes:
        latents: name -> ``(K, *dims)`` values of the guide's sites and the model's deterministic ones.
        observed: name -> ``(*dims)`` data.
        log_likelihood: name -> ``(K, *dims)`` of every observed site, NaN where it is masked.
        dims: name of a site -> names of its dims: its plates, then ``site_dim_0`` and so on for events.
        log_q, log_prior, log_p: ``(K, B)`` summed over all but the episodes; log_p is prior and data together.
        plate: the plate of the episodes.
        derived: names of the latents that are deterministic sites.
    """

    latents: Mapping[str, np.ndarray]
    observed: Mapping[str, np.ndarray]
    log_likelihood: Mapping[str, FloatArray]
    dims: Mapping[str, tuple[str, ...]]
    log_q: FloatArray
    log_prior: FloatArray
    log_p: FloatArray
    plate: str
    derived: tuple[str, ...] = ()

    def khat(self) -> ParetoDiagnostic:
        """k-hat of every episode against the model's posterior given all observed sites."""
        return khat_per_episode(self.log_p, self.log_q, reference="model")

    def swap_prior(self, other: EpisodeDraws) -> ParetoDiagnostic:
        """Weights of these draws under the prior of another model, with k-hat; do not use episodes that are not
        reliable.

        Args:
            other: the same draws (guide, arguments, number and seed) scored by a model with another prior.

        Raises:
            ValueError: for other draws.
        """
        same = self.log_q.shape == other.log_q.shape and np.array_equal(self.log_q, other.log_q)
        if not same:
            raise ValueError(
                "the other model was scored at other draws; call episode_draws with the same guide, arguments, number "
                "and seed for both"
            )
        return khat_per_episode(other.log_prior, self.log_prior, reference="new prior")


@torch.no_grad()
def episode_draws(
    model: Program,
    guide: Program,
    *args: Any,
    plate: str = "episodes",
    num_samples: int = 1000,
    seed: int = 0,
    **kwargs: Any,
) -> EpisodeDraws:
    """Draw from the guide and score the draws, episode by episode.

    Scales (mini-batch factors, annealing) are left out and masks are kept, so that the weights are those of the model
    as it is written.

    Args:
        model, guide: take ``args`` and ``kwargs``; the data are observed.
        plate: the episodes; all latent sites are inside.
        num_samples: K; one trace each.
        seed: of the draws; the global generator is left as it was.

    Raises:
        ValueError: when there is no such plate, a latent is outside it or missing in the guide, an observed site
            outside it depends on the draw, or the plate is subsampled anew in every draw.
    """
    records: list[tuple[Trace, Trace]] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for _ in range(num_samples):
            guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
            model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
            _check_latents(model_trace, guide_trace)
            guide_trace.compute_log_prob()
            model_trace.compute_log_prob()
            records.append((model_trace, guide_trace))
    _check_episodes([model_trace for model_trace, _ in records], plate)
    log_q = np.stack([_sum_by_plate(g, plate, _is_latent) for _, g in records])
    log_prior = np.stack([_sum_by_plate(m, plate, _is_latent) for m, _ in records])
    log_data = np.stack([_sum_by_plate(m, plate, _is_observed) for m, _ in records])
    first, _ = records[0]
    inside = {n: s for n, s in first.nodes.items() if s["type"] == "sample" and _has_plate(s, plate)}
    latent = [name for name, site in inside.items() if _is_latent(site)]
    data = [name for name, site in inside.items() if _is_observed(site) and not _is_deterministic(site)]
    derived = [name for name, site in inside.items() if _is_deterministic(site)]
    values = {name: [_named(m.nodes[name], m.nodes[name]["value"]) for m, _ in records] for name in latent + derived}
    pointwise = {name: [_named_log_prob(m.nodes[name]) for m, _ in records] for name in data}
    observed = {name: _named(first.nodes[name], first.nodes[name]["value"]) for name in data}
    return EpisodeDraws(
        latents={name: np.stack([array for array, _ in each]) for name, each in values.items()},
        observed={name: array for name, (array, _) in observed.items()},
        log_likelihood={name: np.stack([array for array, _ in each]) for name, each in pointwise.items()},
        dims={name: each[0][1] for name, each in values.items()} | {name: dims for name, (_, dims) in observed.items()},
        log_q=log_q,
        log_prior=log_prior,
        log_p=log_prior + log_data,
        plate=plate,
        derived=tuple(derived),
    )


def svi_to_datatree(draws: EpisodeDraws) -> xr.DataTree:
    """The draws as a DataTree: chain 1, the plates as dims, k-hat of every episode in ``sample_stats``.

    Groups: posterior, log_likelihood, log_prior, sample_stats (log_p, log_q, khat), observed_data.
    """
    import xarray as xr

    batched = ("chain", "draw")

    def dataset(variables: Mapping[str, tuple[tuple[str, ...], np.ndarray]]) -> xr.Dataset:
        sizes = {dim: size for dims, a in variables.values() for dim, size in zip(dims, a.shape, strict=True)}
        return xr.Dataset(dict(variables), {dim: np.arange(size) for dim, size in sizes.items()})

    of_episode = (*batched, draws.plate)
    stats: dict[str, tuple[tuple[str, ...], np.ndarray]] = {
        "log_p": (of_episode, draws.log_p[None]),
        "log_q": (of_episode, draws.log_q[None]),
    }
    if len(draws.log_q) >= FEWEST_DRAWS:
        stats["khat"] = (("chain", draws.plate), draws.khat().khat[None])
    likelihoods = {n: ((*batched, *draws.dims[n][: a.ndim - 1]), a[None]) for n, a in draws.log_likelihood.items()}
    tree = xr.DataTree.from_dict(
        {
            "/posterior": dataset({n: ((*batched, *draws.dims[n]), a[None]) for n, a in draws.latents.items()}),
            "/log_likelihood": dataset(likelihoods),
            "/log_prior": dataset({"latents": (of_episode, draws.log_prior[None])}),
            "/sample_stats": dataset(stats),
            "/observed_data": dataset({n: (draws.dims[n], a) for n, a in draws.observed.items()}),
        }
    )
    tree.attrs |= {"reference": "model", "inference_library": "pyro"}
    return tree


def _is_latent(site: Site) -> bool:
    return site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)


def _is_observed(site: Site) -> bool:
    return site["type"] == "sample" and bool(site["is_observed"])


def _is_deterministic(site: Site) -> bool:
    return bool(site["infer"].get("_deterministic"))


def _has_plate(site: Site, plate: str) -> bool:
    return any(frame.name == plate for frame in site["cond_indep_stack"])


def _check_latents(model_trace: Trace, guide_trace: Trace) -> None:
    in_guide = {n for n, s in guide_trace.nodes.items() if _is_latent(s) and not s["infer"].get("is_auxiliary")}
    auxiliary = [n for n, s in guide_trace.nodes.items() if _is_latent(s) and s["infer"].get("is_auxiliary")]
    in_model = {n for n, s in model_trace.nodes.items() if _is_latent(s)}
    if in_guide != in_model or auxiliary:
        raise ValueError(
            f"the guide samples {sorted(in_guide) + auxiliary} and the model's latent sites are {sorted(in_model)}; "
            "expected the same sites: weights need a density of every latent in both"
        )


def _check_episodes(traces: list[Trace], plate: str) -> None:
    first = traces[0]
    if not any(s["type"] == "sample" and _has_plate(s, plate) for s in first.nodes.values()):
        frames = {f.name for s in first.nodes.values() if s["type"] == "sample" for f in s["cond_indep_stack"]}
        raise ValueError(f"the model has no plate {plate!r} around a site; its plates are {sorted(frames)}")
    rows = [trace.nodes[plate]["value"] for trace in traces if plate in trace.nodes]
    if any(not torch.equal(torch.as_tensor(r), torch.as_tensor(rows[0])) for r in rows[1:]):
        raise ValueError(
            f"plate {plate!r} chooses other episodes in every draw (subsample_size); expected the same ones: pass "
            "subsample=indices, or the data of a mini-batch"
        )
    for name, site in first.nodes.items():
        if site["type"] != "sample" or site_is_subsample(site) or _has_plate(site, plate):
            continue
        if _is_latent(site):
            raise ValueError(
                f"latent site {name!r} is outside plate {plate!r}, so that episodes are not independent; expected all "
                "latents inside: condition on a value of it, or on a point estimate"
            )
        values = [trace.nodes[name]["log_prob_sum"] for trace in traces]
        if any(not torch.isclose(value, values[0]) for value in values[1:]):
            raise ValueError(
                f"observed site {name!r} is outside plate {plate!r} and depends on its latents; move it in"
            )


def _masked_log_prob(site: Site) -> Tensor:
    return scale_and_mask(site["unscaled_log_prob"], 1.0, site["mask"])


def _sum_by_plate(trace: Trace, plate: str, wanted: Callable[[Site], bool]) -> FloatArray:
    """log prob ``(B,)`` of the wanted sites inside the plate, summed over everything else."""
    total: FloatArray | None = None
    size = 0
    for site in trace.nodes.values():
        if site["type"] != "sample" or site_is_subsample(site) or not _has_plate(site, plate):
            continue
        frame = next(f for f in site["cond_indep_stack"] if f.name == plate)
        size = frame.size
        if not wanted(site):
            continue
        shape = _batch_shape(site)
        values = _masked_log_prob(site).expand(shape).movedim(frame.dim, 0).reshape(size, -1).sum(-1)
        array = values.cpu().double().numpy()
        total = array if total is None else total + array
    return np.zeros(size) if total is None else total


def _batch_shape(site: Site) -> tuple[int, ...]:
    """The batch shape with every plate at its full size."""
    shape = list(site["fn"].batch_shape)
    for frame in site["cond_indep_stack"]:
        shape = [1] * (-frame.dim - len(shape)) + shape
        shape[frame.dim] = frame.size
    return tuple(shape)


def _named(site: Site, value: Tensor) -> tuple[np.ndarray, tuple[str, ...]]:
    """A value without the singleton dims that no plate owns, and the names of the dims that are left."""
    event = len(site["fn"].event_shape)
    batch = _batch_shape(site)
    value = value.expand(*batch, *value.shape[value.ndim - event :])
    names = {frame.dim: frame.name for frame in site["cond_indep_stack"]}
    keep = [(axis, names.get(axis - len(batch))) for axis in range(len(batch))]
    index = tuple(slice(None) if name or batch[axis] > 1 else 0 for axis, name in keep)
    dims = [name or f"{site['name']}_batch_{axis}" for axis, name in keep if name or batch[axis] > 1]
    dims += [f"{site['name']}_dim_{e}" for e in range(event)]
    return value[index].cpu().numpy(), tuple(dims)


def _named_log_prob(site: Site) -> tuple[np.ndarray, tuple[str, ...]]:
    log_p = site["unscaled_log_prob"]
    if site["mask"] is not None and site["mask"] is not True:
        log_p = torch.where(torch.as_tensor(site["mask"]), log_p, torch.nan)
    flat: Site = {**site, "fn": torch.distributions.Normal(torch.zeros(site["fn"].batch_shape), 1.0)}
    return _named(flat, in_float64(log_p))
