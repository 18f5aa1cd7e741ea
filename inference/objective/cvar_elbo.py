r"""CVaR_ELBO: a variational objective that spends its effort on the worst episodes.

.. math::
    \mathcal{L} = B \Big[ (1 - \kappa)\, \frac1B \sum_i X_i + \kappa\, \mathrm{CVaR}_\rho(X_1 - r_1, \dots, X_B - r_B)
                  + \lambda\, \frac1B \sum_i \mathrm{KL}_i \Big] + \lambda\, \mathrm{KL}_{\mathrm{global}}

with :math:`X_i = E_{q}[-\log p(y_i \mid c)]` the expected loss of episode i, averaged over particles *before* the tail
is taken, and r an optional reference (regret). Bayes-routed SMAT, eq. 5; the tail weights are exact and fractional.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from pyro import poutine
from pyro.infer.elbo import ELBO
from pyro.infer.enum import get_importance_trace
from pyro.poutine import Trace
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.util import warn_if_nan
from torch import Tensor

from pyro_smat.distributed import World
from pyro_smat.inference.objective.losses import EpisodeLoss, OfExpectation, as_episode_loss
from pyro_smat.inference.objective.particle import EpisodePenalty, Particle, TermOptions
from pyro_smat.inference.objective.score_function import BASELINES, Baseline, Risk, ScoreFunction
from pyro_smat.inference.objective.terms import ELBOTerms
from pyro_smat.inference.objective.threshold import THRESHOLDS, BatchThreshold, Threshold
from pyro_smat.metrics.risk import check_rho
from pyro_smat.registry import Choice

UNGUESSED_NESTING = 8  # where enumeration dims start when max_plate_nesting is not given: left of any real plate


class CVaR_ELBO(ELBO):
    r"""The CVaR-weighted negative ELBO; works with SVI, with ``elbo(model, guide)``, with any model whose task-local
    sites are inside the plate named ``episode_plate``.

    At ``rho = 1``, ``kl_weight = 1``, no reference and the summed loss it equals TraceMeanField_ELBO (``kl="exact"``),
    Trace_ELBO (``kl="sampled"``) and TraceEnum_ELBO (guide sites with ``infer={"enumerate": "parallel"}``) in value
    and gradient, for the same seed. Below 1 its scale is the same. It is a loss, not a bound, for rho < 1; the plain
    ELBO is reported beside it (:attr:`ELBOTerms.negative_elbo`).

    Args:
        rho: tail fraction in (0, 1]; 1 is the mean.
        episode_plate: name of the plate over episodes. Sites outside it, in no other plate, are global: their KL is
            not tail-weighted, nor are pyro.factor statements there. Other observed sites, and sites in other plates,
            must be inside it.
        kl_weight: lambda >= 0, on the whole KL.
        entropy_weight: splits lambda: with KL = E[log q] - E[log p], the first term (minus the entropy) then has this
            weight and only the second (prior, cost) has kl_weight. None: kl_weight for both.
        tail_weight: kappa in [0, 1], the share of the tail against the mean.
        episode_loss: a name ("nll", summed over queries; "mean_nll", "clipped_nll", "expected_error", "brier",
            "predictive_nll"), a table with its options such as ``{"kind": "clipped_nll", "clip": 3.0}``, or a loss of
            your own, see :mod:`pyro_smat.inference.objective.losses`.
        reference: a function of the model's arguments that returns r ``(B,)`` in the units of the episode loss (of a
            subsampled plate: scaled like it); called without gradient. The tail is then over regret.
        threshold: "batch" (exact fractional weights), "queue" or "learned" (for small B), or an object of
            :mod:`pyro_smat.inference.objective.threshold`.
        kl: "exact" where a closed form is registered (Monte Carlo elsewhere), or "sampled" everywhere.
        baseline: of score-function sites, i.e. guide sites that are neither reparameterised nor enumerated: "none"
            (as Trace_ELBO), "leave_one_out" (several particles) or "decaying_average".
        penalties: name -> optional term, see :class:`EpisodePenalty`.
        world: the processes whose batches are one batch; None: those of torch.distributed's default group, if there is
            one; ``World()``: this process alone.
        num_particles, max_plate_nesting, vectorize_particles, **options: as in :class:`pyro.infer.ELBO`. When it is
            not given and particles are vectorised, the nesting is guessed at the first call (without touching the
            random generators) and kept: use one object for one pair of model and guide.

    In several processes each is given its own episodes, and the tail is that of all of them: losses are gathered before
    their tail weights are taken. Every value that is returned is of the whole batch; gradients are of the process's own
    episodes, and their sum over processes (:meth:`pyro_smat.distributed.World.sum_gradients`) is the gradient of the
    whole batch. All processes have to call it, and to draw the same values at sites outside the episode plate.

    Thresholds and baselines have a state, which moves on in every evaluation but :meth:`loss`; see :meth:`state_dict`.

    Raises:
        ValueError: for arguments out of range.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(y):
        ...     with pyro.plate("episodes", len(y), dim=-2):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         with pyro.plate("queries", y.shape[1], dim=-1):
        ...             pyro.sample("y", dist.Normal(z, 1.0), obs=y)
        >>> def guide(y):
        ...     with pyro.plate("episodes", len(y), dim=-2):
        ...         pyro.sample("z", dist.Delta(torch.zeros(len(y), 1)))
        >>> terms = CVaR_ELBO(rho=0.5).terms(model, guide, torch.arange(20.0).view(10, 2))
        >>> terms.weights  # the worst half
        tensor([0.0000, 0.0000, 0.0000, 0.0000, 0.0000, 0.2000, 0.2000, 0.2000, 0.2000,
                0.2000])
    """

    def __init__(
        self,
        rho: float = 0.1,
        episode_plate: str = "episodes",
        kl_weight: float = 1.0,
        *,
        entropy_weight: float | None = None,
        tail_weight: float = 1.0,
        episode_loss: str | Mapping[str, Any] | Choice | EpisodeLoss = "nll",
        reference: Callable[..., Tensor] | None = None,
        threshold: str | Threshold = "batch",
        kl: Literal["exact", "sampled"] = "exact",
        baseline: Baseline = "none",
        penalties: Mapping[str, EpisodePenalty] | None = None,
        world: World | None = None,
        num_particles: int = 1,
        max_plate_nesting: float = float("inf"),
        vectorize_particles: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(
            num_particles=num_particles,
            max_plate_nesting=max_plate_nesting,
            vectorize_particles=vectorize_particles,
            **options,
        )
        check_rho(rho)
        if not kl_weight >= 0 or (entropy_weight is not None and not entropy_weight >= 0):
            raise ValueError(f"kl_weight is {kl_weight} and entropy_weight {entropy_weight}; expected >= 0")
        if not 0 <= tail_weight <= 1:
            raise ValueError(f"tail_weight (kappa) is {tail_weight}; expected 0 (the mean) to 1 (the tail alone)")
        if kl not in ("exact", "sampled"):
            raise ValueError(f"kl is {kl!r}; expected 'exact' or 'sampled'")
        if isinstance(threshold, str) and threshold not in THRESHOLDS:
            raise ValueError(
                f"threshold is {threshold!r}; expected one of {sorted(THRESHOLDS)} or an object of your own"
            )
        if baseline not in BASELINES:
            raise ValueError(f"baseline is {baseline!r}; expected one of {BASELINES}")
        if baseline == "leave_one_out" and num_particles < 2:
            raise ValueError("baseline 'leave_one_out' needs num_particles >= 2; use 'decaying_average' with one")
        self.rho = rho
        self.episode_plate = episode_plate
        self.kl_weight, self.entropy_weight = kl_weight, entropy_weight
        self.tail_weight = tail_weight
        self.episode_loss = as_episode_loss(episode_loss)
        if isinstance(self.episode_loss, OfExpectation) and num_particles > 1 and not vectorize_particles:
            raise ValueError(
                f"episode_loss {type(self.episode_loss).__name__} is taken of the average over particles; pass "
                "vectorize_particles=True"
            )
        self.reference = reference
        self.threshold: Threshold = THRESHOLDS[threshold]() if isinstance(threshold, str) else threshold
        self.kl = kl
        self.score_function = ScoreFunction(baseline)
        self.penalties = dict(penalties or {})
        self.world = world
        self._warned_small_tail = False
        self._warned_order = False

    def loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """The loss as a number; leaves the state of threshold and baseline alone."""
        return self._checked(self._terms(model, guide, args, kwargs, update=False).loss.item())

    def differentiable_loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """The loss as a scalar tensor with gradient."""
        return self.terms(model, guide, *args, **kwargs).loss

    def loss_and_grads(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """The loss as a number, after its backward pass."""
        loss = self.terms(model, guide, *args, **kwargs).loss
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return self._checked(loss.item())

    def terms(self, model: Callable, guide: Callable, *args: Any, kl_factor: float = 1.0, **kwargs: Any) -> ELBOTerms:
        """The loss and its terms in one pass, for training loops that log.

        Args:
            model, guide: the pair.
            args, kwargs: of both.
            kl_factor: in [0, 1], the share of kl_weight and entropy_weight that counts now, while they are annealed.

        Raises:
            ValueError: for sites that are not where they should be; the message names the site.
        """
        return self._terms(model, guide, args, kwargs, update=True, kl_factor=kl_factor)

    def state_dict(self) -> dict[str, Any]:
        """State of the threshold and of decaying baselines, for a training run that is to be resumed."""
        return {"threshold": self.threshold.state_dict(), "baselines": dict(self.score_function.averages)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo :meth:`state_dict`."""
        self.threshold.load_state_dict(state["threshold"])
        self.score_function.averages = dict(state["baselines"])

    def _terms(
        self,
        model: Callable,
        guide: Callable,
        args: tuple,
        kwargs: dict[str, Any],
        *,
        update: bool,
        kl_factor: float = 1.0,
    ) -> ELBOTerms:
        kl_weight = kl_factor * self.kl_weight
        entropy_weight = None if self.entropy_weight is None else kl_factor * self.entropy_weight
        options = TermOptions(self.episode_plate, self.episode_loss, self.kl, kl_weight, entropy_weight, self.penalties)
        particles = [
            Particle(options, model_trace, guide_trace, args, kwargs)
            for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs)
        ]
        if self.kl == "exact":
            self._warn_if_reordered(*particles[0].latent_orders())

        def mean(name: str) -> Tensor:
            each = [getattr(particle, name) for particle in particles]
            values = each[0] if len(each) == 1 else torch.cat(each)
            return values[0] if len(values) == 1 else values.mean(0)

        losses = mean("losses")
        regret = losses if self.reference is None else losses - self._reference(losses.detach(), args, kwargs)
        own = len(losses)
        world = self.world or World.current()
        (losses, regret, kl, nll), mine = world.gather(losses, regret, mean("kl"), mean("nll"))
        (extra,), _ = world.gather(mean("extra").unsqueeze(0))
        global_kl, global_extra = world.share_gradient(mean("global_kl")), world.share_gradient(mean("global_extra"))
        values, episodes = losses.detach(), len(losses)
        self._warn_of_small_tail(episodes)
        tail = self.threshold(regret.detach(), self.rho, update)
        tail_loss = tail.loss(regret)
        risk = tail_loss
        if self.tail_weight == 0:
            risk = losses.mean()
        elif self.tail_weight < 1:
            risk = (1 - self.tail_weight) * losses.mean() + self.tail_weight * tail_loss
        kl_sum = kl.sum() + global_kl
        loss = episodes * risk + kl_weight * kl_sum + (extra.sum() + global_extra)
        if particles[0].scored and torch.isfinite(loss):  # what an infinite loss falls by has no value
            at = Risk(regret.detach(), tail, tail_loss.detach(), self.tail_weight, mine)
            loss = loss + self.score_function.surrogate([p.costs() for p in particles], at, world, update)
        penalties = {name: torch.stack([p.penalties[name] for p in particles]).mean(0) for name in self.penalties}
        return ELBOTerms(
            loss=loss,
            mean_loss=values.mean(),
            tail_loss=tail_loss.detach(),
            kl=kl.detach().mean(),
            global_kl=global_kl.detach(),
            negative_elbo=nll.sum() + kl_sum.detach(),
            threshold=tail.threshold,
            weights=tail.weights,
            episode_losses=values,
            episode_kl=kl.detach(),
            penalties={name: world.mean(value.detach(), own) for name, value in penalties.items()},
        )

    def _reference(self, losses: Tensor, args: tuple, kwargs: dict[str, Any]) -> Tensor:
        assert self.reference is not None
        with torch.no_grad():
            reference = self.reference(*args, **kwargs).to(losses)
        if reference.shape != losses.shape:
            raise ValueError(f"reference returned shape {tuple(reference.shape)}; expected {tuple(losses.shape)}")
        return reference

    @staticmethod
    def _checked(loss: float) -> float:
        warn_if_nan(loss, "loss")
        return loss

    def _warn_of_small_tail(self, episodes: int) -> None:
        small = self.tail_weight > 0 and self.rho < 1 and self.rho * episodes < 5
        if small and isinstance(self.threshold, BatchThreshold) and not self._warned_small_tail:
            self._warned_small_tail = True
            warnings.warn(
                f"rho x B = {self.rho:g} x {episodes} < 5 episodes in the tail: the batch CVaR is biased low; "
                'use larger batches, a larger rho, or threshold="queue"',
                stacklevel=5,
            )

    def _get_traces(self, model: Callable, guide: Callable, args: Any, kwargs: Any) -> Iterator[tuple[Trace, Trace]]:
        runs = self.num_particles
        if isinstance(poutine.unwrap(guide), poutine.messenger.Messenger):  # it runs the model, once
            if self.vectorize_particles and runs > 1:
                raise NotImplementedError("a GuideMessenger cannot vectorise particles; pass vectorize_particles=False")
            nesting = UNGUESSED_NESTING if self.max_plate_nesting == float("inf") else int(self.max_plate_nesting)
            for _ in range(runs):
                yield get_importance_trace("flat", nesting, model, guide, args, kwargs)
            return
        if self.vectorize_particles and self.num_particles > 1:
            if self.max_plate_nesting == float("inf"):
                with _untouched_generators():  # or a resumed run, which guesses again, would draw other numbers
                    self._guess_max_plate_nesting(model, guide, args, kwargs)
            model, guide = self._vectorized_num_particles(model), self._vectorized_num_particles(guide)
            runs = 1
        nesting = UNGUESSED_NESTING if self.max_plate_nesting == float("inf") else int(self.max_plate_nesting)
        # Enumeration dims lie left of all plates. Only the guide's: the model's own are refused.
        enumerating_guide = EnumMessenger(first_available_dim=-1 - nesting)(guide)
        for _ in range(runs):
            yield get_importance_trace("flat", nesting, model, enumerating_guide, args, kwargs)

    def _get_trace(self, model: Callable, guide: Callable, args: Any, kwargs: Any) -> tuple[Trace, Trace]:
        return next(iter(self._get_traces(model, guide, args, kwargs)))

    def _warn_if_reordered(self, of_model: list[str], of_guide: list[str]) -> None:
        """Site by site, exact KLs add up to the KL of the joint only if the sites depend on each other in one order."""
        if of_model != of_guide and not self._warned_order:
            self._warned_order = True
            warnings.warn(
                f"the model draws its sites {of_model} and the guide {of_guide}, in another order; exact KLs are right "
                'only where these sites are independent: use the same order, or kl="sampled"',
                stacklevel=2,
            )


def _untouched_generators() -> AbstractContextManager[None]:
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    return torch.random.fork_rng(devices=[torch.cuda.current_device()] if cuda else [])
