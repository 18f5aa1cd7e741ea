"""The history of a training: one row of numbers a step, and what of it a progress bar shows."""

from __future__ import annotations

from dataclasses import asdict
from math import isfinite
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.guides.information import posterior_information
from pyro_smat.guides.posterior import RoutingPosterior
from pyro_smat.inference.objective.terms import ELBOTerms

if TYPE_CHECKING:
    from pyro_smat.inference.training.trainer import MetaTrainer


def row_of(
    trainer: MetaTrainer,
    terms: ELBOTerms,
    loss: Tensor,
    posterior: RoutingPosterior,
    batch: EpisodeBatch,
    seconds: float,
) -> dict[str, float]:
    """The row of a step that has been made, named as :attr:`MetaTrainer.history` has it.

    Args:
        trainer: after the step.
        terms: of the objective, under the parameters before the step.
        loss: whose gradient the step followed, a scalar.
        posterior: that these terms are of; what the row says of posteriors is of this one.
        batch: this process's share of the episodes.
        seconds: since the step began.
    """
    generator = torch.Generator(trainer.device).manual_seed(trainer.step)
    found = asdict(posterior_information(posterior, generator=generator))
    columns = {
        "loss": loss.detach(),
        "episode_loss": terms.mean_loss,
        "cvar": terms.tail_loss,
        "threshold": terms.threshold,
        "kl": terms.kl,
        "negative_elbo": terms.negative_elbo / trainer.settings.episodes,
        **terms.penalties,
    }
    experts = trainer.experts
    if experts is not None:
        columns["sparsity"] = experts.sparsities().mean()
    shown = batch.support.mask.sum() + batch.query.mask.sum()
    *values, images = torch.stack([*columns.values(), shown]).tolist()  # together: a device is waited for once
    found["images"] = images / len(batch)
    means = trainer.world.mean(torch.tensor(list(found.values()), dtype=torch.float64), len(batch)).tolist()
    found = dict(zip(found, means, strict=True))
    images = found.pop("images") * trainer.settings.episodes * trainer.elbo.num_particles
    return {
        "step": trainer.step,
        **dict(zip(columns, values, strict=True)),
        **found,
        "images_per_second": images / seconds,
    }


def show(bar: Any, row: dict[str, float]) -> None:
    """Advance a tqdm bar by one step that has this row."""
    shown: dict[str, str] = {
        "loss": f"{row['loss']:.3f}",
        "CVaR": f"{row['cvar']:.3f}",
        "KL": f"{row['kl']:.2f}",
        **({"MI": f"{row['mutual_information']:.2f}"} if isfinite(row["mutual_information"]) else {}),
        "images/s": f"{row['images_per_second']:.0f}",
    }
    if "sparsity" in row:
        shown["sparsity"] = f"{row['sparsity']:.2f}"
    bar.set_postfix(shown)
    bar.update(1)
