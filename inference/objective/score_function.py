r"""Score-function gradients: for guide sites whose draws have no gradient of their own.

.. math:: \nabla E_q[L] = E_q\Big[\sum_s \big(L - L_{-s}\big)\, \nabla \log q(z_s)\Big] + E_q[\nabla L]

L is the loss that is returned, and :math:`L_{-s}` the loss that it would have been if the terms that share the plates
of site s were replaced by a baseline: any number that does not depend on z_s (Mnih and Rezende 2016; Ranganath et al.
2014). With baseline 0 and rho = 1 this is Trace_ELBO's Rao-Blackwellised estimator, whose costs however leave out the
densities of auxiliary sites and the factors of the guide. Below 1 the tail is not linear in the losses: the cost of an
episode is what the tail loss rises by on its account, not its weight times its loss, whose expected gradient would
change with a constant added to all losses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pyro.infer.util import MultiFrameTensor
from torch import Tensor
from torch.nn import functional as F

from pyro_smat.distributed import World
from pyro_smat.inference.objective.losses import EpisodeLoss, OfExpectation
from pyro_smat.inference.objective.sites import Layout, Site, depends_on, particle_dim
from pyro_smat.inference.objective.threshold import Tail

Baseline = Literal["none", "leave_one_out", "decaying_average"]
BASELINES: tuple[Baseline, ...] = ("none", "leave_one_out", "decaying_average")
DECAY = 0.9


@dataclass(frozen=True)
class Risk:
    """B ((1 - kappa) mean X + kappa tail(X - r)), around the episode losses of a batch.

    Attributes:
        regret: X - r ``(B,)``, detached.
        tail, tail_loss: of the regret.
        tail_weight: kappa.
        mine: which of the episodes are this process's own; only their costs are asked for.
    """

    regret: Tensor
    tail: Tail
    tail_loss: Tensor
    tail_weight: float
    mine: slice

    def fall(self, by: Tensor, layout: Layout, apart: bool) -> Tensor:
        """By how much it falls when the losses fall ``by`` so much, which has the episodes at the layout's dim.

        ``apart``: each entry alone, the result has the shape of ``by``. Otherwise all episodes together, they are
        summed out (to size 1).
        """
        by = by.movedim(layout.dim, -1)
        if apart:
            mean = by
            others = (self.mine.start, len(self.regret) - self.mine.stop)
            other = F.pad(torch.diag_embed(-by), others) + self.regret
        else:
            mean, other = by.sum(-1, keepdim=True), (self.regret - by).unsqueeze(-2)
        tail = len(self.regret) * (self.tail_loss - self.tail.at(other))
        return ((1 - self.tail_weight) * mean + self.tail_weight * tail).movedim(-1, layout.dim)


@dataclass(frozen=True)
class CostTerm:
    """A term of one particle's objective, in the shape of the plates of its site, enumeration summed out.

    Attributes:
        site: gives the plates.
        value: the term, detached.
        silent_for: name of a site whose draw does not change the term although it shares its plates (its exact KL).
    """

    site: Site
    value: Tensor
    silent_for: str | None = None


@dataclass(frozen=True)
class Costs:
    """What the score-function sites of one pair of traces are weighed with.

    Attributes:
        layout: where the episodes are.
        scored: the guide sites that need it.
        losses: episode losses, of which the risk is taken.
        regularisers: KL and penalty terms, weighted already.
    """

    layout: Layout
    scored: Sequence[Site]
    losses: Sequence[CostTerm]
    regularisers: Sequence[CostTerm]

    def of(self, site: Site) -> tuple[Tensor, Tensor]:
        """The losses and the regularisers that share the plates of a site; the losses keep the episodes apart."""
        episodes = [f for term in self.losses for f in term.site["cond_indep_stack"] if f.name == self.layout.plate]
        losses = _sum_to(self.losses, [*site["cond_indep_stack"], *episodes])
        losses = losses.expand(
            torch.broadcast_shapes(losses.shape, (self.layout.size,) + (1,) * (-self.layout.dim - 1))
        )
        felt = [term for term in self.regularisers if term.silent_for != site["name"]]
        return losses, _sum_to(felt, site["cond_indep_stack"]).to(losses)


def refuse_score_sites(scored: Sequence[Site], enumerated: Mapping[str, Site], episode_loss: EpisodeLoss) -> None:
    """Refuse what the estimator cannot do.

    Raises:
        ValueError: for a site that depends on an enumerated one, or with a loss that is no average over particles.
    """
    for site in scored:
        kind = type(site["fn"]).__name__
        if isinstance(episode_loss, OfExpectation):
            raise ValueError(
                f"guide site {site['name']!r} ({kind}) needs the score function, which episode_loss "
                f"{type(episode_loss).__name__} does not allow: it is no average over particles; give the site "
                'infer={"enumerate": "parallel"}, a reparameterised distribution, or use another episode_loss '
                "(expected_error, mean_nll)"
            )
        for name, other in enumerated.items():
            if depends_on(site["unscaled_log_prob"], other):
                raise ValueError(
                    f"guide site {site['name']!r} ({kind}) needs the score function and depends on the enumerated site "
                    f'{name!r}; give it infer={{"enumerate": "parallel"}} too, or do not enumerate {name!r}'
                )


class ScoreFunction:
    """The surrogate of all score-function sites; value zero, gradient as in the module's formula.

    Args:
        baseline: "none": zero; "leave_one_out": the mean of the same terms under the other particles;
            "decaying_average": a running mean of the terms of the site, over episodes and steps.
    """

    def __init__(self, baseline: Baseline) -> None:
        self.baseline = baseline
        self.averages: dict[str, Tensor] = {}  # of the losses and of the regularisers

    def surrogate(self, particles: Sequence[Costs], risk: Risk, world: World, update: bool = True) -> Tensor:
        """Of this process's episodes.

        Args:
            particles: one for each pair of traces.
            risk: of the average of all particles.
            world: the processes that share the batch.
            update: whether decaying averages move on.

        Raises:
            ValueError: for a site outside the episode plate, where there are several processes.
        """
        total = risk.regret.new_zeros(())
        layout = particles[0].layout
        for index, first in enumerate(particles[0].scored):
            sites = [p.scored[index] for p in particles]
            if world.size > 1 and not layout.is_local(first):
                raise ValueError(
                    f"guide site {first['name']!r} ({type(first['fn']).__name__}) needs the score function and is "
                    f"outside the plate {layout.plate!r}, which several processes cannot share; expected a "
                    "reparameterised or enumerated site there, or one process"
                )
            losses, regularisers = zip(*(p.of(site) for p, site in zip(particles, sites, strict=True)), strict=True)
            count = len(particles) * _vectorised(first)
            for site, loss, regulariser in zip(
                sites, self._centred(0, losses, first), self._centred(1, regularisers, first), strict=True
            ):
                cost = risk.fall(loss / count, layout, apart=layout.is_local(site)) + regulariser / count
                part = (cost * site["score_parts"].score_function).sum()
                total = total + (part - part.detach())
            if self.baseline == "decaying_average" and update:
                self._remember(first["name"], losses, regularisers, world, layout.size)
        return total

    def _centred(self, which: int, terms: Sequence[Tensor], site: Site) -> Sequence[Tensor]:
        """The terms of every particle minus their baseline."""
        if self.baseline == "leave_one_out":
            dim = particle_dim(site)
            if dim is None:
                return _minus_others(torch.stack(list(terms)), 0).unbind(0)
            return [_minus_others(term, dim) for term in terms]
        if self.baseline == "decaying_average" and site["name"] in self.averages:
            average = self.averages[site["name"]][which]
            return [term - average.to(term) for term in terms]
        return terms

    def _remember(
        self, name: str, losses: Sequence[Tensor], regularisers: Sequence[Tensor], world: World, episodes: int
    ) -> None:
        now = torch.stack([torch.stack([t.mean() for t in terms]).mean() for terms in (losses, regularisers)])
        now = world.mean(now, episodes)
        self.averages[name] = DECAY * self.averages.get(name, now).to(now) + (1 - DECAY) * now


def _minus_others(terms: Tensor, dim: int) -> Tensor:
    """Every particle minus the mean of the others."""
    if terms.dim() < -dim or terms.shape[dim] == 1:
        return torch.zeros_like(terms)  # the same for all particles
    count = terms.shape[dim]
    return (terms - terms.mean(dim, keepdim=True)) * (count / (count - 1))


def _vectorised(site: Site) -> int:
    dim = particle_dim(site)
    return 1 if dim is None else site["fn"].batch_shape[dim]


def _sum_to(terms: Sequence[CostTerm], frames: Sequence[object]) -> Tensor:
    """The terms with all plates but ``frames`` summed out."""
    total = MultiFrameTensor()
    for term in terms:
        # Pyro's sum counts plates from the right: they all have to be there.
        depth = max((-f.dim for f in term.site["cond_indep_stack"] if f.vectorized), default=0)
        value = term.value
        missing = depth - value.dim()
        total.add(
            (term.site["cond_indep_stack"], value.reshape((1,) * missing + value.shape) if missing > 0 else value)
        )
    return torch.as_tensor(total.sum_to(frames))
