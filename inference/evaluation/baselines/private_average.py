r"""Private average: the predictions of all sources, weighted by evidence that was released with differential privacy.

.. math:: w = \mathrm{softmax}(\kappa \tilde E), \qquad \tilde E = E(S) + \mathcal N(0, (\Delta z)^2 I)

with E of :mod:`pyro_smat.encoders.private_evidence`. The weights are functions of the released evidence alone, and so
as private as it is; the predictions that are averaged come from prototypes of the support, which are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pyro_smat.encoders.private_evidence import PrivateEvidence
from pyro_smat.episodes import EpisodeBatch
from pyro_smat.inference.evaluation.baselines.baseline import Baseline, ComposedLibrary
from pyro_smat.registry import register

TRUSTS = (0.1, 0.3, 1.0, 3.0, 10.0)


@dataclass(frozen=True)
class PrivateSourceAverage(Baseline):
    """The predictions of all sources, weighted by private evidence. Every call is a release.

    Attributes:
        mechanism: releases the evidence.
        trust: kappa >= 0, fixed without looking at the support.
        seed: of the noise; None for one that nobody knows.

    Raises:
        ValueError: for a trust below 0.
    """

    composed: ComposedLibrary = field(repr=False)
    mechanism: PrivateEvidence
    trust: float = 1.0
    seed: int | None = None
    name: str = "average of all sources, weighted privately"

    def __post_init__(self) -> None:
        if not self.trust >= 0:
            raise ValueError(f"trust is {self.trust!r}; expected a number >= 0")
        generator = torch.Generator()
        _ = generator.seed() if self.seed is None else generator.manual_seed(self.seed)
        object.__setattr__(self, "_generator", generator)

    def __call__(self, batch: EpisodeBatch) -> Tensor:
        generator: torch.Generator = vars(self)["_generator"]
        weights = (self.trust * self.mechanism.release(batch, generator).evidence).softmax(-1)  # (B, R)
        probabilities = self.composed.source_probabilities(batch)
        return (weights.to(probabilities)[..., None, None] * probabilities).sum(1)


@register("baseline", "private_source_average")
def private_source_average(
    composed: ComposedLibrary,
    validation: Sequence[EpisodeBatch],
    epsilon: float = 8.0,
    delta: float = 1e-5,
    most_shots: int = 6,
    seed: int | None = None,
) -> PrivateSourceAverage:
    """With scales of the evidence and trust chosen on validation episodes, which nobody needs to hide.

    Trust is chosen by accuracy with the noise, so that a small epsilon leads to nearly equal weights. By loss, any
    weights that differ would be preferred, for an average of many is less sure of itself than it could be.

    Args:
        composed: the library.
        validation: public episodes of the shots that tasks will have, with features of their supports.
        epsilon, delta, most_shots: of :class:`~pyro_smat.encoders.private_evidence.PrivateEvidence`.
        seed: of the noise; None for one that nobody knows.

    Raises:
        ValueError: for numbers out of range, or no validation episodes.
        ImportError: without dp-accounting, for a finite epsilon.
    """
    if not validation:
        raise ValueError("got no validation episodes; expected at least one batch")
    mechanism = PrivateEvidence.on_public(validation, epsilon=epsilon, delta=delta, most_shots=most_shots)
    # The same noise for every candidate, or noise would choose.
    candidates = [PrivateSourceAverage(composed, mechanism, trust, seed=0) for trust in TRUSTS]
    chosen = max(candidates, key=lambda candidate: _accuracy(candidate, validation))
    return replace(chosen, seed=seed, name=f"average of all sources, weighted privately (epsilon {epsilon:g})")


def _accuracy(baseline: Baseline, episodes: Sequence[EpisodeBatch]) -> float:
    right, asked = 0, 0
    for batch in episodes:
        right += int(((baseline(batch).argmax(-1) == batch.query.labels) & batch.query.mask).sum())
        asked += int(batch.query.mask.sum())
    return right / asked
