"""MetaTrainer: meta-trains router, experts and head scale on a stream of episodes.

In torch.distributed's default group each process trains on its share of every batch, and they go on as one run.
sampler -> frozen features -> CVaR_ELBO(model, guide) -> AdamW; the budget of the experts; validation on held-out
episodes; a checkpoint with every random state, from which a killed run continues to the same result.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from pyro_smat.distributed import World
from pyro_smat.episodes import EpisodeBatch
from pyro_smat.episodes.sampler import EpisodeSampler
from pyro_smat.files import load_state, save_state
from pyro_smat.guides.announced import Heard
from pyro_smat.guides.router import RoutingGuide
from pyro_smat.inference.objective.cvar_elbo import CVaR_ELBO
from pyro_smat.inference.objective.outcome import run_routings
from pyro_smat.inference.training.annealing import KLSchedule
from pyro_smat.inference.training.checkpoint import CHECKPOINT, restore, state_of
from pyro_smat.inference.training.episode_draws import check_sharing, numbered_episodes
from pyro_smat.inference.training.history import row_of, show
from pyro_smat.inference.training.parameter_groups import parameter_groups
from pyro_smat.inference.training.schedule import warmup_then_cosine
from pyro_smat.inference.training.settings import TrainingSettings
from pyro_smat.metrics.risk import cvar
from pyro_smat.models.routed import RoutedModel
from pyro_smat.networks.cuda_graphs import CudaGraphs
from pyro_smat.networks.experts import ExpertBank
from pyro_smat.networks.features import SourceFeatures

INITIAL_SCALE = 2.0**10  # of a float16 loss: gradients of features are some thousandths, float16 ends at 65,504


class MetaTrainer:
    """Trains a (model, guide) pair.

    Args:
        model, guide: the pair; both are moved to ``device``.
        elbo: the objective; its kl_weight is the whole weight of the KL schedule.
        sampler: of training episodes; where they are numbered, the numbers of step s are s B, ..., (s + 1) B - 1.
        features: frozen features of the sampler's pool.
        settings: how to train; default: as :class:`TrainingSettings` has it.
        validation: held-out episodes with features attached, or none.
        folder: where checkpoints go; None keeps none. All processes read them there, the first one writes them.
        device: where to train.

    Attributes:
        history: one dict a step: step, loss, episode_loss, cvar, threshold, kl, negative_elbo (the plain one, of an
            episode), information of the posterior that these are of, before the update (entropy, variance,
            mutual_information, effective_routings: of several processes the mean over their shares of the batch),
            sparsity, images_per_second, optional terms of the ELBO by name; at validations also validation_accuracy,
            validation_loss and validation_cvar.
        numbered: whether episodes are drawn by number; see :class:`TrainingSettings`.
        seed: of what is drawn by number, that of torch's global generator.

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
        self.optimizer = torch.optim.AdamW(parameter_groups(model, guide, settings), betas=(0.9, 0.99), fused=True)
        self.schedule = warmup_then_cosine(self.optimizer, settings.warmup, settings.steps)
        half = model.source_basis.dtype == torch.float16
        self.scaler = torch.amp.GradScaler(self.device.type, init_scale=INITIAL_SCALE, enabled=half)
        self.numbered, self.seed = settings.numbered, torch.initial_seed() % 2**63
        self._kl_schedule = KLSchedule(settings.kl_warmup, settings.kl_cycles)

    @property
    def world(self) -> World:
        """The processes that train together."""
        return self.elbo.world or World.current()

    @property
    def experts(self) -> ExpertBank | None:
        """The model's, None where it has none."""
        experts = self.model.experts
        return experts if experts is not None and len(experts) else None

    def fit(self, *, resume: bool = False, progress: bool = True) -> pd.DataFrame:
        """Train to the end and leave model and guide in evaluation mode; returns :attr:`history`.

        Args:
            resume: continue from the checkpoint in ``folder``, if there is one.
            progress: show a progress bar.

        Raises:
            ValueError: when a checkpoint is damaged or of other settings, loss or gradient are no longer finite, there
                are fewer episodes than processes, or the sampler cannot number them.
        """
        world = self.world
        if resume and self.folder is not None and (self.folder / CHECKPOINT).exists():
            self.load(self.folder / CHECKPOINT)
        self._meet(world)
        shown = progress and world.leads
        bar = tqdm(total=self.settings.steps, initial=self.step, desc="meta-training", disable=not shown, unit="step")
        with bar, _graphs(self.model, self.settings.cuda_graphs):
            while self.step < self.settings.steps:
                row = self.training_step()
                every = self.settings.validate_every
                if self.validation and every and (self.step % every == 0 or self.step == self.settings.steps):
                    row |= self.validate()
                self.history.append(row)
                show(bar, row)
                every = self.settings.checkpoint_every
                due = self.step == self.settings.steps or (every and self.step % every == 0)
                if self.folder is not None and due and world.leads:
                    self.save(self.folder / CHECKPOINT)
        self.model.eval()
        self.guide.eval()
        return pd.DataFrame(self.history)

    def training_step(self) -> dict[str, float]:
        """One optimizer step; returns its row of the history."""
        started = time.perf_counter()
        if not (self.model.training and self.guide.training):
            self.model.train()
            self.guide.train()
        world = self.world
        self._anneal()
        kl_factor = self._kl_schedule.factor(self.step, self.settings.steps)
        with self._episodes(world) as drawn, Heard() as heard:
            batch = self.features.attach(drawn.to(self.device))
            terms = self.elbo.terms(self.model, self.guide, batch, kl_factor=kl_factor)
        if not heard.posteriors:  # a guide with a forward of its own
            with torch.no_grad():
                heard.posteriors.append(self.guide.posterior(batch))
        loss = terms.loss / self.settings.episodes + self._penalty(world)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        world.sum_gradients(parameter for group in self.optimizer.param_groups for parameter in group["params"])
        self.scaler.unscale_(self.optimizer)
        experts = self.experts
        if experts is not None:
            experts.after_backward()
        norms = [nn.utils.clip_grad_norm_(g["params"], self.settings.clip_norm) for g in self.optimizer.param_groups]
        value, *lengths = torch.stack([loss.detach(), *(norm.to(loss) for norm in norms)]).tolist()  # waited for once
        if not math.isfinite(value):
            raise ValueError(
                f"the loss is {value} at step {self.step + 1}; expected a finite number: lower learning_rate, "
                "or look at the sources for extreme weights"
            )
        if not self.scaler.is_enabled() and not all(map(math.isfinite, lengths)):
            raise ValueError(
                f"the gradient is not finite at step {self.step + 1}, though the loss is {value:.4g}; expected "
                "finite numbers: set precision to float32, lower learning_rate, or look at the sources for extreme "
                "weights"
            )
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.get_scale() >= scale:  # or the optimizer has left the step out
            self.schedule.step()
        if experts is not None:
            experts.after_step()
        self.step += 1
        return row_of(self, terms, loss, heard.posteriors[-1], batch, time.perf_counter() - started)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Accuracy, loss and CVaR of the posterior-mean network, as deployed, on the held-out episodes."""
        self.model.eval()
        self.guide.eval()
        world, basis = self.world, self.model.basis()
        share = world.share(len(self.validation))
        outcomes = []
        for batch in (self.validation[i] for i in share or [0]):
            mean = self.guide.posterior(batch).mean.unsqueeze(0)
            outcomes.append(
                run_routings(self.model, batch, {"mean": (mean, mean.new_ones(1, len(batch)))}, basis=basis)["mean"]
            )
        loss = torch.cat([outcome.losses for outcome in outcomes])
        accuracy = torch.cat([outcome.accuracy for outcome in outcomes])
        if not share:  # more processes than batches: it gives nothing, of the right dtype
            loss, accuracy = loss[:0], accuracy[:0]
        (loss, accuracy), _ = world.gather(loss, accuracy)
        return {
            "validation_accuracy": accuracy.mean().item(),
            "validation_loss": loss.mean().item(),
            "validation_cvar": cvar(loss, self.elbo.rho).item(),
        }

    def save(self, path: Path) -> None:
        """Write everything that the rest of the run depends on."""
        save_state(path, state_of(self))

    def load(self, path: Path) -> None:
        """Continue from a checkpoint of the same run.

        Raises:
            ValueError: when the file is damaged or was written under other settings.
        """
        restore(self, path, load_state(path))

    def _meet(self, world: World) -> None:
        """All processes start from the same numbers: those of the first one."""
        check_sharing(world, self.settings.episodes, self.sampler, self.numbered)
        if world.size > 1 and self.step and not self.numbered and world.leads:
            warnings.warn(
                f"the first {self.step} steps drew their episodes from the stream of one process; from here on they "
                "are drawn by number (training.numbered = true draws them so from the start)",
                stacklevel=3,
            )
        self.numbered |= world.size > 1
        states = [*self.model.state_dict().items(), *self.guide.state_dict().items()]
        shapes = [(name, tuple(value.shape), value.dtype) for name, value in states]
        world.check_alike("the run (settings, checkpoint, model or guide)", self.settings, self.step, shapes)
        seed = torch.tensor(self.seed)
        world.broadcast([*(value for _, value in states), seed])
        self.seed = int(seed)

    def _episodes(self, world: World) -> AbstractContextManager[EpisodeBatch]:
        """This process's episodes of the step, by number, or the next ones of the stream."""
        size = self.settings.episodes
        if self.numbered:
            numbers = [self.step * size + i for i in world.share(size)]
            return numbered_episodes(self.sampler, numbers, self.seed, self.step, self.elbo.episode_plate)
        return nullcontext(self.sampler.sample(size))

    def _penalty(self, world: World) -> Tensor | float:
        experts, weight = self.experts, self.settings.orthogonality
        return world.share_gradient(weight * experts.orthogonality()) if experts is not None and weight else 0.0

    def _anneal(self) -> None:
        """What changes as training goes on: relaxation temperatures and the experts' budget."""
        progress = self.step / max(1, self.settings.steps - 1)
        self.guide.anneal(progress)
        experts = self.experts
        if experts is not None:
            experts.set_progress(min(1.0, progress))


@contextmanager
def _graphs(model: RoutedModel, wanted: bool) -> Iterator[None]:
    """The model's networks with CUDA graphs, where wanted; their memory is free again afterwards."""
    if not wanted:
        yield
        return
    network = model.network
    before = network.cuda_graphs, network.graphs
    network.cuda_graphs, network.graphs = True, CudaGraphs()
    try:
        yield
    finally:
        network.cuda_graphs, network.graphs = before
