"""Confounding: supports in which a second attribute tells the classes apart as well as the true one does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from pyro_smat.episodes.corruptions.corruption import ChoiceCorruption
from pyro_smat.episodes.index import ClassIndex
from pyro_smat.episodes.scope import Scope
from pyro_smat.episodes.selection import Selection
from pyro_smat.registry import register

_REDRAWS = 100  # sets of classes that are tried before a confounded episode is called impossible


@register("corruption", "confounding")
@dataclass(frozen=True)
class Confounding(ChoiceCorruption):
    """Another attribute b takes one value v_k on all shots of class k, and the v_k are distinct.

    The support alone cannot tell the two attributes apart; queries are drawn from all images of a class.
    ``Episode.confounded_with`` is b.

    Args:
        probability: share of the episodes whose support is confounded, in [0, 1].

    Raises:
        ValueError: for a value out of its range.

    Example:
        >>> print(Confounding(probability=0.5))
        confounding in 50% of the episodes
    """

    at_severities = {"probability": (0.2, 0.4, 0.6, 0.8, 1.0)}  # noqa: RUF012 (never changed)

    def applies(self, rng: np.random.Generator) -> bool:
        """Whether it happens to this episode; always draws, so that clean episodes are those of a clean sampler."""
        return bool(rng.random() < self.probability)

    def check(self, scope: Scope) -> None:
        """Refuse a scope that has no confounded episode with the largest way and number of shots."""
        if self.probability == 0:
            return
        for index in scope.all_indices():
            others, way, shots = scope.other_attributes(index), scope.widest(index), scope.most_shots
            if not others:
                raise ValueError(
                    f"the support cannot be confounded: the pool has the one attribute {scope.pool.attributes[0]!r}; "
                    "expected at least two, or no confounding"
                )
            if not any(_assignable(scope, index, b, shots) >= way for b in others):
                raise ValueError(_thinnest(scope, index, way, shots))

    def choose(self, scope: Scope, index: ClassIndex, shots: np.ndarray, rng: np.random.Generator) -> Selection:
        """Classes, and for each its images with a value of b that is its own.

        Other values and other attributes are tried before other classes.

        Raises:
            ValueError: when 100 sets of classes had no such values.
        """
        others = scope.other_attributes(index)
        for _ in range(_REDRAWS):
            classes = rng.choice(index.classes, len(shots), replace=False)
            for b in rng.permutation(others).tolist():
                overlap = scope.overlap(index, b)
                values = distinct_values(overlap.counts[classes] >= shots[:, None], rng)
                if (values >= 0).all():
                    rows = [overlap.rows(k, v) for k, v in zip(classes.tolist(), values.tolist(), strict=True)]
                    return Selection(classes, rows, confounded_with=b)
        raise ValueError(
            f"no confounded episode in {_REDRAWS} draws: {_thinnest(scope, index, len(shots), int(shots.max()))}"
        )


def distinct_values(eligible: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random assignment of values to classes, no value twice, that covers as many classes as possible.

    Args:
        eligible: ``(K, V)`` bool, True where class k may take value v.
        rng: source of randomness.

    Returns:
        ``(K,)`` int: the value of each class, -1 for a class that is left over. Where a complete assignment exists it
        is found (first fit, else Hopcroft and Karp, on shuffled values), so a -1 means that there is none.
    """
    order = rng.permutation(eligible.shape[1])
    free, first_fit = order.tolist(), []
    for row in eligible.tolist():  # nearly always enough, and much faster than the general matching
        value = next((v for v in free if row[v]), None)
        if value is None:
            break
        free.remove(value)
        first_fit.append(value)
    else:
        return np.array(first_fit)
    match = maximum_bipartite_matching(csr_array(eligible[:, order]), perm_type="column")
    return np.where(match >= 0, order[match], -1)


def _assignable(scope: Scope, index: ClassIndex, b: int, shots: int) -> int:
    """The most classes that can have distinct values of b at once."""
    eligible = scope.overlap(index, b).counts[index.classes] >= shots
    return int((distinct_values(eligible, np.random.Generator(np.random.PCG64(0))) >= 0).sum())


def _thinnest(scope: Scope, index: ClassIndex, way: int, shots: int) -> str:
    others = scope.other_attributes(index)
    best = np.stack([scope.overlap(index, b).counts[index.classes].max(1) for b in others]).max(0)
    worst = int(best.argmin())
    covered = max(_assignable(scope, index, b, shots) for b in others)
    names = scope.pool.class_names[index.attribute]
    return (
        f"{scope.described(index)} cannot be confounded with {[scope.pool.attributes[b] for b in others]}; "
        f"expected {way} classes with a value of their own that {shots} of their images share, found at most "
        f"{covered}; class {names[index.classes[worst]]!r} has at most {best[worst]} images that share a value "
        "(lower way or shot, drop class_imbalance, or leave the attribute out)"
    )
