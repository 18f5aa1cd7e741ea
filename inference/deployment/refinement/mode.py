"""Refinement: what a refinement mode makes of a router's routing, and the interface that every mode has.

posterior of one episode -> start coefficients -> mode.refine -> Refinement -> the network that predicts. A mode sees
the support of one episode, and nothing else of it: refined routings fit the support better by construction, its label
noise included. That they also do better on queries is for held-out episodes to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.guides.posterior import RoutingPosterior
from pyro_smat.models.routed import RoutedModel
from pyro_smat.networks.basis import Basis


@dataclass(frozen=True)
class Refinement:
    """The routing that a mode found for one episode.

    Attributes:
        mode: name of the mode.
        coefficients: ``(C,)``, or ``(L, C)`` with L blocks: a point; with a ``posterior``, its mean.
        before, after: leave-one-out support loss of the router's routing and of ``coefficients``, in nats per shot.
        active: how many sources have a weight, in any block.
        gap: Frank-Wolfe gap, at ``coefficients``, of what the mode minimises, in nats per shot; None where it has none.
        certificate: what the gap says: "stationarity" (the loss is not convex: near 0 no direction between sources
            goes down, another place may still be better), or "none".
        note: what else there is to know, in words.
        masks: ``(M, d)`` bool, the experts' masks of this task where the mode changed them; None: as deployed.
        posterior: of batch size 1, of a mode that has a distribution over routings; None for a point.
    """

    mode: str
    coefficients: Tensor
    before: float
    after: float
    active: int
    gap: float | None = None
    certificate: str = "none"
    note: str = ""
    masks: Tensor | None = None
    posterior: RoutingPosterior | None = None

    def basis(self, model: RoutedModel, deployed: Basis) -> Basis:
        """The basis ``(C, d)`` that ``coefficients`` are of: the ``deployed`` one, or with the masks of this task."""
        if self.masks is None or model.experts is None:
            return deployed
        rows = (self.masks * model.experts.delta.detach()).to(deployed.dtype)
        return Basis(deployed.sources, rows)

    def __str__(self) -> str:
        gap = "" if self.gap is None else f", gap {self.gap:.2g} ({self.certificate})"
        note = f"; {self.note}" if self.note else ""
        return (
            f"{self.mode}: support loss {self.before:.3f} -> {self.after:.3f} nats per shot{gap}, "
            f"{self.active} active source(s){note}"
        )


@runtime_checkable
class RefinementMode(Protocol):
    """A refinement mode; hashable, because adapted tasks are cached by it (frozen dataclasses are)."""

    @property
    def name(self) -> str:
        """For reports and the command line."""

    def refine(self, model: RoutedModel, basis: Basis, batch: EpisodeBatch, start: Tensor) -> Refinement:
        """Refine the routing of one episode.

        Args:
            model: the network, head and experts; its parameters are left alone.
            basis: ``(C, d)``, the deployed basis of the model.
            batch: one episode; only its support is looked at.
            start: ``(C,)`` or ``(L, C)``, the router's coefficients.

        Raises:
            ValueError: for more than one episode, or a model that lacks what the mode refines.
        """


def active_sources(weights: Tensor) -> int:
    """Number of sources with a weight in any block, of weights ``([L,] R)``."""
    return int((weights > 0).reshape(-1, weights.shape[-1]).any(0).sum())


def check_count(what: str, value: int | None, least: int) -> None:
    """Raises ValueError unless ``value`` is None or an integer of at least ``least``."""
    if value is not None and (not isinstance(value, int) or value < least):
        raise ValueError(f"{what} is {value!r}; expected an integer of at least {least}")
