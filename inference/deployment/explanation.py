"""Explanation: what a routed task says of itself, for people."""

from __future__ import annotations

from dataclasses import dataclass

from pyro_smat.certificates import Certificate
from pyro_smat.inference.deployment.refinement import Refinement

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
        score, uncertainty, threshold, abstains: the abstention decision; NaN and False with ``per_queries``.
        per_queries: whether the decision is made for every batch of queries by itself.
        fallback: what an abstaining task uses.
        rule: what predictions use; networks: forward passes an image; parameters: d of each.
        refinement: what it was and did to the support loss, None for the router alone.
        misrouting: probability that the routing is wrong, from validation; None where true routes were not known.
        certificate: of the tasks that are routed, None without a guarantee or for a refined task.
    """

    components: tuple[Component, ...]
    score: str
    uncertainty: float
    threshold: float
    abstains: bool
    rule: str
    networks: int
    parameters: int
    refinement: Refinement | None = None
    per_queries: bool = False
    fallback: str = "source 0"
    misrouting: float | None = None
    certificate: Certificate | None = None

    def __str__(self) -> str:
        width = max(len(c.name) for c in self.components)
        lines = [
            f"{c.name:<{width}}  {c.weight:5.2f}  [{c.low:4.2f}, {c.high:4.2f}]  {'#' * round(20 * c.weight)}"
            for c in self.components
            if c.weight >= OPEN
        ]
        hidden = len(self.components) - len(lines)
        if hidden:
            lines.append(f"({hidden} more with weight below {OPEN})")
        if self.refinement is not None:
            lines.append(f"refined by {self.refinement}")
        if self.per_queries:
            lines.append(
                f"{self.score} is taken for every batch of queries; above {self.threshold:.3f} it falls back to "
                f"{self.fallback}"
            )
        else:
            verdict = f"abstains: falls back to {self.fallback}" if self.abstains else "routes"
            lines.append(
                f"uncertainty ({self.score}) {self.uncertainty:.3f}, threshold {self.threshold:.3f}: {verdict}"
            )
        if self.misrouting is not None:
            lines.append(f"probability of misrouting {100 * self.misrouting:.0f}%")
        if self.certificate is not None:
            lines.append(f"routed tasks: {self.certificate}")
        lines += [
            f"cost: rule {self.rule!r}, {self.networks} network(s) of {self.parameters:,} parameters an image",
        ]
        return "\n".join(lines)
