r"""Private evidence: what a support says of the sources, released with differential privacy.

The statistic compares pairs of shots, so that one shot has a bounded say. With :math:`k_{ijr}` the cosine of shots i
and j under source r,

.. math::
    E = \sum_{i < j} a_{ij} \, \mathrm{clip}_\tau\!\left(P \tfrac{k_{ij} - \mu}{\sigma}\right), \qquad
    a_{ij} = \begin{cases} 1 / N_= & y_i = y_j \\ -1 / N_{\ne} & \text{otherwise} \end{cases}

is the similarity of same-class pairs minus that of others, a number of :data:`~pyro_smat.encoders.evidence.EVIDENCE`
for every source: :math:`\mu, \sigma \in R^R` bring the cosines of all sources to one scale, P takes the mean over
sources away (only contrasts route), and :math:`\mathrm{clip}_\tau` scales a vector that is longer than :math:`\tau` to
that length. :math:`N_= = n (m - 1) / 2` and :math:`N_{\ne} = n (n - m) / 2` depend on public numbers alone.

*Adjacency*: two supports of n shots, at most m of a class, are neighbours when one labelled shot, image and label, is
replaced by any other. *Sensitivity*: only pairs of this shot change. It has :math:`s \le m - 1` partners of its class
and :math:`n - 1 - s` others, each of which adds a vector no longer than :math:`|a_{ij}| \tau`, before and after, so

.. math::
    \|E - E'\|_2 \le \Delta = 2 \tau \max_{0 \le s \le m - 1}
    \left(\frac{s}{N_=} + \frac{n - 1 - s}{N_{\ne}}\right) = \frac{8 \tau}{n} \quad (2 \le m \le (n + 1) / 2).

Released is :math:`E + \mathcal N(0, (\Delta z)^2 I)` with the noise multiplier z of
:mod:`~pyro_smat.encoders.gaussian_mechanism`. Public, and not protected: n, the number of classes, m,
:math:`\mu, \sigma, \tau`, the sources. Prototypes, and so predictions, of the adapted task are functions of the support
that this release does not protect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_smat.encoders.gaussian_mechanism import noise_multiplier
from pyro_smat.episodes import EpisodeBatch


@dataclass(frozen=True)
class Release:
    """What may be shown.

    Attributes:
        evidence: ``(B, R)`` with noise, contrasts between the sources: larger is better.
        deviation: ``(B,)`` standard deviation of the noise of each number.
        epsilon, delta: the guarantee for each task.
    """

    evidence: Tensor
    deviation: Tensor
    epsilon: float
    delta: float


@dataclass(frozen=True)
class PrivateEvidence:
    r"""The mechanism: clipped pair statistics and the noise that they need.

    Attributes:
        epsilon, delta: (epsilon, delta)-differential privacy of one release of one support; an infinite epsilon adds no
            noise.
        clip: tau > 0, in standard deviations of the cosines.
        most_shots: m, at least 2: the most shots of a class that a support, or a neighbour of it, has.
        mean, deviation: mu and sigma, a number for each source, of public images; see :meth:`on_public`.

    Raises:
        ValueError: for a number out of its range.

    Example:
        >>> from pyro_smat import EpisodeSampler, glyph_pool
        >>> batch = EpisodeSampler(glyph_pool("validation"), 5, 5, 1).sample(4).with_features(torch.rand(4, 3, 25, 8))
        >>> mechanism = PrivateEvidence.on_public([batch], epsilon=float("inf"), most_shots=6)
        >>> mechanism.sensitivity(25) == 8 * mechanism.clip / 25
        True
        >>> mechanism.release(batch).evidence.shape
        torch.Size([4, 3])
    """

    epsilon: float
    delta: float
    clip: float
    most_shots: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def __post_init__(self) -> None:
        if not (self.epsilon > 0 and 0 < self.delta < 1):
            raise ValueError(f"epsilon is {self.epsilon} and delta {self.delta}; expected > 0 and in (0, 1)")
        if not self.clip > 0 or self.most_shots < 2:
            raise ValueError(f"clip is {self.clip} and most_shots {self.most_shots}; expected > 0 and at least 2")
        if len(self.mean) != len(self.deviation) or not self.mean or not all(s > 0 for s in self.deviation):
            raise ValueError(
                f"mean is {self.mean} and deviation {self.deviation}; expected a number for each source, deviations > 0"
            )

    @classmethod
    def on_public(
        cls,
        batches: Sequence[EpisodeBatch],
        *,
        epsilon: float,
        delta: float = 1e-5,
        clip: float | None = None,
        most_shots: int,
    ) -> PrivateEvidence:
        """Scales of the cosines from episodes that nobody needs to hide, such as those of meta-training.

        Args:
            batches: with features of their supports.
            epsilon, delta, most_shots: see the attributes.
            clip: None for the median length of the vectors of pairs.
        """
        cosines = torch.cat([values[real] for values, real in map(_pairs, batches)])  # (pairs, R)
        mean, deviation = cosines.mean(0), cosines.std(0).clamp(min=1e-6)
        if clip is None:
            clip = float(_contrasts((cosines - mean) / deviation).norm(dim=-1).median())
        return cls(epsilon, delta, clip, most_shots, tuple(mean.tolist()), tuple(deviation.tolist()))

    def sensitivity(self, shots: int) -> float:
        """Delta, for supports of n shots."""
        same, other = _pair_counts(shots, self.most_shots)
        partners = (0, min(self.most_shots, shots) - 1)  # a linear function is largest at an end
        return 2 * self.clip * max(s / same + (shots - 1 - s) / other for s in partners)

    def statistic(self, batch: EpisodeBatch) -> Tensor:
        """E ``(B, R)`` float64 without noise: not to be shown.

        Raises:
            ValueError: for a support with more shots of a class than ``most_shots``, or of other sources.
        """
        cosines, real = _pairs(batch)  # (B, S, S, R), (B, S, S) of i < j
        if cosines.shape[-1] != len(self.mean):
            raise ValueError(f"the support has features of {cosines.shape[-1]} sources; expected {len(self.mean)}")
        labels, mask = batch.support.labels, batch.support.mask
        largest = int((F.one_hot(labels, batch.max_way) * mask.unsqueeze(-1)).sum(1).max())
        if largest > self.most_shots:
            raise ValueError(f"a class has {largest} shots; expected at most most_shots = {self.most_shots}")
        scaled = _contrasts((cosines - cosines.new_tensor(self.mean)) / cosines.new_tensor(self.deviation))
        length = scaled.norm(dim=-1, keepdim=True)
        clipped = scaled * (self.clip / length.clamp(min=self.clip))
        counts = [_pair_counts(n, self.most_shots) for n in mask.sum(-1).tolist()]
        same, other = cosines.new_tensor(counts).T.reshape(2, -1, 1, 1)
        sign = torch.where(labels.unsqueeze(-1) == labels.unsqueeze(-2), 1 / same, -1 / other) * real
        return torch.einsum("bij,bijr->br", sign, clipped)

    def release(self, batch: EpisodeBatch, generator: torch.Generator | None = None) -> Release:
        """E with noise. Every call is a release of its own: privacy is spent again.

        Args:
            batch: with features of its supports.
            generator: of the noise, on the CPU; whoever knows its seed can take the noise away. Default: one seeded by
                the operating system.
        """
        evidence = self.statistic(batch)
        if generator is None:
            generator = torch.Generator()
            generator.seed()
        multiplier = noise_multiplier(self.epsilon, self.delta)
        scale = torch.tensor([self.sensitivity(n) for n in batch.support.mask.sum(-1).tolist()]).double() * multiplier
        noise = torch.randn(evidence.shape, generator=generator, dtype=torch.float64)
        noisy = evidence + (noise * scale.unsqueeze(-1)).to(evidence)
        return Release(noisy, scale.to(evidence), self.epsilon, self.delta)


def _pairs(batch: EpisodeBatch) -> tuple[Tensor, Tensor]:
    """Cosines ``(B, S, S, R)`` of shots under every source, float64, and which pairs i < j there are."""
    if batch.support.features is None:
        raise ValueError("the support has no features; call SourceFeatures(...).attach(batch) first")
    unit = F.normalize(batch.support.features.double(), dim=-1)
    mask = batch.support.mask
    real = (mask.unsqueeze(-1) & mask.unsqueeze(-2)).triu(diagonal=1)
    return (unit @ unit.mT).movedim(1, -1), real


def _contrasts(values: Tensor) -> Tensor:
    return values - values.mean(-1, keepdim=True)


def _pair_counts(shots: int, most: int) -> tuple[float, float]:
    """Same-class pairs and other pairs of n shots, m of each class: public numbers, never 0."""
    return shots * (most - 1) / 2, shots * max(shots - most, 1) / 2
