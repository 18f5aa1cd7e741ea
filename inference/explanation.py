"""Explanation: what a routed task says of itself, for people."""

from __future__ import annotations

from dataclasses import dataclass

OPEN = 0.01  # a source or expert with less mean weight than this is not worth naming


@dataclass(frozen=True)
class Component:
    """A source or expert in a routing: posterior mean weight, 90% interval, and coordinates that it opens."""

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
        score, uncertainty, threshold, abstains: the abstention decision.
        rule: what predictions use; networks: forward passes an image; parameters: d of each.
    """

    components: tuple[Component, ...]
    score: str
    uncertainty: float
    threshold: float
    abstains: bool
    rule: str
    networks: int
    parameters: int

    def __str__(self) -> str:
        width = max(len(c.name) for c in self.components)
        lines = [
            f"{c.name:<{width}}  {c.weight:5.2f}  [{c.low:4.2f}, {c.high:4.2f}]  {'#' * round(20 * c.weight)}"
            for c in self.components
            if c.weight >= OPEN
        ]
        hidden = len(self.components) - len(lines)
        if hidden:
            lines.append(f"({hidden} more with mean weight below {OPEN})")
        verdict = "abstains: falls back to source 0" if self.abstains else "routes"
        lines += [
            f"uncertainty ({self.score}) {self.uncertainty:.3f}, threshold {self.threshold:.3f}: {verdict}",
            f"cost: rule {self.rule!r}, {self.networks} network(s) of {self.parameters:,} parameters an image",
        ]
        return "\n".join(lines)
