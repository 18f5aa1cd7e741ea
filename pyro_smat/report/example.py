"""Example: one task of a report, with its small pictures; plain data that the page shows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Picture:
    """A small image.

    Attributes:
        source: a PNG as a data URI.
        wrong: whether its label in the support is not its class.
    """

    source: str
    wrong: bool = False


@dataclass(frozen=True)
class ExampleClass:
    """One class of an example.

    Attributes:
        name: as the support says it.
        support: its shots.
        query: one query of it.
        answer: what the task answered, and with which probability.
        probability: of the answer.
        right: whether that is the class.
    """

    name: str
    support: tuple[Picture, ...]
    query: Picture
    answer: str
    probability: float
    right: bool


@dataclass(frozen=True)
class Example:
    """One task.

    Attributes:
        condition: e.g. "test, confounded".
        classes: at most five of them.
        routes: source -> posterior mean weight, the largest first, those worth naming.
        true_route: the source or attribute that the task is about; empty where unknown.
        accuracy: share of all its queries that are right.
        doubt: whether answers can be relied on, and why, in sentences.
        reliable: the verdict.
    """

    condition: str
    classes: tuple[ExampleClass, ...]
    routes: tuple[tuple[str, float], ...]
    true_route: str
    accuracy: float
    doubt: tuple[str, ...]
    reliable: bool
