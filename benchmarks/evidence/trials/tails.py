"""Tails: routers trained on the tail of each fraction rho, and their tails at each level, in and out of domain."""

from __future__ import annotations

from typing import Any

from markdown import Found, accuracy, cvar, grid

from trials.variations import VariationTrial

LEVELS = (0.05, 0.1, 0.2)
CHANGES: dict[str, dict[str, Any]] = {"mean": {"objective": {"tail_weight": 0.0}}}
CHANGES |= {f"rho {rho}": {"objective": {"rho": rho, "threshold": "queue"}} for rho in (0.05, 0.1, 0.2, 0.5)}
CHANGES |= {
    f"rho {rho}, tail alone": {"objective": {"rho": rho, "threshold": "queue", "tail_weight": 1.0}} for rho in (0.1,)
}


class TailTrial(VariationTrial):
    def show(self, found: Found) -> list[str]:
        lines = []
        for block in found.parts(1):
            for condition in found.parts(2):
                columns = {f"CVaR {rho:g}": ("loss", cvar(rho)) for rho in LEVELS}
                columns = {"accuracy %": ("accuracy", accuracy), "loss": ("loss", lambda v: float(v.mean())), **columns}

                def text(row: str, column: str, at: Any = (block, condition), columns: Any = columns) -> str | None:
                    measure, statistic = columns[column]
                    value = found.average((row, *at), measure, "routed", statistic)
                    return None if value is None else f"{value:.{1 if measure == 'accuracy' else 3}f}"

                lines += grid(f"{block}, {condition}: trained on", self.variations, list(columns), text)
        return lines


TRIAL = TailTrial("Tail fraction", CHANGES)
