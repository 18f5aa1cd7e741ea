r"""Distillation: optional terms of the ELBO that teach a router what a costlier procedure knows.

*Routing*: :math:`\lambda_d\, \mathrm{KL}(q(\cdot \mid S) \,\|\, q_\mathrm{teach}(\cdot \mid S))` for a catalog; on the
simplex, where the teacher's vertices have no density, the cross-entropy of its mean weights,
:math:`-\lambda_d\, E_q \sum_k \bar w_k \log w_k`. *Prediction*: the cross-entropy of a teacher's class probabilities
(Bayes-routed SMAT, section 4). Both are :class:`~pyro_smat.inference.objective.particle.EpisodePenalty` objects; pass
them to ``CVaR_ELBO(penalties={"routing": ...})``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from pyro.poutine import Trace
from torch import Tensor

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.inference.objective.candidates import as_deployed, candidate_losses, support_candidate_losses
from pyro_smat.models.routed import RoutedModel
from pyro_smat.routing import CATALOG_SITE, EXPERT_SITE, SOURCE_SITE, Catalog
from pyro_smat.routing.distributions.ilr import log_weights

Teacher = Callable[[EpisodeBatch], Tensor]


class CandidateTeacher:
    r"""A teacher posterior over the J routings of a catalog, from trying all of them.

    .. math:: \log q_\mathrm{teach}(A_j \mid S) = -n\, \ell_j / T + \mathrm{const}

    with :math:`\ell_j` the mean loss of routing j on the n support shots (leave-one-out), or on the n queries: an
    oracle, for training episodes only.

    Args:
        model: the networks, run as deployed and without gradient.
        catalog: the candidates.
        temperature: T > 0; 1 reads the losses as log-likelihoods.
        on: "support" or "queries".
    """

    def __init__(
        self,
        model: RoutedModel,
        catalog: Catalog,
        temperature: float = 1.0,
        on: Literal["support", "queries"] = "support",
    ) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; expected > 0")
        if on not in ("support", "queries"):
            raise ValueError(f"on is {on!r}; expected 'support' or 'queries'")
        self.model, self.catalog, self.temperature, self.on = model, catalog, temperature, on

    def __call__(self, batch: EpisodeBatch) -> Tensor:
        """Log probabilities ``(B, J)``."""
        losses, mask = (
            (support_candidate_losses, batch.support.mask)
            if self.on == "support"
            else (candidate_losses, batch.query.mask)
        )
        count = mask.sum(-1, keepdim=True)
        mean = losses(self.model, batch, self.catalog.coefficients).mT  # (B, J)
        return (-count * mean / self.temperature).log_softmax(-1)

    def coefficients(self, batch: EpisodeBatch) -> Tensor:
        """The teacher's mean routing ``(B, [L,] C)``."""
        log_p = self(batch)
        return torch.tensordot(log_p.exp(), self.catalog.coefficients.to(log_p), 1)

    def predictions(self, batch: EpisodeBatch) -> Tensor:
        """Class probabilities ``(B, Q, W)`` of the ensemble of candidates, weighted by the teacher posterior."""
        weights = self(batch).exp()
        rows = self.catalog.coefficients.to(weights).unsqueeze(1)  # shared by the episodes
        with as_deployed(self.model):
            probabilities = self.model.logits(rows, batch).softmax(-1)  # (J, B, Q, W)
        return torch.einsum("bj,jbqw->bqw", weights, probabilities)


class RoutingDistillation:
    """KL to a teacher posterior (catalog), or cross-entropy of its mean weights (simplex).

    Args:
        teacher: over the rows of the guide's catalog; for a guide on the simplex over any catalog of candidates.
        weight: lambda_d >= 0.
    """

    def __init__(self, teacher: CandidateTeacher, weight: float = 1.0) -> None:
        self.teacher, self.weight = teacher, _checked(weight)

    def __call__(self, model_trace: Trace, guide_trace: Trace, batch: EpisodeBatch) -> tuple[dict[str, Any], Tensor]:
        """The guide's site and the term of every episode."""
        nodes = guide_trace.nodes
        if CATALOG_SITE in nodes:
            site = nodes[CATALOG_SITE]
            student = getattr(site["fn"], "categorical", site["fn"]).logits.log_softmax(-1)  # (*k, B, 1, J)
            taught = self.teacher(batch).unsqueeze(-2)
            if taught.shape[-1] != student.shape[-1]:
                raise ValueError(
                    f"the teacher is over {taught.shape[-1]} routings and the guide over {student.shape[-1]}; expected "
                    "the guide's catalog"
                )
            gap = torch.where(student.isneginf(), 0.0, student - taught)  # 0 log 0 is 0
            return site, (student.exp() * gap).sum(-1)
        sites = [nodes[name] for name in (SOURCE_SITE, EXPERT_SITE) if name in nodes]
        if not sites:
            raise ValueError(
                f"the guide has sites {sorted(guide_trace.stochastic_nodes)}; expected {CATALOG_SITE!r}, "
                f"{SOURCE_SITE!r} or {EXPERT_SITE!r} to distil a routing into"
            )
        taught = self.teacher.coefficients(batch)
        sources = nodes[SOURCE_SITE]["value"].shape[-1] + 1 if SOURCE_SITE in nodes else 1
        parts = {SOURCE_SITE: taught[..., :sources], EXPERT_SITE: taught[..., sources:]}
        terms = []
        for site in sites:
            student = log_weights(site["value"])  # (*k, B, 1, [L,] n)
            term = -(parts[site["name"]].unsqueeze(1) * student).sum(-1)
            terms.append(term.mean(-1) if taught.ndim == 3 else term)
        return sites[0], torch.stack(terms).sum(0)


class PredictionDistillation:
    r"""Cross-entropy :math:`-\frac1n \sum_j \sum_k p^\mathrm{teach}_{jk} \log p_{jk}` of the queries of every episode.

    Args:
        teacher: from a batch to class probabilities ``(B, Q, W)``, e.g. :meth:`CandidateTeacher.predictions`.
        weight: >= 0.
        site: the observed site, Categorical with logits ``(*k, B, Q, W)``.
    """

    def __init__(self, teacher: Teacher, weight: float = 1.0, site: str = "labels") -> None:
        self.teacher, self.weight, self.site = teacher, _checked(weight), site

    def __call__(self, model_trace: Trace, guide_trace: Trace, batch: EpisodeBatch) -> tuple[dict[str, Any], Tensor]:
        """The observed site and the term of every query."""
        site = model_trace.nodes[self.site]
        with torch.no_grad():
            taught = self.teacher(batch)
        terms = -(taught * site["fn"].logits.log_softmax(-1)).sum(-1)
        count = batch.query.mask.sum(-1, keepdim=True).clamp(min=1)
        return site, torch.where(batch.query.mask, terms, 0.0) / count


def _checked(weight: float) -> float:
    if not weight >= 0:
        raise ValueError(f"weight is {weight}; expected >= 0")
    return weight
