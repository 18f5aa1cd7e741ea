"""What came of routed tasks, from their parts: counts, reasons of failure, mean and CVaR of losses, certificates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from pyro_smat.certificates import Certificate, cvar_upper_bound, mean_upper_bound
from pyro_smat.certificates.certificate import check_delta
from pyro_smat.inference.evaluation.certificate_table import certificate_table
from pyro_smat.inference.evaluation.certification import CERTIFICATE_SEED
from pyro_smat.inference.runs.routing.parts import PARTS, read_columns, whole_parts
from pyro_smat.metrics.risk import cvar

Measure = Literal["error", "brier"]
LOSSES = ("error", "brier", "nll")
REASONS = 5  # that are shown


@dataclass(frozen=True)
class LossSummary:
    """A loss over the tasks with labelled queries.

    Attributes:
        mean, cvar: of the tasks' losses.
    """

    mean: float
    cvar: float


@dataclass(frozen=True)
class RoutingSummary:
    """What came of all tasks.

    Attributes:
        tasks: how many.
        failed: that could not be routed.
        reasons: a failure -> how many tasks it has, the most frequent ones.
        labelled: tasks with labelled queries that were answered.
        reliable, falls_back: shares of the routed tasks for which it can be said; NaN for none.
        repeated: tasks with queries that are in their support.
        losses: "error", "brier" (half), "nll" (nats) -> mean and CVaR; empty without labels.
        rho: tail fraction.
        certificates: of mean and CVaR of one loss, each at half of delta; empty without labels.
        delta: of both together.
    """

    tasks: int
    failed: int
    reasons: Mapping[str, int]
    labelled: int
    reliable: float
    falls_back: float
    repeated: int
    losses: Mapping[str, LossSummary]
    rho: float
    certificates: tuple[Certificate, ...]
    delta: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        values = {name: getattr(self, name) for name in ("tasks", "failed", "labelled", "reliable", "falls_back")}
        return {
            **values,
            "reasons": dict(self.reasons),
            "repeated": self.repeated,
            "losses": {name: {"mean": one.mean, f"cvar_{self.rho:g}": one.cvar} for name, one in self.losses.items()},
            "delta": self.delta,
            "certificates": [one.to_dict() for one in self.certificates],
        }

    def __str__(self) -> str:
        lines = [f"{self.tasks:,} tasks, {self.failed:,} could not be routed"]
        lines += [f"  {count:,} x {reason}" for reason, count in self.reasons.items()]
        if self.reliable == self.reliable:
            lines.append(f"reliable: {100 * self.reliable:.1f}%, fall back: {100 * self.falls_back:.1f}%")
        if self.repeated:
            lines.append(f"{self.repeated:,} tasks have queries whose pixels are in their support, which flatters them")
        for name, one in self.losses.items():
            lines.append(f"{name}: mean {one.mean:.4f}, CVaR (worst {100 * self.rho:g}%) {one.cvar:.4f}")
        if self.certificates:
            lines.append(certificate_table(self.certificates, self.delta))
        return "\n".join(lines)


def summarize_parts(
    output: str | Path,
    *,
    loss: Measure = "error",
    rho: float = 0.1,
    delta: float = 0.05,
    seed: int = CERTIFICATE_SEED,
) -> RoutingSummary:
    """Mean, CVaR and certificates of the losses of all parts that are whole; 8 bytes a task and loss.

    The certificates speak of new tasks drawn as these were, independently of each other and of everything that made the
    router, and of those that can be routed.

    Args:
        output: of :func:`~pyro_smat.inference.runs.routing.route.route_tasks`.
        loss: what is certified: "error", or "brier" (half of it).
        rho: tail fraction in (0, 1].
        delta: probability that one of the two bounds fails.
        seed: of the order of play of the bounds.

    Raises:
        ValueError: for an output without parts, another loss, or a rho or delta out of range.
    """
    check_delta(delta)
    if loss not in ("error", "brier"):
        raise ValueError(f"loss is {loss!r}; expected 'error' or 'brier'")
    found = whole_parts(Path(output) / PARTS)
    if not found:
        raise ValueError(f"{Path(output) / PARTS} has no whole parts; expected what pyro-smat route writes")
    paths = [found[number] for number in sorted(found)]
    table = read_columns(paths, ["failure", "reliable", "falls_back", "repeated", *LOSSES])
    reasons: dict[str, int] = {}
    for reason in table["failure"].drop_null().to_pylist():
        reasons[reason] = reasons.get(reason, 0) + 1
    failed = sum(reasons.values())
    values = {name: table[name].drop_null().to_numpy().copy() for name in LOSSES}  # PyTorch wants to write
    labelled = len(values["error"])
    made: tuple[Certificate, ...] = ()
    if labelled:
        bounds = (
            mean_upper_bound(values[loss], delta / 2, seed=seed),
            cvar_upper_bound(values[loss], rho, delta / 2, seed=seed),
        )
        population = f"new tasks drawn independently as these {labelled:,} were, of those that can be routed"
        name = "Brier score / 2" if loss == "brier" else loss
        made = tuple(bound.about(name, population) for bound in bounds)
    tails = {
        name: LossSummary(float(x.mean()), float(cvar(torch.from_numpy(x), rho)))
        for name, x in values.items()
        if len(x)
    }
    return RoutingSummary(
        tasks=len(table),
        failed=failed,
        reasons=dict(sorted(reasons.items(), key=lambda one: -one[1])[:REASONS]),
        labelled=labelled,
        reliable=_share(table["reliable"]),
        falls_back=_share(table["falls_back"]),
        repeated=int((table["repeated"].drop_null().to_numpy() > 0).sum()),
        losses=tails,
        rho=rho,
        certificates=made,
        delta=delta,
    )


def _share(column: Any) -> float:
    known = np.array(column.drop_null().to_pylist(), dtype=bool)
    return float(known.mean()) if len(known) else float("nan")
