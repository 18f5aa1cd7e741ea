"""Selection: classes and the images of one episode. Between the sampler, which draws the sizes, and the corruptions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pyro_smat.episodes.draw import Draw
from pyro_smat.episodes.index import ClassIndex
from pyro_smat.episodes.labelled import UNKNOWN
from pyro_smat.episodes.scope import Scope


@dataclass(frozen=True)
class Selection:
    """Classes that a corruption chose.

    Attributes:
        classes: ``(way,)``.
        rows: for each class the rows that its supports are drawn from.
        confounded_with: see :class:`Draw`.
    """

    classes: np.ndarray
    rows: list[np.ndarray]
    confounded_with: int = UNKNOWN


def draw_images(
    scope: Scope,
    index: ClassIndex,
    shots: np.ndarray,
    queries: np.ndarray,
    selection: Selection | None,
    rng: np.random.Generator,
) -> Draw:
    """Disjoint supports and queries of random classes, or of selected ones.

    Args:
        scope: what there is.
        index: where classes and queries come from.
        shots, queries: ``(way,)`` images of each class.
        selection: None draws the classes uniformly, and the supports from all images of a class.
        rng: source of randomness.

    Raises:
        ValueError: when identical pictures leave too few queries.
    """
    way = len(shots)
    classes = rng.choice(index.classes, way, replace=False) if selection is None else selection.classes
    support, query = [], []
    for label, (k, n, q) in enumerate(zip(classes.tolist(), shots.tolist(), queries.tolist(), strict=True)):
        rows = index.rows[k]
        drawn = rows[rng.choice(len(rows), n + q, replace=False)]
        if selection is None:
            support.append(drawn[:n])
            query.append(drawn[n:])
        else:
            allowed = selection.rows[label]
            support.append(allowed[rng.choice(len(allowed), n, replace=False)])
            unused = (drawn[:, None] != support[-1]).all(1)  # at most n of the n + q are in the support
            query.append(drawn[unused][:q])
    labels = np.repeat(np.arange(way), shots)
    draw = Draw(
        attribute=index.attribute,
        domain=index.domain,
        classes=classes,
        support=np.concatenate(support),
        support_labels=labels,
        query=np.concatenate(query),
        query_labels=np.repeat(np.arange(way), queries),
        support_truth=labels,
        confounded_with=UNKNOWN if selection is None else selection.confounded_with,
    )
    return draw if scope.pictures is None else _apart(draw, index, scope, rng)


def _apart(draw: Draw, index: ClassIndex, scope: Scope, rng: np.random.Generator) -> Draw:
    """Other queries for those whose picture the support shows."""
    query, shown = draw.query.copy(), scope.show(draw.support)
    for i in np.flatnonzero(np.isin(scope.show(query), shown)).tolist():
        k = int(draw.classes[draw.query_labels[i]])
        rows = index.rows[k]
        left = rows[~np.isin(scope.show(rows), shown) & ~np.isin(rows, query)]
        if not len(left):
            raise ValueError(
                f"class {scope.pool.class_names[draw.attribute][k]!r} has too few pictures that are not in the support "
                "of the same episode, under other labels; expected enough for its queries (remove duplicates from the "
                "pool, see ImagePool.duplicates, or pass identical_apart=False)"
            )
        query[i] = rng.choice(left)
    return replace(draw, query=query)
