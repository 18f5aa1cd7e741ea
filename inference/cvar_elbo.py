r"""CVaR_ELBO: a variational objective that spends its effort on the worst episodes.

.. math::
    \mathcal{L} = B \Big[ (1 - \kappa)\, \frac1B \sum_i X_i + \kappa\, \mathrm{CVaR}_\rho(X_1 - r_1, \dots, X_B - r_B)
                  + \lambda\, \frac1B \sum_i \mathrm{KL}_i \Big] + \lambda\, \mathrm{KL}_{\mathrm{global}}

with :math:`X_i = E_{q}[-\log p(y_i \mid c)]` the expected loss of episode i, averaged over particles *before* the tail
is taken, and r an optional reference (regret). Bayes-routed SMAT, eq. 5; the tail weights are exact and fractional.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pyro import poutine
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.infer.elbo import ELBO
from pyro.infer.enum import get_importance_trace
from pyro.poutine import Trace
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.util import warn_if_nan
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_smat.inference.episode_loss import EPISODE_LOSSES, EpisodeLoss, OfExpectation, loss_of_points
from pyro_smat.risk import check_rho, cvar_weights, value_at_risk

PARTICLES = "num_particles_vectorized"  # Pyro's own name for the plate of vectorised particles
UNGUESSED_NESTING = 8  # where enumeration dims start when max_plate_nesting is not given: left of any real plate

Site = dict[str, Any]


@dataclass(frozen=True)
class ELBOTerms:
    """One evaluation of the objective, its terms apart.

    Attributes:
        loss: the scalar to minimise, with gradient.
        mean_loss: mean of the episode losses X.
        tail_loss: CVaR_rho of X - r.
        kl: mean KL of an episode; global_kl: KL of the sites outside the episode plate.
        negative_elbo: sum of X plus all KL, unweighted: minus the plain ELBO when the loss is the summed NLL.
        threshold: the (1 - rho) quantile of X - r, above which episodes are in the tail.
        weights: ``(B,)`` tail weights, sum 1.
        episode_losses, episode_kl: ``(B,)``, detached.
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


