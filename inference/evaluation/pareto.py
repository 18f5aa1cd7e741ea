"""Pareto sweeps: accuracy, cost and latency of a trained router under settings that open more or less of it.

Router and evaluation episodes -> every :class:`Setting` on the same episodes -> a table whose rows that nothing beats
are marked. The figure is :func:`pyro_smat.report.cost_figure.pareto_figure`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_smat.cost import (
    CostModel,
    compose_active,
    non_dominated,
    open_entries_of,
    penalised_choice,
    project_to_budget,
    satisfaction,
)
from pyro_smat.cost.timing import median_times
from pyro_smat.episodes import EpisodeBatch
from pyro_smat.float64 import in_float64
from pyro_smat.guides import RoutingPosterior
from pyro_smat.guides.posterior import keep_largest
from pyro_smat.guides.router import RoutingGuide
from pyro_smat.inference.decision.mixture import Mixture
from pyro_smat.inference.decision.prediction import as_rule
from pyro_smat.inference.decision.rules.rule import DecisionRule
from pyro_smat.inference.objective.candidates import as_deployed, support_candidate_losses
from pyro_smat.inference.objective.outcome import class_probabilities
from pyro_smat.metrics.intervals import episode_interval
from pyro_smat.models.routed import RoutedModel
from pyro_smat.networks.basis import Basis
from pyro_smat.registry import Choice


@dataclass(frozen=True)
class Setting:
    """One way to deploy a router: which networks a task runs, from its posterior and its batch."""

    name: str
    route: Callable[[RoutingPosterior, EpisodeBatch], Mixture]


def truncation(sources: int, experts: int = 0) -> Setting:
    """One network: the posterior mean with its k largest source weights and e largest expert weights, renormalised.

    Raises:
        ValueError: for fewer than one source, or a negative number of experts.
    """
    if sources < 1 or experts < 0:
        raise ValueError(f"got {sources} sources and {experts} experts to keep; expected at least 1 and 0")

    def route(posterior: RoutingPosterior, batch: EpisodeBatch) -> Mixture:
        ours, theirs = posterior.mean.split([posterior.num_sources, posterior.num_experts], dim=-1)
        theirs = keep_largest(theirs, experts) if experts else torch.zeros_like(theirs)
        return Mixture.one(torch.cat([keep_largest(ours, sources), theirs], dim=-1))

    name = f"{sources} source{'s' * (sources > 1)}" + f", {experts} expert{'s' * (experts > 1)}" * (experts > 0)
    return Setting(name, route)


def truncations(sources: int, experts: int) -> list[Setting]:
    """Every :func:`truncation` of R sources and M experts; the first keeps all of them."""
    return [truncation(k, e) for k in range(sources, 0, -1) for e in range(experts, -1, -1)]


def by_rule(model: RoutedModel, rule: DecisionRule | Choice | Mapping[str, Any] | str, seed: int = 0) -> Setting:
    """A decision rule, or what names one, with a generator of its own for those that draw."""
    generators: dict[torch.device, torch.Generator] = {}
    decide = as_rule(rule, model)

    def route(posterior: RoutingPosterior, batch: EpisodeBatch) -> Mixture:
        device = batch.way.device
        if device not in generators:
            generators[device] = torch.Generator(device).manual_seed(seed)
        return decide(posterior, batch, generator=generators[device])

    return Setting(decide.name, route)


def projected(cost: CostModel, budget: float, open_entries: Tensor | None = None) -> Setting:
    """One network: the posterior mean projected onto a budget (:func:`pyro_smat.cost.project_to_budget`)."""

    def route(posterior: RoutingPosterior, batch: EpisodeBatch) -> Mixture:
        return Mixture.one(project_to_budget(posterior.mean, cost, budget, open_entries))

    return Setting(f"projection, {budget:.4g} {cost.unit}", route)


def by_lagrangian(model: RoutedModel, candidates: Tensor, costs: Tensor, weight: float) -> Setting:
    """One network: the candidate of least leave-one-out support loss + lambda cost; the router is not asked.

    Args:
        model: runs every candidate on the support, which is not among the costs.
        candidates: ``(J, [L,] C)``.
        costs: ``(J,)``.
        weight: lambda, e.g. solved on validation episodes (:func:`pyro_smat.cost.solve_weight`).
    """

    def route(posterior: RoutingPosterior, batch: EpisodeBatch) -> Mixture:
        losses = support_candidate_losses(model, batch, candidates)
        return Mixture.one(candidates.to(losses.device)[penalised_choice(losses.mT, costs, weight)])

    return Setting(f"lambda {weight:.4g}", route)


def sweep(
    model: RoutedModel,
    guide: RoutingGuide,
    batches: Sequence[EpisodeBatch],
    settings: Sequence[Setting],
    costs: Sequence[CostModel],
    *,
    budget: float | None = None,
    timed: int = 3,
    repeats: int = 5,
    progress: bool = False,
) -> pd.DataFrame:
    """Every setting on the same episodes.

    Args:
        model, guide: the router, run as deployed.
        batches: evaluation episodes, with features.
        settings: with different names; the first is what the others are compared with.
        costs: models of different units; a task costs the sum over its networks.
        budget: of a task, in the unit of the first cost model.
        timed: episodes of the first batch on which latency is measured, one task at a time.
        repeats: measurements of each.
        progress: show a bar.

    Returns:
        A row a setting: ``setting``, ``networks`` a task, active ``sources`` and ``experts`` a network (mean, and over
        blocks), ``accuracy`` with its 95% t interval ``_low``, ``_high``, ``gain`` (paired difference of accuracy to
        the first setting) with its interval, ``nll`` in nats per query, ``cost_<unit>`` (mean over tasks), measured
        ``compose_ms`` and ``latency_ms`` (composing, then support and queries through the networks), the share of
        tasks ``within_budget`` where there is one, and for every cost and the latency ``front_<column>``: whether no
        other setting has at most that cost and at least that accuracy, and one of the two better.

    Raises:
        ValueError: without episodes or settings, for names or units that repeat.
    """
    names, units = [s.name for s in settings], [cost.unit for cost in costs]
    if not batches or not settings or timed < 1:
        raise ValueError(f"got {len(batches)} batches, {len(settings)} settings, {timed} timed; expected some of each")
    if len(set(names)) < len(names) or len(set(units)) < len(units) or not costs:
        raise ValueError(f"settings are {names} and costs in {units}; expected different names, and different units")
    with as_deployed(model, guide):
        opened = None if model.experts is None else open_entries_of(model.experts.masks(), model.network.space)
        router = _Deployed(model, guide, model.basis(), opened)
        bar = tqdm(batches, desc="sweeping", unit="batch", disable=not progress, leave=False)
        episodes = pd.concat([_evaluate(router, batch, settings, costs) for batch in bar])
        times = _latencies(router, batches[0], settings, timed, repeats)
    return _summary(episodes, names, units, times, budget)


@dataclass(frozen=True)
class _Deployed:
    model: RoutedModel
    guide: RoutingGuide
    basis: Basis  # (C, d)
    opened: Tensor | None  # (M, L) open entries of the experts


def _evaluate(
    router: _Deployed, batch: EpisodeBatch, settings: Sequence[Setting], costs: Sequence[CostModel]
) -> pd.DataFrame:
    """A row for every setting and episode."""
    posterior, basis = router.guide.posterior(batch), router.basis
    routes = [setting.route(posterior, batch) for setting in settings]
    # All settings in one forward: their networks are particles of one composed batch.
    drawn = class_probabilities(
        router.model, torch.cat([mixture.coefficients.to(basis.dtype) for mixture in routes]), batch, basis
    )
    mask, labels = batch.query.mask, batch.query.labels
    parts = []
    pieces = drawn.split([len(mixture) for mixture in routes])
    for setting, mixture, own in zip(settings, routes, pieces, strict=True):
        coefficients = mixture.coefficients
        probabilities = (mixture.weights.unsqueeze(-1).unsqueeze(-1) * own).sum(0)  # (B, Q, W)
        chosen = probabilities.gather(-1, labels.unsqueeze(-1)).squeeze(-1).clamp(min=1e-12)
        active = in_float64(coefficients != 0).mean(0)  # (B, [L,] C)
        active = active.mean(1) if posterior.num_blocks > 1 else active
        columns = {
            "networks": torch.full((len(batch),), len(coefficients)),
            "sources": active[..., : posterior.num_sources].sum(-1),
            "experts": active[..., posterior.num_sources :].sum(-1),
            "accuracy": _mean(in_float64(probabilities.argmax(-1) == labels), mask),
            "nll": _mean(-in_float64(chosen.log()), mask),
            **{f"cost_{cost.unit}": cost.cost_of(coefficients, router.opened).sum(0) for cost in costs},
        }
        frame = pd.DataFrame({key: values.cpu().numpy() for key, values in columns.items()})
        parts.append(frame.assign(setting=setting.name))
    return pd.concat(parts)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum(-1) / mask.sum(-1)


def _latencies(
    router: _Deployed, batch: EpisodeBatch, settings: Sequence[Setting], timed: int, repeats: int
) -> dict[str, tuple[float, float]]:
    """Setting -> (compose, whole) milliseconds, medians over tasks; all settings and tasks take turns."""
    network, posterior = router.model.network, router.guide.posterior(batch)

    def compose_all(rows: Tensor) -> Tensor:
        return torch.stack([compose_active(row, router.basis, network.space, router.opened) for row in rows])

    def whole(rows: Tensor, images: Tensor) -> Tensor:
        return network(compose_all(rows), images.expand(len(rows), *images.shape))

    composing: list[Callable[[], object]] = []
    running: list[Callable[[], object]] = []
    tasks = min(timed, len(batch))
    for setting in settings:
        coefficients = setting.route(posterior, batch).coefficients
        for task in range(tasks):
            support = batch.support.images[task][batch.support.mask[task]]
            images = torch.cat([support, batch.query.images[task][batch.query.mask[task]]])
            composing.append(partial(compose_all, coefficients[:, task]))
            running.append(partial(whole, coefficients[:, task], images))
    compose_times, times = (median_times(calls, router.basis.device, repeats) for calls in (composing, running))
    return {
        setting.name: (
            statistics.median(compose_times[i * tasks : (i + 1) * tasks]),
            statistics.median(times[i * tasks : (i + 1) * tasks]),
        )
        for i, setting in enumerate(settings)
    }


def _summary(
    episodes: pd.DataFrame,
    names: Sequence[str],
    units: Sequence[str],
    times: dict[str, tuple[float, float]],
    budget: float | None,
) -> pd.DataFrame:
    rows = []
    first = episodes[episodes.setting == names[0]].accuracy.to_numpy(np.float64)
    for name in names:
        own = episodes[episodes.setting == name]
        accuracy = own.accuracy.to_numpy(np.float64)
        row: dict[str, object] = {"setting": name, **own[["networks", "sources", "experts"]].mean()}
        for key, interval in (("accuracy", episode_interval(accuracy)), ("gain", episode_interval(accuracy - first))):
            row |= {key: interval.value, f"{key}_low": interval.low, f"{key}_high": interval.high}
        row |= {key: own[key].mean() for key in ("nll", *(f"cost_{unit}" for unit in units))}
        row["compose_ms"], row["latency_ms"] = times[name]
        if budget is not None:
            row["within_budget"] = satisfaction(torch.tensor(own[f"cost_{units[0]}"].tolist()), budget)
        rows.append(row)
    table = pd.DataFrame(rows)
    for column in (*(f"cost_{unit}" for unit in units), "latency_ms"):
        table[f"front_{column}"] = non_dominated(table[column].to_numpy(), table.accuracy.to_numpy())
    return table
