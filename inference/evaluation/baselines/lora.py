r"""LoRA: low-rank changes of the best source's weight matrices, fitted to the support of each task by a few Adam steps.

.. math:: W' = W + \frac{1}{r} B A, \quad A \in R^{r \times i}, B \in R^{o \times r}

Source: Hu et al. 2022, "LoRA" (B starts at zero, A at random). Convolutions are matrices of (out, in x kernel). The
loss is the leave-one-out prototype loss of the support; episodes are rows of one batch, and since Adam works coordinate
by coordinate, each is fitted as if it were alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.inference.evaluation.baselines.baseline import Baseline, ComposedLibrary, ParameterBaseline, network_of
from pyro_smat.networks.parameters import Entry
from pyro_smat.registry import register


@register("baseline", "lora")
@dataclass(frozen=True)
class LoRA(ParameterBaseline):
    """Low-rank fine-tuning of another baseline's networks on the support.

    Attributes:
        start: gives the weights W.
        rank: r, at least 1; smaller where a matrix is.
        steps: of Adam, at least 1.
        learning_rate: of Adam, > 0.
        seed: of A.

    Raises:
        ValueError: for settings outside these ranges, or a network without weight matrices.
    """

    composed: ComposedLibrary = field(init=False, repr=False)
    start: Baseline
    rank: int = 4
    steps: int = 10
    learning_rate: float = 0.01
    seed: int = 0
    name: str = "LoRA of the best source"

    def __post_init__(self) -> None:
        object.__setattr__(self, "composed", network_of(self.start, self.name).composed)
        if self.rank < 1 or self.steps < 1 or not 0 < self.learning_rate < math.inf:
            raise ValueError(
                f"rank is {self.rank}, steps {self.steps} and learning_rate {self.learning_rate}; expected at least 1, "
                "at least 1, and above 0"
            )
        if not self._matrices():
            raise ValueError("the network has no trainable weight of two dims or more; expected a matrix to change")

    @torch.no_grad()
    def parameters(self, batch: EpisodeBatch) -> Tensor:
        theta = network_of(self.start, self.name).parameters(batch)
        factors = self._initial_factors(theta)
        with torch.enable_grad():
            optimizer = torch.optim.Adam([f for pair in factors.values() for f in pair], lr=self.learning_rate)
            for _ in range(self.steps):
                optimizer.zero_grad()
                self.composed.support_loss(self._changed(theta, factors), batch).sum().backward()
                optimizer.step()
        return self._changed(theta, factors)

    def _matrices(self) -> list[Entry]:
        return [e for e in self.composed.network.space.entries if e.trainable and len(e.shape) >= 2]

    def _initial_factors(self, theta: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Name -> (B ``(episodes, o, r)``, A ``(episodes, r, i)``), leaves; all episodes start alike."""
        generator = torch.Generator().manual_seed(self.seed)
        factors = {}
        for entry in self._matrices():
            outputs, inputs = entry.shape[0], entry.numel // entry.shape[0]
            rank = min(self.rank, outputs, inputs)
            down = torch.randn(rank, inputs, generator=generator).to(theta) / math.sqrt(inputs)
            up = theta.new_zeros(len(theta), outputs, rank)
            factors[entry.name] = up.requires_grad_(), down.repeat(len(theta), 1, 1).requires_grad_()
        return factors

    def _changed(self, theta: Tensor, factors: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
        """Task parameters ``(B, d)`` with the changes added."""
        space = self.composed.network.space
        pieces = []
        for entry, piece in zip(space.entries, theta.split([e.numel for e in space.entries], dim=-1), strict=True):
            if entry.name in factors:
                up, down = factors[entry.name]
                piece = piece + (up @ down).flatten(1) / up.shape[-1]
            pieces.append(piece)
        return torch.cat(pieces, dim=-1)
