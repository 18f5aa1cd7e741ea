"""ELBOTerms: one evaluation of the objective, taken apart for those who log it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class ELBOTerms:
    """One evaluation of the objective, its terms apart; of the episodes of all processes, where there are several.

    Attributes:
        loss: the scalar to minimise, with gradient (by this process's own episodes).
        mean_loss: mean of the episode losses X.
        tail_loss: CVaR_rho of X - r.
        kl: mean KL of an episode; global_kl: KL of the sites outside the episode plate, minus the log density of
            pyro.factor statements there (hyperpriors).
        negative_elbo: minus the plain ELBO, summed NLL plus KL, whatever the episode loss, rho and the weights are.
        threshold: the (1 - rho) quantile of X - r, above which episodes are in the tail.
        weights: ``(B,)`` tail weights.
        episode_losses, episode_kl: ``(B,)``, detached.
        penalties: name -> mean of an optional term, unweighted.
    """

    loss: Tensor
    mean_loss: Tensor
    tail_loss: Tensor
    kl: Tensor
    global_kl: Tensor
    negative_elbo: Tensor
    threshold: Tensor
    weights: Tensor
    episode_losses: Tensor
    episode_kl: Tensor
    penalties: Mapping[str, Tensor] = field(default_factory=dict)