class CVaR_ELBO(ELBO):
    r"""The CVaR-weighted negative ELBO; works with SVI, with ``elbo(model, guide)``, with any model whose task-local
    sites are inside the plate named ``episode_plate``.

    At ``rho = 1``, ``kl_weight = 1``, no reference and the summed loss it equals TraceMeanField_ELBO (``kl="exact"``),
    Trace_ELBO (``kl="sampled"``) and TraceEnum_ELBO (guide sites with ``infer={"enumerate": "parallel"}``) in value
    and gradient, for the same seed. Below 1 its scale is the same. It is a loss, not a bound, for rho < 1.

    Args:
        rho: tail fraction in (0, 1]; 1 is the mean.
        episode_plate: name of the plate over episodes. Sites outside it, in no other plate, are global: their KL is
            not tail-weighted. Observed sites, and sites in other plates, must be inside it.
        kl_weight: lambda >= 0.
        tail_weight: kappa in [0, 1], the share of the tail against the mean.
        episode_loss: "nll" (summed over queries), "mean_nll", "expected_error", "ensemble_nll", or a hook, see
            :mod:`pyro_smat.inference.episode_loss`.
        reference: a function of the model's arguments that returns r ``(B,)`` in the units of the episode loss; called
            without gradient. The tail is then over regret.
        kl: "exact" where a closed form is registered (Monte Carlo elsewhere), or "sampled" everywhere.
        num_particles, max_plate_nesting, vectorize_particles, **options: as in :class:`pyro.infer.ELBO`. When it is
            not given and particles are vectorised, the nesting is guessed at the first call (without touching the
            random generators) and kept: use one object for one pair of model and guide.

    Raises:
        ValueError: for arguments out of range.

    Example:
        >>> elbo = CVaR_ELBO(rho=0.1)                                               # doctest: +SKIP
        >>> elbo(model, guide)(batch).backward()                                    # doctest: +SKIP
    """

    def __init__(
        self,
        rho: float = 0.1,
        episode_plate: str = "episodes",
        kl_weight: float = 1.0,
        *,
        tail_weight: float = 1.0,
        episode_loss: str | EpisodeLoss = "nll",
        reference: Callable[..., Tensor] | None = None,
        kl: Literal["exact", "sampled"] = "exact",
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
        if not kl_weight >= 0:
            raise ValueError(f"kl_weight is {kl_weight}; expected >= 0")
        if not 0 <= tail_weight <= 1:
            raise ValueError(f"tail_weight (kappa) is {tail_weight}; expected 0 (the mean) to 1 (the tail alone)")
        if kl not in ("exact", "sampled"):
            raise ValueError(f"kl is {kl!r}; expected 'exact' or 'sampled'")
        if isinstance(episode_loss, str) and episode_loss not in EPISODE_LOSSES:
            raise ValueError(
                f"episode_loss is {episode_loss!r}; expected one of {sorted(EPISODE_LOSSES)} or a function"
            )
        self.rho = rho
        self.episode_plate = episode_plate
        self.kl_weight = kl_weight
        self.tail_weight = tail_weight
        self.episode_loss: EpisodeLoss = EPISODE_LOSSES[episode_loss] if isinstance(episode_loss, str) else episode_loss
        if isinstance(self.episode_loss, OfExpectation) and num_particles > 1 and not vectorize_particles:
            raise ValueError(
                f"episode_loss {type(self.episode_loss).__name__} is taken of the average over particles; pass "
                "vectorize_particles=True"
            )
        self.reference = reference
        self.kl = kl
        self._warned_small_tail = False
        self._warned_order = False

    def loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """The loss as a number."""
        return self._checked(self.terms(model, guide, *args, **kwargs).loss.item())

    def differentiable_loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """The loss as a scalar tensor with gradient."""
        return self.terms(model, guide, *args, **kwargs).loss

    def loss_and_grads(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """The loss as a number, after its backward pass."""
        loss = self.terms(model, guide, *args, **kwargs).loss
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return self._checked(loss.item())

    def terms(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> ELBOTerms:
        """The loss and its terms in one pass, for training loops that log.

        Raises:
            ValueError: for sites that are not where they should be; the message names the site.
        """
        particles = [
            self._particle(model_trace, guide_trace)
            for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs)
        ]
        losses, kl, global_kl = (torch.stack(part).mean(0) for part in zip(*particles, strict=True))
        reference = torch.zeros_like(losses)
        if self.reference is not None:
            with torch.no_grad():
                reference = self.reference(*args, **kwargs).to(losses)
            if reference.shape != losses.shape:
                raise ValueError(f"reference returned shape {tuple(reference.shape)}; expected {tuple(losses.shape)}")

        episodes = losses.shape[0]
        if self.tail_weight > 0 and self.rho * episodes < 5 and self.rho < 1 and not self._warned_small_tail:
            self._warned_small_tail = True
            warnings.warn(
                f"rho x B = {self.rho:g} x {episodes} < 5 episodes in the tail: the batch CVaR is biased low; "
                "use larger batches or a larger rho",
                stacklevel=2,
            )
        regret = losses - reference
        weights = cvar_weights(regret.detach(), self.rho)
        tail = (weights * regret).sum()
        risk = (1 - self.tail_weight) * losses.mean() + self.tail_weight * tail
        total_kl = kl.sum() + global_kl
        return ELBOTerms(
            loss=episodes * risk + self.kl_weight * total_kl,
            mean_loss=losses.mean().detach(),
            tail_loss=tail.detach(),
            kl=kl.mean().detach(),
            global_kl=global_kl.detach(),
            negative_elbo=(losses.sum() + total_kl).detach(),
            threshold=value_at_risk(regret.detach(), self.rho),
            weights=weights,
            episode_losses=losses.detach(),
            episode_kl=kl.detach(),
        )

    @staticmethod
    def _checked(loss: float) -> float:
        warn_if_nan(loss, "loss")
        return loss

    def _get_traces(self, model: Callable, guide: Callable, args: Any, kwargs: Any) -> Iterator[tuple[Trace, Trace]]:
        if isinstance(poutine.unwrap(guide), poutine.messenger.Messenger):
            raise NotImplementedError(
                "CVaR_ELBO does not support a GuideMessenger; pass a guide function or PyroModule"
            )
        runs = self.num_particles
        if self.vectorize_particles and self.num_particles > 1:
            if self.max_plate_nesting == float("inf"):
                with _untouched_generators():  # or a resumed run, which guesses again, would draw other numbers
                    self._guess_max_plate_nesting(model, guide, args, kwargs)
            model, guide = self._vectorized_num_particles(model), self._vectorized_num_particles(guide)
            runs = 1
        nesting = UNGUESSED_NESTING if self.max_plate_nesting == float("inf") else int(self.max_plate_nesting)
        # The guide's enumeration dims lie left of all plates; the model's would come after them (and are refused).
        enumerating_guide = EnumMessenger(first_available_dim=-1 - nesting)(guide)
        enumerating_model = EnumMessenger()(model)
        for _ in range(runs):
            yield get_importance_trace("flat", nesting, enumerating_model, enumerating_guide, args, kwargs)

    def _get_trace(self, model: Callable, guide: Callable, args: Any, kwargs: Any) -> tuple[Trace, Trace]:
        return next(iter(self._get_traces(model, guide, args, kwargs)))

    def _particle(self, model_trace: Trace, guide_trace: Trace) -> tuple[Tensor, Tensor, Tensor]:
        """Expected loss ``(B,)``, KL ``(B,)`` and global KL of one pair of traces."""
        enumerated = _enumerated_sites(guide_trace)
        observed = [s for s in _sample_sites(model_trace) if s["is_observed"]]
        if not observed:
            raise ValueError("the model observed nothing; expected at least one observed site inside the episode plate")
        dim, size = self._episode_frame(observed[0])
        _refuse_missing_latents(model_trace, guide_trace)

        def per_episode(term: Tensor, site: Site) -> Tensor:
            term = _over_particles(_expectation(term, site, enumerated), site)
            inner = self._inner_dims(site)
            return _vector(term.sum(inner, keepdim=True) if inner else term, dim, size, site)

        losses: Tensor | float = 0.0
        kl: Tensor | float = 0.0
        global_kl: Tensor = torch.zeros((), device=observed[0]["log_prob"].device, dtype=observed[0]["log_prob"].dtype)
        for site in observed:
            self._episode_frame(site)
            losses = losses + self._episode_losses(site, enumerated, dim, size)
        for site, term in self._kl_terms(model_trace, guide_trace, set(enumerated)):
            if self._is_local(site):
                kl = kl + per_episode(term, site)
            else:
                global_kl = global_kl + _over_particles(_expectation(term, site, enumerated), site).mean()
        assert isinstance(losses, Tensor)
        return losses, kl if isinstance(kl, Tensor) else torch.zeros_like(losses), global_kl

    def _episode_losses(self, site: Site, enumerated: dict[str, Site], dim: int, size: int) -> Tensor:
        """Loss ``(B,)`` of an observed site: the expectation of its points, summed."""
        inner = self._inner_dims(site)

        def expectation(points: Tensor) -> Tensor:
            return _over_particles(_expectation(points, site, enumerated), site)

        points = loss_of_points(self.episode_loss, site, inner, expectation)
        return _vector(points.sum(inner, keepdim=True) if inner else points, dim, size, site)

    def _kl_terms(self, model_trace: Trace, guide_trace: Trace, enumerated: set[str]) -> Iterator[tuple[Site, Tensor]]:
        """log q - log p, or the exact KL, of every latent site, in the shape of its plates."""
        if self.kl == "exact":
            self._warn_if_reordered(model_trace, guide_trace, enumerated)
        for site in _sample_sites(model_trace):
            if site["is_observed"]:
                continue
            name = site["name"]
            guide_site = guide_trace.nodes[name]
            self._refuse_unreparameterised(guide_site, enumerated)
            if self.kl == "exact" and name not in enumerated:
                try:
                    exact = kl_divergence(guide_site["fn"], site["fn"])
                except NotImplementedError:
                    pass
                else:
                    yield guide_site, scale_and_mask(exact, scale=guide_site["scale"], mask=guide_site["mask"])
                    continue
            yield guide_site, guide_site["log_prob"] - site["log_prob"]
        for guide_site in _sample_sites(guide_trace):
            if guide_site["name"] not in model_trace.nodes:  # Pyro itself insists on infer={"is_auxiliary": True}
                self._refuse_unreparameterised(guide_site, enumerated)
                yield guide_site, guide_site["log_prob"]

    def _warn_if_reordered(self, model_trace: Trace, guide_trace: Trace, enumerated: set[str]) -> None:
        """Site by site, exact KLs add up to the KL of the joint only if the sites depend on each other in one order."""
        latent = [[s["name"] for s in _sample_sites(t) if not s["is_observed"]] for t in (model_trace, guide_trace)]
        of_model, of_guide = ([n for n in latent[i] if n in latent[1 - i] and n not in enumerated] for i in (0, 1))
        if of_model != of_guide and not self._warned_order:
            self._warned_order = True
            warnings.warn(
                f"the model draws its sites {of_model} and the guide {of_guide}, in another order; exact KLs are right "
                'only where these sites are independent: use the same order, or kl="sampled"',
                stacklevel=2,
            )

    @staticmethod
    def _refuse_unreparameterised(site: Site, enumerated: set[str]) -> None:
        if site["name"] not in enumerated and not is_identically_zero(site["score_parts"].score_function):
            raise ValueError(
                f"guide site {site['name']!r} ({type(site['fn']).__name__}) is neither reparameterised nor enumerated; "
                'give it infer={"enumerate": "parallel"} or a reparameterised distribution'
            )

    def _is_local(self, site: Site) -> bool:
        plates = [frame.name for frame in site["cond_indep_stack"] if frame.name != PARTICLES]
        if self.episode_plate in plates:
            return True
        if plates:
            raise ValueError(
                f"site {site['name']!r} is inside plates {plates} but not inside {self.episode_plate!r}; "
                f"enclose it in pyro.plate({self.episode_plate!r}), or take it out of every plate to make it global"
            )
        return False

    def _episode_frame(self, site: Site) -> tuple[int, int]:
        """Dim and size of the episode plate at a site."""
        for frame in site["cond_indep_stack"]:
            if frame.name == self.episode_plate:
                if not frame.vectorized:
                    raise ValueError(
                        f"plate {self.episode_plate!r} around site {site['name']!r} is sequential; use it as a context "
                        "manager (vectorised), so that episode losses can be told apart"
                    )
                return frame.dim, frame.size
        others = [frame.name for frame in site["cond_indep_stack"] if frame.name != PARTICLES]
        raise ValueError(
            f"observed site {site['name']!r} is not inside the plate {self.episode_plate!r} (its plates: {others}); "
            "enclose it, or name the right plate in episode_plate="
        )

    def _inner_dims(self, site: Site) -> tuple[int, ...]:
        """Dims of the plates at a site other than episodes and particles."""
        return tuple(
            f.dim for f in site["cond_indep_stack"] if f.vectorized and f.name not in (self.episode_plate, PARTICLES)
        )


def _untouched_generators() -> AbstractContextManager[None]:
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    return torch.random.fork_rng(devices=[torch.cuda.current_device()] if cuda else [])


def _sample_sites(trace: Trace) -> Iterator[Site]:
    """All sample sites but those of pyro.deterministic, which Pyro records as observed."""
    sites = (site for site in trace.nodes.values() if site["type"] == "sample")
    return (site for site in sites if not site["infer"].get("_deterministic"))


def _refuse_missing_latents(model_trace: Trace, guide_trace: Trace) -> None:
    for site in _sample_sites(model_trace):
        if not site["is_observed"] and site["name"] not in guide_trace.nodes:
            raise ValueError(
                f"latent site {site['name']!r} of the model is not in the guide (enumeration in the model is not "
                "supported); add it to the guide"
            )


def _enumerated_sites(guide_trace: Trace) -> dict[str, Site]:
    enumerated = {}
    for site in _sample_sites(guide_trace):
        kind = site["infer"].get("enumerate")
        if kind is not None and kind != "parallel":
            raise ValueError(f'guide site {site["name"]!r} asks for {kind!r} enumeration; only "parallel" is supported')
        if kind is not None and site["infer"].get("num_samples") is not None:
            raise ValueError(
                f"guide site {site['name']!r} asks for num_samples inside its enumeration; only exact enumeration is "
                "supported: leave num_samples out, or use num_particles of the ELBO"
            )
        if site["infer"].get("_enumerate_dim") is not None:
            enumerated[site["name"]] = site
    return enumerated


def _plates(site: Site) -> set[str]:
    return {frame.name for frame in site["cond_indep_stack"] if frame.vectorized}


def _expectation(term: Tensor, site: Site, enumerated: dict[str, Site]) -> Tensor:
    """Expectation of a term over the enumerated guide sites that it depends on, through their ancestors too."""
    used: dict[str, Site] = {}
    waiting = [term]
    while waiting:
        tensor = waiting.pop()
        for name, guide_site in enumerated.items():
            dim = guide_site["infer"]["_enumerate_dim"]
            if name not in used and tensor.dim() >= -dim and tensor.shape[dim] > 1:
                used[name] = guide_site
                waiting.append(guide_site["unscaled_log_prob"])
    if not used:
        return term
    for name, guide_site in used.items():
        if not _plates(guide_site) <= _plates(site):
            raise ValueError(
                f"site {site['name']!r} depends on the enumerated guide site {name!r}, which is inside plates "
                f"{sorted(_plates(guide_site) - _plates(site))} that {site['name']!r} is not in; move one of them, or "
                "do not enumerate it"
            )
    log_q = torch.broadcast_tensors(*(guide_site["unscaled_log_prob"] for guide_site in used.values()))
    posterior = torch.stack(log_q).sum(0).exp()
    dims = tuple(guide_site["infer"]["_enumerate_dim"] for guide_site in used.values())
    return (posterior * torch.where(posterior > 0, term, 0.0)).sum(dims, keepdim=True)  # 0 log 0 is 0


def _over_particles(term: Tensor, site: Site) -> Tensor:
    dims = [f.dim for f in site["cond_indep_stack"] if f.name == PARTICLES and f.vectorized and term.dim() >= -f.dim]
    return term.mean(dims, keepdim=True) if dims else term


def _vector(term: Tensor, dim: int, size: int, site: Site) -> Tensor:
    """``(B,)`` from a term whose only dim of size > 1 is the episode dim (``frame.size`` is that of the subsample)."""
    term = term.expand(torch.broadcast_shapes(term.shape, (size,) + (1,) * (-dim - 1)))
    if term.numel() != size:
        raise ValueError(
            f"the term of site {site['name']!r} has shape {tuple(term.shape)} after its plates are summed; expected "
            f"{size} episodes at dim {dim} and nothing else: declare its other dims with pyro.plate or .to_event"
        )
    return term.reshape(-1)
