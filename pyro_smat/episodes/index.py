"""Class indices: the rows of an ImagePool by attribute, domain and class, and whether they suffice for episodes.

The sampler (:mod:`pyro_smat.episodes.sampler`) builds them once, so that a draw never looks at the whole pool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from pyro_smat.episodes.labelled import UNKNOWN
from pyro_smat.episodes.pool import ImagePool

NAMED = 8  # how many offenders an error lists


@dataclass(frozen=True)
class ClassIndex:
    """What one attribute finds in one domain (or in all, -1): usable classes, their rows, and classes too small."""

    attribute: int
    domain: int
    classes: np.ndarray
    rows: dict[int, np.ndarray]
    small: dict[int, int]


def index_classes(
    pool: ImagePool,
    attributes: list[int],
    domains: list[int],
    mix_domains: bool,
    wanted: dict[int, list[int] | None],
    shots: int,
    queries: int,
    pictures: np.ndarray | None = None,
) -> dict[int, list[ClassIndex]]:
    """The rows of every (attribute, domain, class); classes with 1 to ``shots + queries`` - 1 images are too small.

    Args:
        pool: the images.
        attributes, domains: indices of those to draw from.
        mix_domains: make one index of all domains.
        wanted: for every attribute its classes to draw from, None for all.
        shots, queries: images that an episode may need of one class.
        pictures: see :attr:`ImagePool.pictures`; where given, copies of what ``shots`` images show do not count.

    Raises:
        ValueError: when a class that was asked for has no image in the domains.
    """
    need = shots + queries
    labels, domain = pool.labels.cpu().numpy(), pool.domain.cpu().numpy()
    groups = {d: np.flatnonzero(domain == d) for d in domains}
    if mix_domains and len(domains) > 1:
        groups = {UNKNOWN: np.flatnonzero(np.isin(domain, domains))}
    indices: dict[int, list[ClassIndex]] = {}
    for a in attributes:
        indices[a] = []
        named = wanted[a]
        total = np.zeros(len(pool.class_names[a]), dtype=np.int64)
        for d, members in groups.items():
            order = members[np.argsort(labels[members, a], kind="stable")]
            counts = np.bincount(labels[members, a], minlength=len(total))
            total += counts
            starts = np.concatenate([[0], np.cumsum(counts)])
            considered = range(len(counts)) if named is None else named
            if pictures is not None:
                counts = counts - np.array([_idle_copies(pictures[order[i:j]], shots) for i, j in pairwise(starts)])
            rows = {k: order[starts[k] : starts[k + 1]] for k in considered if counts[k] >= need}
            small = {k: int(counts[k]) for k in considered if 0 < counts[k] < need}
            indices[a].append(ClassIndex(a, d, np.array(sorted(rows), dtype=np.int64), rows, small))
        absent = [pool.class_names[a][k] for k in named or [] if total[k] == 0]
        if absent:
            raise ValueError(
                f"classes {absent[:NAMED]} of attribute {pool.attributes[a]!r} have 0 images in the chosen domains; "
                f"expected at least {need} of each"
            )
    return indices


def _idle_copies(pictures: np.ndarray, shots: int) -> int:
    """How many images ``shots`` shots of a class can keep out of its queries, because they are copies of the shots."""
    copies = np.sort(np.unique(pictures, return_counts=True)[1] - 1)
    return int(copies[-shots:].sum())


def enough_classes(
    pool: ImagePool, indices: list[ClassIndex], way: tuple[int, int], shots: int, queries: int
) -> list[ClassIndex]:
    """The indices of one attribute that can give some episode; refuse when none can give the largest."""
    most = max(indices, key=lambda s: len(s.classes))
    if len(most.classes) < way[1]:
        where = "any one domain" if len(indices) > 1 else "the pool"
        raise ValueError(
            f"attribute {pool.attributes[most.attribute]!r} has {len(most.classes)} classes with at least "
            f"{shots + queries} images in {where}; expected {way[1]} for way {way[1]} ({shots} shots and {queries} "
            f"queries of each). {list_small(pool, indices)}Lower way, shot or query, or leave the attribute out"
        )
    return [s for s in indices if len(s.classes) >= way[0]]


def check_small_classes(pool: ImagePool, indices: dict[int, list[ClassIndex]], need: int) -> None:
    """Refuse classes that have images, but fewer than ``need``."""
    for a, group in indices.items():
        if any(s.small for s in group):
            raise ValueError(
                f"attribute {pool.attributes[a]!r} has classes with fewer than the {need} images (shots and queries) "
                f"that an episode may need. {list_small(pool, group)}Lower shot or query, add images, or pass "
                "skip_small_classes=True to leave them out"
            )


def check_idle_domains(
    pool: ImagePool, indices: dict[int, list[ClassIndex]], used: dict[int, list[ClassIndex]], way: int
) -> None:
    """Refuse domains that can index no episode of any attribute."""
    active = {s.domain for group in used.values() for s in group}
    for s in (s for group in indices.values() for s in group):
        if s.domain not in active:
            raise ValueError(
                f"domain {pool.domain_names[s.domain]!r} has {len(s.classes)} usable classes of attribute "
                f"{pool.attributes[s.attribute]!r}; expected at least {way} (lower way, leave the domain out, or pass "
                "skip_small_classes=True)"
            )


def list_small(pool: ImagePool, indices: list[ClassIndex]) -> str:
    """A sentence that names the classes too small, empty where there are none."""
    found = [
        f"class {pool.class_names[s.attribute][k]!r} has {count}"
        + (f" in domain {pool.domain_names[s.domain]!r}" if len(indices) > 1 else "")
        for s in indices
        for k, count in s.small.items()
    ]
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return f"Too small: {', '.join(found[:NAMED])}{more}. " if found else ""


ClassNames = Sequence[str] | Mapping[str, Sequence[str]]  # a mapping has one list for each attribute


def wanted_classes(
    classes: ClassNames | None, excluded: ClassNames | None, attributes: list[int], pool: ImagePool
) -> dict[int, list[int] | None]:
    """For every attribute the positions of the classes to draw from, None for all."""
    wanted = _named_classes("classes", classes, attributes, pool)
    left_out = _named_classes("exclude_classes", excluded, attributes, pool)
    found: dict[int, list[int] | None] = {}
    for a in attributes:
        kept, gone = wanted.get(a), left_out.get(a, [])
        if gone:
            kept = [k for k in (range(len(pool.class_names[a])) if kept is None else kept) if k not in set(gone)]
        if kept is not None and not kept:
            raise ValueError(
                f"exclude_classes leaves no class of attribute {pool.attributes[a]!r}; expected at least two that are "
                "not excluded, or attributes without it"
            )
        found[a] = kept
    return found


def _named_classes(what: str, names: ClassNames | None, attributes: list[int], pool: ImagePool) -> dict[int, list[int]]:
    """The positions of named classes by attribute."""
    if names is None:
        return {}
    known = {pool.attributes[a]: a for a in attributes}
    if not isinstance(names, Mapping):
        if len(known) != 1:
            raise ValueError(
                f"{what} is a list for {len(known)} attributes; expected a mapping from each of {list(known)}"
            )
        names = dict.fromkeys(known, names)
    positions(f"{what} (keys)", list(names), list(known))
    return {
        known[attribute]: positions(f"{what} of attribute {attribute!r}", listed, pool.class_names[known[attribute]])
        for attribute, listed in names.items()
    }


def positions(what: str, names: Sequence[str] | None, known: Sequence[str]) -> list[int]:
    """Where each name stands in ``known``; all where ``names`` is None."""
    if names is None:
        return list(range(len(known)))
    if isinstance(names, str):
        raise ValueError(f"{what} is the text {names!r}; expected a list of names such as [{names!r}]")
    place = {name: i for i, name in enumerate(known)}
    unknown = [n for n in names if n not in place]
    if unknown or not names:
        has = f"{list(known[:20])}" + (f" and {len(known) - 20} more" if len(known) > 20 else "")
        raise ValueError(f"{what} {unknown[:NAMED] if unknown else '[]'} are not in the pool; expected some of {has}")
    return sorted({place[n] for n in names})


def checked_span(name: str, value: Any, least: int) -> tuple[int, int]:
    """An inclusive range from a number or a pair.

    Raises:
        ValueError: when it is neither, below ``least``, or empty.
    """
    pair = (value[0], value[1]) if isinstance(value, tuple | list) and len(value) == 2 else (value, value)
    if any(isinstance(v, bool) or not isinstance(v, int | np.integer) for v in pair):
        raise ValueError(f"{name} is {value!r}; expected an integer or a range (low, high) of integers")
    if not least <= pair[0] <= pair[1]:
        raise ValueError(f"{name} is {value!r}; expected at least {least}, and low <= high in a range (low, high)")
    return int(pair[0]), int(pair[1])
