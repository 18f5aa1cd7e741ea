"""Refining many episodes: for evaluation, episode by episode."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.guides.posterior import RoutingPosterior
from pyro_smat.inference.deployment.refinement.mode import Refinement, RefinementMode
from pyro_smat.models.routed import RoutedModel
from pyro_smat.networks.basis import Basis


def refine_episodes(
    mode: RefinementMode, model: RoutedModel, basis: Basis, batch: EpisodeBatch, posterior: RoutingPosterior
) -> tuple[Refinement, ...]:
    """One refinement an episode, each from the posterior mean.

    Args:
        mode: a refinement mode.
        model: in evaluation mode.
        basis: ``(C, d)``, the deployed basis.
        batch: B episodes.
        posterior: q(c | S) of the batch.
    """
    starts = posterior.mean
    return tuple(mode.refine(model, basis, batch[i : i + 1], starts[i]) for i in range(len(batch)))


def refine_batch(
    mode: RefinementMode, model: RoutedModel, basis: Basis, batch: EpisodeBatch, posterior: RoutingPosterior
) -> Tensor:
    """Refined coefficients ``(B, C)`` or ``(B, L, C)``; arguments as in :func:`refine_episodes`.

    Raises:
        ValueError: for a mode that changed the masks of an episode: its coefficients are not of ``basis``.
    """
    refinements = refine_episodes(mode, model, basis, batch, posterior)
    if any(refinement.masks is not None for refinement in refinements):
        raise ValueError(
            f"refine {mode.name!r} changed masks of experts, and coefficients do not say so; expected a mode that "
            "keeps the basis: use refine_episodes and refined_probabilities"
        )
    return torch.stack([refinement.coefficients for refinement in refinements])


@torch.no_grad()
def refined_probabilities(
    model: RoutedModel, basis: Basis, batch: EpisodeBatch, refinements: tuple[Refinement, ...]
) -> Tensor:
    """Class probabilities ``(B, Q, W)`` of the queries under the refined points, 0 at classes that are not there."""
    rows = []
    for i, refinement in enumerate(refinements):
        episode = batch[i : i + 1]
        logits = model.logits(refinement.coefficients.unsqueeze(0), episode, refinement.basis(model, basis))
        rows.append(F.pad(logits.softmax(-1), (0, batch.max_way - episode.max_way)))
    return torch.cat(rows)
