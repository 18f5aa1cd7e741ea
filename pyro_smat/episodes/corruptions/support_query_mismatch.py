"""Support-query mismatch: supports come from one domain, queries from another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pyro_smat.episodes.corruptions.corruption import ChoiceCorruption
from pyro_smat.episodes.index import ClassIndex
from pyro_smat.episodes.scope import Scope
from pyro_smat.episodes.selection import Selection
from pyro_smat.registry import register


@register("corruption", "support_query_mismatch")
@dataclass(frozen=True)
class SupportQueryMismatch(ChoiceCorruption):
    """The supports are images of the same classes from another domain; the queries are from the episode's own.

    Args:
        probability: share of the episodes that it happens to, in [0, 1].

    Raises:
        ValueError: for a value out of its range.
    """

    at_severities = {"probability": (0.2, 0.4, 0.6, 0.8, 1.0)}  # noqa: RUF012 (never changed)

    def check(self, scope: Scope) -> None:
        """Refuse a scope with a domain that shares too few classes with every other one."""
        for index in scope.all_indices():
            shared = [len(classes) for _, classes in _partners(scope, index, 2)]
            if max(shared, default=0) < scope.widest(index):
                raise ValueError(
                    f"{scope.described(index)} shares at most {max(shared, default=0)} classes with another domain; "
                    f"expected {scope.widest(index)} for supports and queries from two domains (lower way, or name "
                    "domains that share classes)"
                )

    def choose(self, scope: Scope, index: ClassIndex, shots: np.ndarray, rng: np.random.Generator) -> Selection:
        """Classes that two domains share, with their images in the other one."""
        partners = _partners(scope, index, len(shots))
        other, shared = partners[rng.integers(len(partners))]
        classes = rng.choice(shared, len(shots), replace=False)
        return Selection(classes, [other.rows[k] for k in classes.tolist()])


def _partners(scope: Scope, index: ClassIndex, way: int) -> list[tuple[ClassIndex, np.ndarray]]:
    """Other domains with at least ``way`` of the same classes, and these classes."""
    others = [other for other in scope.indices[index.attribute] if other is not index]
    shared = ((other, np.intersect1d(other.classes, index.classes)) for other in others)
    return [(other, classes) for other, classes in shared if len(classes) >= way]
