"""Choosing a baseline's settings: on validation episodes, never on those that are reported.

Candidates (the same baseline at several settings) and validation episodes -> the candidate that loses least.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.inference.evaluation.baselines.baseline import Baseline

PROBABILITY_FLOOR = 1e-12  # as in Evaluation.loss


@torch.no_grad()
def validation_loss(baseline: Baseline, episodes: Sequence[EpisodeBatch]) -> float:
    """Mean over validation episodes of the mean negative log-likelihood of their queries, in nats.

    Raises:
        ValueError: for no episodes.
    """
    if not episodes:
        raise ValueError("got no validation episodes; expected at least one batch")
    losses = []
    for batch in episodes:
        chosen = baseline(batch).gather(-1, batch.query.labels.unsqueeze(-1)).squeeze(-1)
        nll = -chosen.clamp(min=PROBABILITY_FLOOR).log() * batch.query.mask
        losses.append(nll.sum(-1) / batch.query.mask.sum(-1))
    return torch.cat(losses).cpu().double().mean().item()


def lowest_validation_loss[B: Baseline](candidates: Sequence[B], episodes: Sequence[EpisodeBatch]) -> B:
    """The candidate of lowest :func:`validation_loss`; the first of those that tie.

    Raises:
        ValueError: for no candidates or no episodes.
    """
    if not candidates:
        raise ValueError("got no candidates; expected a baseline at one setting at least")
    return min(candidates, key=lambda candidate: validation_loss(candidate, episodes))
