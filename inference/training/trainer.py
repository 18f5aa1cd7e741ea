"""MetaTrainer: meta-trains router, experts and head scale on a stream of episodes.

sampler -> frozen features -> CVaR_ELBO(model, guide) -> AdamW; primal-dual sparsity; validation on held-out episodes;
a checkpoint with every random state, from which a killed run continues to the same result.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.episodes.sampler import EpisodeSampler
from pyro_smat.files import load_state, save_state
from pyro_smat.guides.information import posterior_information
from pyro_smat.guides.router import RoutingGuide
from pyro_smat.inference.objective.cvar_elbo import CVaR_ELBO
from pyro_smat.inference.objective.outcome import run_routings
from pyro_smat.inference.objective.terms import ELBOTerms
from pyro_smat.inference.training.annealing import KLSchedule
from pyro_smat.inference.training.random_state import random_state, set_random_state
from pyro_smat.inference.training.schedule import warmup_then_cosine
from pyro_smat.inference.training.settings import TrainingSettings
from pyro_smat.metrics.risk import cvar
from pyro_smat.models.routed import RoutedModel
from pyro_smat.networks.experts import ExpertBank
from pyro_smat.networks.features import SourceFeatures

CHECKPOINT = "checkpoint.safetensors"
SAVED = {"step", "settings", "model", "guide", "optimizer", "schedule", "elbo", "sampler", "random", "history"}


class MetaTrainer:
    """Trains a (model, guide) pair.

    Args:
        model, guide: the pair; both are moved to ``device``.
        elbo: the objective; its kl_weight is the whole weight of the KL schedule.
        sampler: of training episodes.
        features: frozen features of the sampler's pool.
        settings: how to train; default: as :class:`TrainingSettings` has it.
        validation: held-out episodes with features attached, or none.
        folder: where checkpoints go; None keeps none.
        device: where to train.

    Attributes:
        history: one dict a step: step, loss, episode_loss, cvar, threshold, kl, negative_elbo (the plain one, of an
            episode), information of the posterior (entropy, variance, mutual_information, effective_routings),
            sparsity, images_per_second, optional terms of the ELBO by name; at validations also validation_accuracy,
            validation_loss and validation_cvar.

    Example:
        >>> from pyro_smat import EpisodeSampler, glyph_pool
        >>> from pyro_smat.inference.assembly.config import RunConfig
        >>> from pyro_smat.inference.assembly.router import build_router
        >>> router = build_router(RunConfig(experts={"count": 0}))  # over the glyph sources of the package, not trained
        >>> sampler = EpisodeSampler(glyph_pool("validation"), 3, 2, 1)
        >>> trainer = MetaTrainer(
        ...     router.model, router.guide, elbo=CVaR_ELBO(rho=1.0), sampler=sampler, features=router.features(),
        ...     settings=TrainingSettings(steps=2, episodes=2),
        ... )
        >>> history = trainer.fit(progress=False)
        >>> history["step"].tolist()
        [1, 2]
    """

    def __init__(
        self,
        model: RoutedModel,
        guide: RoutingGuide,
        *,
        elbo: CVaR_ELBO,
        sampler: EpisodeSampler,
        features: SourceFeatures,
        settings: TrainingSettings | None = None,
        validation: list[EpisodeBatch] | None = None,
        folder: Path | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        settings = settings or TrainingSettings()
        self.device = torch.device(device)
        self.model, self.guide = model.to(self.device), guide.to(self.device)
        self.elbo, self.sampler, self.features, self.settings = elbo, sampler, features, settings
        self.validation = validation or []
        self.folder = folder
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.optimizer = torch.optim.AdamW(_parameter_groups(model, guide, settings), betas=(0.9, 0.99))
        self.schedule = warmup_then_cosine(self.optimizer, settings.warmup, settings.steps)
        self._kl_schedule = KLSchedule(settings.kl_warmup, settings.kl_cycles)

    def fit(self, *, resume: bool = False, progress: bool = True) -> pd.DataFrame:
        """Train to the end and leave model and guide in evaluation mode; returns :attr:`history`.

        Args:
            resume: continue from the checkpoint in ``folder``, if there is one.
            progress: show a progress bar.

        Raises:
            ValueError: when a checkpoint is damaged or of other settings, or the loss is no longer finite.
        """
        if resume and self.folder is not None and (self.folder / CHECKPOINT).exists():
            self.load(self.folder / CHECKPOINT)
        bar = tqdm(
            total=self.settings.steps, initial=self.step, desc="meta-training", disable=not progress, unit="step"
        )
        with bar:
            while self.step < self.settings.steps:
                row = self.training_step()
                every = self.settings.validate_every
                if self.validation and every and (self.step % every == 0 or self.step == self.settings.steps):
                    row |= self.validate()
                self.history.append(row)
                self._show(bar, row)
                every = self.settings.checkpoint_every
                if self.folder is not None and (self.step == self.settings.steps or (every and self.step % every == 0)):
                    self.save(self.folder / CHECKPOINT)
        self.model.eval()
        self.guide.eval()
        return pd.DataFrame(self.history)

    def training_step(self) -> dict[str, float]:
        """One optimizer step; returns its row of the history."""
        started = time.perf_counter()
        self.model.train()
        self.guide.train()
        batch = self.features.attach(self.sampler.sample(self.settings.episodes).to(self.device))
        self._anneal()
        kl_factor = self._kl_schedule.factor(self.step, self.settings.steps)
        terms = self.elbo.terms(self.model, self.guide, batch, kl_factor=kl_factor)
        loss = terms.loss / len(batch) + self._penalty()
        if not torch.isfinite(loss):
            raise ValueError(
                f"the loss is {loss.item()} at step {self.step + 1}; expected a finite number: lower learning_rate, "
                "or look at the sources for extreme weights"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        experts = self._experts()
        if experts is not None:
            experts.after_backward()
        for group in self.optimizer.param_groups:
            nn.utils.clip_grad_norm_(group["params"], self.settings.clip_norm)
        self.optimizer.step()
        self.schedule.step()
        if experts is not None:
            experts.after_step()
        self.step += 1
        images = int(batch.support.mask.sum() + batch.query.mask.sum()) * self.elbo.num_particles
        return self._row(terms, loss, batch, images / (time.perf_counter() - started))

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Accuracy, loss and CVaR of the posterior-mean network, as deployed, on the held-out episodes."""
        self.model.eval()
        self.guide.eval()
        basis = self.model.basis()
        outcomes = []
        for batch in self.validation:
            mean = self.guide.posterior(batch).mean.unsqueeze(0)
            outcomes.append(
                run_routings(self.model, batch, {"mean": (mean, mean.new_ones(1, len(batch)))}, basis=basis)["mean"]
            )
        loss = torch.cat([outcome.losses for outcome in outcomes])
        return {
            "validation_accuracy": torch.cat([outcome.accuracy for outcome in outcomes]).mean().item(),
            "validation_loss": loss.mean().item(),
            "validation_cvar": cvar(loss, self.elbo.rho).item(),
        }

    def save(self, path: Path) -> None:
        """Write everything that the rest of the run depends on."""
        save_state(
            path,
            {
                "step": self.step,
                "settings": self.settings.model_dump(),
                "model": dict(self.model.state_dict()),
                "guide": dict(self.guide.state_dict()),
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "elbo": self.elbo.state_dict(),
                "sampler": self.sampler.state_dict(),
                "random": random_state(self.device),
                "history": self.history,
            },
        )

    def load(self, path: Path) -> None:
        """Continue from a checkpoint of the same run.

        Raises:
            ValueError: when the file is damaged or was written under other settings.
        """
        state = load_state(path)
        missing = sorted(SAVED - set(state))
        if missing:
            raise ValueError(f"{path}: has no {', '.join(missing)}; expected a checkpoint of MetaTrainer")
        settings = self.settings.model_dump()
        if state["settings"] != settings:
            changed = sorted(k for k, v in settings.items() if state["settings"].get(k) != v)
            raise ValueError(f"{path}: written with other settings ({', '.join(changed)}); resume with the same config")
        try:
            self.model.load_state_dict(state["model"])
            self.guide.load_state_dict(state["guide"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"{path}: does not fit this model and guide ({error}); resume with the same config"
            ) from error
        self.elbo.load_state_dict(state["elbo"])
        self.sampler.load_state_dict(state["sampler"])
        self.step, self.history = state["step"], state["history"]
        set_random_state(state["random"], self.device)

    def _experts(self) -> ExpertBank | None:
        experts = self.model.experts
        return experts if experts is not None and len(experts) else None

    def _penalty(self) -> Tensor | float:
        experts, weight = self._experts(), self.settings.orthogonality
        return weight * experts.orthogonality() if experts is not None and weight else 0.0

    def _anneal(self) -> None:
        """What changes as training goes on: relaxation temperatures and the experts' budget."""
        progress = self.step / max(1, self.settings.steps - 1)
        self.guide.anneal(progress)
        experts = self._experts()
        if experts is not None:
            experts.set_progress(min(1.0, progress))

    def _row(self, terms: ELBOTerms, loss: Tensor, batch: EpisodeBatch, images_per_second: float) -> dict[str, float]:
        with torch.no_grad():
            generator = torch.Generator(self.device).manual_seed(self.step)
            found = posterior_information(self.guide.posterior(batch), generator=generator)
        row = {
            "step": self.step,
            "loss": loss.item(),
            "episode_loss": terms.mean_loss.item(),
            "cvar": terms.tail_loss.item(),
            "threshold": terms.threshold.item(),
            "kl": terms.kl.item(),
            "negative_elbo": terms.negative_elbo.item() / len(batch),
            **asdict(found),
            "images_per_second": images_per_second,
        }
        row |= {name: value.item() for name, value in terms.penalties.items()}
        experts = self._experts()
        if experts is not None:
            row["sparsity"] = experts.sparsities().mean().item()
        return row

    def _show(self, bar: Any, row: dict[str, float]) -> None:
        shown: dict[str, str] = {
            "loss": f"{row['loss']:.3f}",
            "CVaR": f"{row['cvar']:.3f}",
            "KL": f"{row['kl']:.2f}",
            "MI": f"{row['mutual_information']:.2f}",
            "images/s": f"{row['images_per_second']:.0f}",
        }
        if "sparsity" in row:
            shown["sparsity"] = f"{row['sparsity']:.2f}"
        bar.set_postfix(shown)
        bar.update(1)


def _parameter_groups(model: RoutedModel, guide: RoutingGuide, settings: TrainingSettings) -> list[dict[str, Any]]:
    """Router matrices decay; vectors, the head's scale, delta and gates do not."""
    matrices = [p for p in _trained(guide) if p.ndim > 1]
    vectors = [p for p in _trained(guide) if p.ndim <= 1]
    experts = _trained(model.experts) if model.experts is not None else []
    rest = [p for p in _trained(model) if all(p is not e for e in experts)]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "lr": settings.learning_rate, "weight_decay": settings.weight_decay},
        {"params": vectors + rest, "lr": settings.learning_rate, "weight_decay": 0.0},
    ]
    if model.experts is not None and len(model.experts):
        delta, gates = model.experts.delta, model.experts.log_alpha
        groups += [
            {"params": [delta], "lr": settings.delta_learning_rate, "weight_decay": 0.0},
            {"params": [gates], "lr": settings.gate_learning_rate, "weight_decay": 0.0},
        ]
    return groups


def _trained(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
