"""Missing class: the shots of a class show another class, which the queries do not have."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pyro_smat.episodes.corruptions.corruption import RowCorruption
from pyro_smat.episodes.corruptions.outliers import Outliers
from pyro_smat.episodes.draw import Draw
from pyro_smat.episodes.index import ClassIndex
from pyro_smat.episodes.labelled import UNKNOWN
from pyro_smat.episodes.scope import Scope
from pyro_smat.registry import register


@register("corruption", "missing_class")
@dataclass(frozen=True)
class MissingClass(RowCorruption):
    """All shots of some classes are images of as many classes that the episode has not; their labels stay.

    Args:
        classes: how many, at least 1; all but one of an episode that has no more, and no more than there are others.
        probability: share of the episodes that it happens to, in [0, 1].

    Raises:
        ValueError: for a value out of its range.
    """

    classes: int = 1

    at_severities = {"classes": (1, 2, 3, 4, 5)}  # noqa: RUF012 (never changed)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classes < 1:
            raise ValueError(f"classes of missing_class is {self.classes}; expected at least 1")

    def check(self, scope: Scope) -> None:
        """Refuse a scope in which some episode has all classes."""
        Outliers().check(scope)

    def change(self, draw: Draw, index: ClassIndex, scope: Scope, rng: np.random.Generator) -> Draw:
        """The draw with other images for the missing classes."""
        others = np.setdiff1d(index.classes, draw.classes)
        count = min(self.classes, draw.way - 1, len(others))
        gone, shown = rng.choice(draw.way, count, replace=False), rng.choice(others, count, replace=False)
        support, truth = draw.support.copy(), draw.support_truth.copy()
        queries = scope.show(draw.query)
        for label, k in zip(gone.tolist(), shown.tolist(), strict=True):
            shots = np.flatnonzero(draw.support_truth == label)
            rows = index.rows[k][~np.isin(scope.show(index.rows[k]), queries)]
            if len(rows) < len(shots):
                raise ValueError(
                    f"class {scope.pool.class_names[index.attribute][k]!r} has {len(rows)} pictures that are not "
                    f"queries of other classes; expected {len(shots)} (remove duplicates from the pool)"
                )
            support[shots] = rng.choice(rows, len(shots), replace=False)
            truth[shots] = UNKNOWN
        return replace(draw, support=support, support_truth=truth)
