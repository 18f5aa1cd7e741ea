"""Markdown of kept cells: averages over seeds, and paired differences with intervals over the episodes they share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tables import Statistic, difference, shown


@dataclass(frozen=True)
class Kept:
    """A cell that was read: of which seed, under which key, with which values."""

    seed: int
    key: tuple[str, ...]
    values: dict[str, Any]


@dataclass(frozen=True)
class Found:
    """All cells of an experiment."""

    cells: Sequence[Kept]

    def at(self, *key: str) -> list[Kept]:
        """The cells of all seeds under a key."""
        return [cell for cell in self.cells if cell.key == key]

    def parts(self, place: int) -> list[str]:
        """All that stands at one place of the keys, in the order in which it was made."""
        return list(dict.fromkeys(cell.key[place] for cell in self.cells))

    def average(self, key: tuple[str, ...], measure: str, method: str, statistic: Statistic) -> float | None:
        """Mean over seeds of a statistic of a method's values; None where it is not there."""
        values = [np.array(c.values[measure][method]) for c in self.at(*key) if method in c.values.get(measure, {})]
        return float(np.mean([statistic(v) for v in values])) if values else None

    def gain(
        self, ours: tuple[str, ...], base: tuple[str, ...], measure: str, method: str, statistic: Statistic
    ) -> str | None:
        """One cell minus another of the same episodes, with the 95% interval over episodes."""
        by_seed = {cell.seed: cell for cell in self.at(*base)}
        pairs = [(c.values[measure], by_seed[c.seed].values[measure]) for c in self.at(*ours) if c.seed in by_seed]
        both = [{measure: {"ours": np.array(a[method]), "base": np.array(b[method])}} for a, b in pairs]
        if not both:
            return None
        return shown(difference(both, "ours", "base", measure, statistic), 1 if measure == "accuracy" else 2)


def accuracy(values: np.ndarray) -> float:
    """In percent."""
    return 100 * float(values.mean())


def cvar(rho: float) -> Statistic:
    """Mean of the worst share of the losses."""
    return lambda losses: float(np.sort(losses)[-max(1, round(rho * len(losses))) :].mean())


def grid(corner: str, rows: Iterable[str], columns: Sequence[str], cell: Callable[[str, str], str | None]) -> list[str]:
    """The lines of a table; a row of which nothing is there is left out."""
    lines = [f"| {corner} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for row in rows:
        found = [cell(row, column) for column in columns]
        if any(text is not None for text in found):
            lines.append(f"| {row} | {' | '.join(text or '' for text in found)} |")
    return [*lines, ""]
