r"""Is this support unlike anything that the router was trained on?

A posterior is as good as the episodes it was amortised over. The score is the Mahalanobis distance of a summary of the
support from those of training supports, with a covariance shrunk towards its diagonal (Ledoit and Wolf 2004); its
p-value is conformal: the share of reference supports that are as far away, valid whatever the distribution. As an
uncertainty score, fitted and saved with the router: ``score = "novelty"``, over scores instead of the encoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.guides import RoutingGuide
from pyro_smat.inference.decision.scores.novelty import centre_and_precision, distance
from pyro_smat.metrics.arrays import FloatArray


@dataclass(frozen=True)
class SupportNovelty:
    """What supports of training look like.

    Attributes:
        mean: ``(D,)``; precision: ``(D, D)`` of the summaries.
        reference: ``(n,)`` ascending squared distances of supports that had no part in mean and precision.
    """

    mean: FloatArray
    precision: FloatArray
    reference: FloatArray

    @classmethod
    def fit(cls, summaries: FloatArray, *, seed: int = 0) -> SupportNovelty:
        """From summaries ``(N, D)`` of training supports: half gives mean and covariance, half the reference distances.

        Raises:
            ValueError: for fewer than 4 D + 40 supports or NaN.
        """
        summaries = np.asarray(summaries, dtype=np.float64)
        if summaries.ndim != 2 or len(summaries) < 4 * summaries.shape[-1] + 40:
            raise ValueError(
                f"summaries have shape {summaries.shape}; expected (N, D) with N at least 4 D + 40 training supports"
            )
        if not np.isfinite(summaries).all():
            raise ValueError("summaries hold NaN or infinite values; expected finite numbers")
        order = np.random.default_rng(seed).permutation(len(summaries))
        first, second = summaries[order[: len(order) // 2]], summaries[order[len(order) // 2 :]]
        mean, precision = centre_and_precision(first)
        return cls(mean, precision, np.sort(distance(second, mean, precision)))

    def score(self, summaries: FloatArray) -> FloatArray:
        """Squared distance ``(B,)`` of summaries ``(B, D)``; larger is stranger."""
        return distance(np.asarray(summaries, dtype=np.float64), self.mean, self.precision)

    def p_value(self, summaries: FloatArray) -> FloatArray:
        """``(B,)``: uniform or larger for supports like those of training, small for strange ones."""
        as_far = len(self.reference) - np.searchsorted(self.reference, self.score(summaries), side="left")
        return (1 + as_far) / (1 + len(self.reference))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return {name: getattr(self, name).tolist() for name in ("mean", "precision", "reference")}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SupportNovelty:
        """What :meth:`to_dict` wrote."""
        return cls(*(np.asarray(data[name], dtype=np.float64) for name in ("mean", "precision", "reference")))


@torch.no_grad()
def support_summaries(guide: RoutingGuide, batches: Sequence[EpisodeBatch]) -> FloatArray:
    """``(B, 3 R)`` of every support: what the encoder says of each source, its score, and its embedding's mean and
    spread.

    Does not change with the order of shots or the names of classes, and does not look at queries.
    """
    found = []
    for batch in batches:
        encoding = guide.router.encode(batch)
        embedding = encoding.embedding
        summary = torch.cat([encoding.score, embedding.mean(-1), embedding.std(-1)], dim=-1)
        found.append(summary.cpu().double().numpy())
    return np.concatenate(found)
