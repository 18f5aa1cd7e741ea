"""Corruption: the base classes of everything that can go wrong with an episode. The sampler calls their hooks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np

from pyro_smat.episodes.draw import Draw
from pyro_smat.episodes.index import ClassIndex
from pyro_smat.episodes.scope import Scope
from pyro_smat.episodes.selection import Selection
from pyro_smat.registry import Choice, build, choose, find
from pyro_smat.registry.entries import name_of

SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Corruption(ABC):
    """Something that goes wrong with a share of the episodes.

    Args:
        probability: share of the episodes that it happens to, in [0, 1].

    Raises:
        ValueError: for a value out of its range.
    """

    probability: float = field(default=1.0, kw_only=True)

    at_severities: ClassVar[Mapping[str, Sequence[Any]]]  # option -> its values at severities 1 to 5

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability of {self.name} is {self.probability}; expected a probability in [0, 1]")

    @property
    def name(self) -> str:
        """Under which it is registered; else the name of its class."""
        return name_of("corruption", type(self)) or type(self).__name__

    def __str__(self) -> str:
        options = [f for f in fields(self) if f.name != "probability" and getattr(self, f.name) != f.default]
        told = " ".join(f"{f.name} {getattr(self, f.name)}" for f in options)
        what = f"{self.name.replace('_', ' ')}{f' ({told})' if told else ''}"
        return what if self.probability == 1 else f"{what} in {100 * self.probability:g}% of the episodes"

    def applies(self, rng: np.random.Generator) -> bool:
        """Whether it happens to this episode; draws nothing where that is certain."""
        return self.probability == 1 or bool(rng.random() < self.probability)

    def check(self, scope: Scope) -> None:  # noqa: B027 (most have nothing to ask)
        """Refuse a scope whose episodes cannot be corrupted like this; called by the sampler's constructor.

        Raises:
            ValueError: saying what is missing.
        """


class CountCorruption(Corruption):
    """Changes how many images each class has."""

    @abstractmethod
    def counts(self, shots: np.ndarray, queries: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """New shots and queries ``(way,)`` of each class, each at least 1, from those before."""

    @abstractmethod
    def most(self, shots: int, queries: int) -> tuple[int, int]:
        """The most shots and queries of a class that :meth:`counts` can make of these."""


class ChoiceCorruption(Corruption):
    """Chooses the classes, and which of their images may be supports; queries are drawn from all of them."""

    @abstractmethod
    def choose(self, scope: Scope, index: ClassIndex, shots: np.ndarray, rng: np.random.Generator) -> Selection:
        """As many classes as there are ``shots`` ``(way,)``, each with at least so many rows."""


class RowCorruption(Corruption):
    """Replaces, removes or relabels images."""

    @abstractmethod
    def change(self, draw: Draw, index: ClassIndex, scope: Scope, rng: np.random.Generator) -> Draw:
        """A draw with other supports; every label keeps at least one, and no picture is in support and query."""


@dataclass(frozen=True)
class PixelCorruption(Corruption):
    """Alters pixels.

    Args:
        severity: 1 (hardly visible) to 5 (severe).
        queries: alter the queries, too.
        probability: share of the episodes that it happens to, in [0, 1].
    """

    severity: int = 3
    queries: bool = False

    at_severities = {"severity": SEVERITIES}  # noqa: RUF012 (never changed)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.severity not in SEVERITIES:
            raise ValueError(f"severity of {self.name} is {self.severity!r}; expected one of 1, 2, 3, 4, 5")

    @abstractmethod
    def change(
        self, images: np.ndarray, labels: np.ndarray, way: int, rng: np.random.Generator, *, query: bool
    ) -> np.ndarray:
        """Altered images of one episode, clipped to [0, 1] by the caller.

        Args:
            images: ``(n, C, H, W)`` float32 in [0, 1].
            labels: ``(n,)`` in [0, way), as the episode shows them.
            way: number of classes.
            rng: source of randomness, of this episode and corruption alone.
            query: whether these are the queries.
        """


CorruptionLike = Corruption | Choice | str | Mapping[str, Any]


def make_corruptions(given: Sequence[CorruptionLike]) -> tuple[Corruption, ...]:
    """Corruptions from objects, names or tables.

    Raises:
        ValueError: for an unknown name or option, or a value out of its range.

    Example:
        >>> make_corruptions(["confounding", {"kind": "label_noise", "fraction": 0.4}])
        (Confounding(probability=1.0), LabelNoise(probability=1.0, fraction=0.4))
    """
    if isinstance(given, Corruption | Choice | str | Mapping):
        raise ValueError(f"corruptions is {given!r}; expected a list of corruptions such as [{given!r}]")
    found = []
    for one in given:
        made = (
            one
            if isinstance(one, Corruption)
            else build(one if isinstance(one, Choice) else choose("corruption", one, run_files=True))
        )
        if not isinstance(made, Corruption):
            raise ValueError(f"corruption {one!r} makes {made!r}; expected an object derived from Corruption")
        found.append(made)
    return tuple(found)


def at_severity(name: str, severity: int, **options: Any) -> Corruption:
    """A corruption by name at one of five severities, so that tables can loop over both.

    Args:
        name: registered.
        severity: 1 (hardly harmful) to 5 (severe).
        options: further ones of its constructor.

    Raises:
        ValueError: for an unknown name, or another severity.

    Example:
        >>> [at_severity("label_noise", severity).fraction for severity in (1, 2, 3, 4, 5)]
        [0.1, 0.2, 0.3, 0.4, 0.5]
    """
    if severity not in SEVERITIES:
        raise ValueError(f"severity of {name} is {severity!r}; expected one of 1, 2, 3, 4, 5")
    factory = find("corruption", name)
    scales: Mapping[str, Sequence[Any]] | None = getattr(factory, "at_severities", None)
    if scales is None:
        raise ValueError(f"corruption {name!r} has no severities; give its class at_severities = {{option: 5 values}}")
    made: Corruption = factory(**{**{option: values[severity - 1] for option, values in scales.items()}, **options})
    return made
