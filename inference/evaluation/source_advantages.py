r"""Did a source see the classes that its router is trained on? Then the router over-trusts it on new classes.

On classes that a source was fine-tuned on it looks better than it is elsewhere. For every source the advantage over the
fallback (source 0), in accuracy, on episodes of the router's training classes is compared with that on validation
classes; for the fallback, its advantage over the mean of the others:

.. math:: \Delta_r = (a_r - a_0)_{\text{training}} - (a_r - a_0)_{\text{validation}}

What sources were trained on is better said than guessed: the data's ``seen`` keeps these classes out of training.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_smat.episodes.stream import EpisodeStream
from pyro_smat.float64 import in_float64
from pyro_smat.inference.objective.reference import source_logits
from pyro_smat.networks.features import SourceFeatures
from pyro_smat.networks.heads import Metric

LEAST = 0.03  # an advantage that is larger by less than this does no harm that can be measured
AT_ONCE = 16  # episodes whose images are in memory
SIGMAS = 3.0  # standard errors that the difference has to be away from 0


@dataclass(frozen=True)
class SourceAdvantage:
    """How much better than the fallback a source is, on the classes of training and of validation.

    Attributes:
        source: its name.
        against: what it is compared with, in words.
        training, validation: mean difference of accuracy to that.
        error: standard error of the difference between the two.
    """

    source: str
    against: str
    training: float
    validation: float
    error: float

    @property
    def suspicious(self) -> bool:
        """Whether the source has probably seen the training classes."""
        gained = self.training - self.validation
        return gained > LEAST and gained > SIGMAS * self.error

    def __str__(self) -> str:
        return (
            f"source {self.source!r} is {_points(self.training)} than {self.against} on meta-training classes and "
            f"{_points(self.validation)} on validation classes: it has probably seen the former, and the router will "
            f"over-trust it. Name the classes that it was trained on, [data.seen] {self.source} = [...], or train the "
            "router on other classes"
        )


def source_advantages(
    names: Sequence[str],
    training: tuple[SourceFeatures, EpisodeStream],
    validation: tuple[SourceFeatures, EpisodeStream],
    *,
    episodes: int = 80,
    validation_episodes: int = 360,
    metric: Metric = "cosine",
) -> list[SourceAdvantage]:
    """Compare the advantages of the sources on episodes of the two splits, supports as they are drawn.

    Args:
        names: of the R sources, the fallback first.
        training, validation: features of a pool, and episodes of it; clean ones tell most.
        episodes: of the training classes, whose images may have to be embedded for this check alone.
        validation_episodes: of the others, more of which cost little where their images are embedded already.
        metric: of the prototype head.

    Returns:
        One for every source.

    Example:
        >>> from pyro_smat import EpisodeSampler, glyph_pool
        >>> from pyro_smat.inference.assembly.config import RunConfig
        >>> from pyro_smat.inference.assembly.router import build_router
        >>> router = build_router(RunConfig(experts={"count": 0}))  # over the glyph sources of the package
        >>> pool = glyph_pool("validation")
        >>> same = router.features(pool, drawn=16 * 12), EpisodeSampler(pool, 3, 2, 2)
        >>> found = source_advantages(router.library.names, same, same, episodes=8, validation_episodes=8)
        >>> [one.source for one in found if one.suspicious]
        []
    """
    asked = ((*training, episodes), (*validation, validation_episodes))
    found = [_advantages(features, stream, count, metric) for features, stream, count in asked]
    means = [part.mean(0).tolist() for part in found]
    errors = [(part.var(0) / len(part)).tolist() for part in found]
    against = ["the mean of the other sources"] + ["the fallback"] * (len(names) - 1)
    return [
        SourceAdvantage(name, against[r], means[0][r], means[1][r], math.sqrt(errors[0][r] + errors[1][r]))
        for r, name in enumerate(names)
    ]


def warn_of_seen(found: Sequence[SourceAdvantage]) -> None:
    """A warning for every source that has probably seen the training classes."""
    for one in found:
        if one.suspicious:
            warnings.warn(str(one), stacklevel=3)


@torch.no_grad()
def _advantages(features: SourceFeatures, stream: EpisodeStream, episodes: int, metric: Metric) -> Tensor:
    """``(N, R)`` accuracy of every source minus that of the fallback; of the fallback minus the mean of the others."""
    parts = []
    for start in range(0, episodes, AT_ONCE):
        batch = stream.sample(min(AT_ONCE, episodes - start)).to(features.basis.device)
        features.embed_rows(torch.cat([batch.support.rows, batch.query.rows], dim=1))
        hits = source_logits(features, batch, metric=metric).argmax(-1) == batch.query.labels.unsqueeze(1)
        mask = batch.query.mask.unsqueeze(1)
        parts.append((hits & mask).sum(-1) / mask.sum(-1).clamp(min=1))
    accuracy = in_float64(torch.cat(parts))
    others = accuracy[:, 1:].mean(1, keepdim=True) if accuracy.shape[1] > 1 else accuracy
    return torch.cat([accuracy[:, :1] - others, accuracy[:, 1:] - accuracy[:, :1]], dim=1)


def _points(advantage: float) -> str:
    return f"{100 * abs(advantage):.1f} points {'better' if advantage >= 0 else 'worse'}"
