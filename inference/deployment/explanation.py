"""Explanation: what a routed task says of itself, for people."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pyro_smat.certificates import Certificate
from pyro_smat.inference.deployment.refinement import Refinement
from pyro_smat.inference.deployment.routed_tasks import RoutedTasks
from pyro_smat.inference.deployment.suggestion import reasons_of, view_of

if TYPE_CHECKING:
    from pyro_smat.inference.deployment.adapted_task import AdaptedTask

OPEN = 0.01  # a source or expert with less weight than this is not worth naming


@dataclass(frozen=True)
class Component:
    """A source or expert in a routing: its weight (the refined one, or the posterior mean), 90% interval of the
    posterior, and coordinates that it opens."""

    name: str
    weight: float
    low: float
    high: float
    coordinates: int


@dataclass(frozen=True)
class Explanation:
    """Which sources and experts a task uses, how sure the routing is, and what a prediction costs.

    Attributes:
        components: every source, then every expert.
        score, uncertainty, threshold, falls_back: the decision on the fallback; NaN and False with ``per_queries``, NaN
            where no task ever falls back.
        per_queries: whether that decision is made for every batch of queries by itself.
        fallback: what a task that falls back uses.
        rule: what predictions use; networks: forward passes an image; parameters: d of each.
        mass: share of the posterior that these networks hold; None where they are draws.
        risk, tolerance, reliable: whether answers can be relied on; NaN without a risk.
        risk_is_error: whether the risk is a predicted share of wrong answers.
        reasons: sentences that say what the router is torn between, or what makes it sure.
        refinement: what it was and did to the support loss, None for the router alone.
        misrouting: probability that the most trusted route is wrong; None where unknown.
        misrouting_episodes: on so many validation episodes it was calibrated; 0 for the posterior's own.
        certificate: of the tasks that are relied on, None without a guarantee or for a refined task.
    """

    components: tuple[Component, ...]
    score: str
    uncertainty: float
    threshold: float
    falls_back: bool
    rule: str
    networks: int
    parameters: int
    refinement: Refinement | None = None
    per_queries: bool = False
    fallback: str = "source 0"
    risk: float = math.nan
    tolerance: float = math.inf
    risk_is_error: bool = False
    reliable: bool = True
    reasons: tuple[str, ...] = ()
    mass: float | None = None
    misrouting: float | None = None
    misrouting_episodes: int = 0
    certificate: Certificate | None = None

    def __str__(self) -> str:
        width = max(len(c.name) for c in self.components)
        shown = {c: _interval(c, self.refinement is None) for c in self.components}
        lines = [
            f"{c.name:<{width}}  {c.weight:5.2f}  {shown[c]:<12}  {'#' * round(20 * c.weight)}".rstrip()
            for c in self.components
            if c.weight >= OPEN
        ]
        hidden = len(self.components) - len(lines)
        if hidden:
            lines.append(f"({hidden} more with weight below {OPEN})")
        if self.refinement is not None:
            lines.append(f"refined by {self.refinement}")
        lines += [*self.reasons, *self.doubts, *self._fallback()]
        if self.certificate is not None:
            lines.append(f"reliable tasks: {self.certificate}")
        held = "" if self.mass is None else f" that hold {100 * self.mass:.4g}% of the posterior"
        lines.append(
            f"cost: rule {self.rule!r}, {self.networks} network(s){held}, {self.parameters:,} parameters each, an image"
        )
        return "\n".join(lines)

    @property
    def abstains(self) -> bool:
        """Not reliable."""
        return not self.reliable

    @property
    def doubts(self) -> tuple[str, ...]:
        """Sentences on how far route and answers can be trusted."""
        lines = []
        if self.misrouting is not None:
            source = (
                f"the posterior's own, calibrated on {self.misrouting_episodes} validation episodes"
                if self.misrouting_episodes
                else "the posterior's own, not calibrated"
            )
            lines.append(f"probability of misrouting {_percent(self.misrouting)} ({source})")
        if not math.isnan(self.risk):
            verdict = "reliable" if self.reliable else "not reliable: abstains"
            if self.risk_is_error:
                share = _percent(min(max(self.risk, 0.0), 1.0))
                lines.append(f"expects {share} wrong answers, tolerance {_percent(self.tolerance)}: {verdict}")
            else:
                lines.append(f"risk {self.risk:.3f}, tolerance {self.tolerance:.3f}: {verdict}")
        return tuple(lines)

    def _fallback(self) -> list[str]:
        if self.threshold == math.inf:
            return [f"never falls back: {self.fallback} did not pay on validation episodes, or there were none"]
        if self.per_queries:
            return [
                f"{self.score} is taken for every batch of queries; above {self.threshold:.3f} it falls back to "
                f"{self.fallback}"
            ]
        verdict = f"falls back to {self.fallback}" if self.falls_back else "routes"
        return [f"uncertainty ({self.score}) {self.uncertainty:.3f}, threshold {self.threshold:.3f}: {verdict}"]


def _interval(part: Component, of_mean: bool) -> str:
    """The interval, or nothing where it holds nothing but the printed weight: "1.00 [1.00, 1.00]" says no more.

    A mean outside its interval is of a posterior that is mostly elsewhere, and the words say so.
    """
    low, weight, high = (f"{value:.2f}" for value in (part.low, part.weight, part.high))
    if low == weight == high:
        return ""
    if not of_mean or low <= weight <= high:
        return f"[{low}, {high}]"
    return f"mostly {low}" if low == high else f"mostly {low} to {high}"


def _percent(share: float) -> str:
    """ "<1%" and ">99%" rather than a certainty that is none."""
    if 0 < share < 0.01:
        return "<1%"
    return ">99%" if 0.99 < share < 1 else f"{100 * share:.0f}%"


@torch.no_grad()
def explanation_of(task: AdaptedTask) -> Explanation:
    """What a task says of itself before there are queries."""
    own, deployment = task.alone, task.alone.deployment
    reliability = deployment.reliability
    used = own.owner.fallback if task.falls_back else own.accepted_rule
    composed = own.networks(used, own.posterior)
    assert composed is not None  # a task by itself always has networks
    networks, _ = composed
    return Explanation(
        components=_components(own),
        score=deployment.scorer.title,
        uncertainty=math.nan if deployment.never_falls_back else task.uncertainty,
        threshold=deployment.threshold,
        falls_back=task.falls_back,
        per_queries=deployment.looks_at_queries,
        fallback=deployment.fallback,
        risk=task.risk,
        tolerance=math.inf if reliability is None else reliability.tolerance,
        risk_is_error=reliability is not None and reliability.is_error,
        reliable=task.reliable,
        reasons=reasons_of(view_of(own)),
        misrouting=None if math.isnan(task.misrouting) else task.misrouting,
        misrouting_episodes=0 if deployment.misrouting is None else deployment.misrouting.episodes,
        certificate=deployment.certificate if own.refinement is None else None,
        rule=task.rule,
        networks=len(networks.names),
        mass=None if networks.mass is None else float(networks.mass[0]),
        parameters=own.owner.router.library.space.dim,
        refinement=own.refinement,
    )


def _components(task: RoutedTasks) -> tuple[Component, ...]:
    """Weights of sources and experts, with intervals of draws and the coordinates that they open."""
    router, posterior, refinement = task.owner.router, task.posterior, task.refinement
    draws = posterior.sample(512, task.generator())[:, 0]
    mean = posterior.mean[0] if refinement is None else refinement.coefficients
    if posterior.num_blocks > 1:  # a block counts by its share of the coordinates
        share = torch.tensor(router.library.space.block_sizes, device=mean.device).to(mean)
        share = (share / share.sum()).unsqueeze(-1)
        draws, mean = (draws * share).sum(-2), (mean * share).sum(-2)
    low, high = torch.quantile(draws, draws.new_tensor([0.05, 0.95]), dim=0)
    names = (*router.library.names, *(f"expert {m}" for m in range(posterior.num_experts)))
    sizes = [router.library.space.dim] * posterior.num_sources
    if router.model.experts is not None:
        masks = None if refinement is None else refinement.masks
        sizes += (router.model.experts.masks() if masks is None else masks).sum(-1).tolist()
    return tuple(
        Component(name, float(mean[i]), float(low[i]), float(high[i]), int(sizes[i])) for i, name in enumerate(names)
    )
