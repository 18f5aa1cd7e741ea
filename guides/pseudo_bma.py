r"""Routing without training: Bayesian model averaging of the sources by a leave-one-out pseudo-likelihood.

.. math::
    q(r \mid S) \propto p(r)\, e^{-\ell_r(S) / T}, \qquad
    \ell_r(S) = -\frac1n \sum_i \log p_r(y_i \mid x_i, S_{-i})

or by stacking of the predictive distributions (Yao et al. 2018, eq. 5), the weights of the best mixture of
leave-one-out predictions:

.. math::
    \max_w \frac1n \sum_i \log \sum_r w_r \, p_r(y_i \mid x_i, S_{-i})
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.guides.catalog import CatalogPosterior
from pyro_smat.guides.router import RoutingGuide
from pyro_smat.models.priors import CatalogPrior, RoutingPrior
from pyro_smat.networks.heads import Metric
from pyro_smat.networks.shot_trust import shot_trust
from pyro_smat.registry import register
from pyro_smat.routing import Catalog

Weights = Literal["pseudo_bma", "stacking"]
STACKING_STEPS = 100  # of expectation maximisation, which never lowers the objective
LEAST_STACKED = 1e-6  # weight of a source


@register("guide", "pseudo_bma")
class PseudoBMAGuide(RoutingGuide):
    r"""q(r | S) over single sources, from how well each predicts every shot of the support from the others.

    Nothing is trained. With one shot a class no shot can be left out: its class is then compared at the centre of the
    whole support, and weights say which source tells the shots apart.

    Args:
        catalog: the routings, each one source by itself.
        num_sources: R.
        prior: p(r); None for equal.
        temperature: T > 0, in nats per shot; towards 0 the posterior becomes the best source by support loss, above a
            few nats it becomes the prior.
        weights: "pseudo_bma" or "stacking"; stacking ignores the temperature, and the prior unless it excludes.
        label_noise: share of wrong labels that a support is expected to have, as the model's option of this name: a
            label that no source explains then costs each of them about as much.
        metric: of the prototype head.

    Attributes:
        temperature_scale: by which the posterior's logits are divided, of either kind of weights; 1 until it is fitted
            on held-out episodes (:func:`pyro_smat.inference.training.temperature_scaling.calibrate_guide`).

    Example:
        >>> from pyro_smat import EpisodeSampler, glyph_pool
        >>> batch = EpisodeSampler(glyph_pool("validation"), 3, 2, 1).sample(4)
        >>> batch = batch.with_features(torch.rand(4, 5, 6, 8))  # (B, R, S, f); SourceFeatures gives real ones
        >>> guide = PseudoBMAGuide(Catalog.k_hot("abcde"), 5)
        >>> guide.posterior(batch).routing_probabilities().shape
        torch.Size([4, 5])
    """

    prior_family = CatalogPrior

    source: Tensor
    temperature_scale: Tensor

    def __init__(
        self,
        catalog: Catalog,
        num_sources: int,
        *,
        prior: RoutingPrior | None = None,
        temperature: float = 0.3,
        weights: Weights = "pseudo_bma",
        label_noise: float = 0.0,
        metric: Metric = "cosine",
    ) -> None:
        super().__init__(prior)
        coefficients = catalog.coefficients if catalog.coefficients.ndim == 2 else catalog.coefficients.mean(1)
        weight, member = coefficients[:, :num_sources].max(-1)
        if not ((weight == 1) & (coefficients[:, num_sources:] == 0).all(-1)).all():
            mixed = [n for n, w in zip(catalog.names, weight, strict=True) if w < 1] or list(catalog.names)
            raise ValueError(
                f"the catalog mixes weights ({', '.join(mixed[:4])}); expected single sources without experts, whose "
                "predictions are averaged: catalog = 'k_hot' with max_sources = 1, and experts.count = 0"
            )
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; expected a number of nats > 0")
        if weights not in ("pseudo_bma", "stacking"):
            raise ValueError(f"weights is {weights!r}; expected 'pseudo_bma' or 'stacking'")
        if not 0 <= label_noise < 1:
            raise ValueError(f"label_noise is {label_noise}; expected a share of labels in [0, 1)")
        self.catalog, self.num_sources, self.temperature = catalog, num_sources, temperature
        self.weights, self.label_noise, self.metric = weights, label_noise, metric
        self.register_buffer("source", member, persistent=False)
        self.register_buffer("temperature_scale", torch.ones(()))

    @property
    def infer(self) -> Mapping[str, str]:
        """Enumerated: what is trained beside it, the scale of the head for instance, has exact gradients."""
        return {"enumerate": "parallel"}

    def posterior(self, batch: EpisodeBatch) -> CatalogPosterior:
        support = batch.support
        if support.features is None:
            raise ValueError("the support has no features; call SourceFeatures(...).attach(batch) first")
        features = support.features.to(torch.promote_types(support.features.dtype, torch.float32))
        evidence = shot_trust(
            features[:, self.source],
            support.labels.unsqueeze(1),
            support.mask.unsqueeze(1),
            batch.class_mask.unsqueeze(1),
            self.label_noise,
            metric=self.metric,
        ).evidence  # (B, J, S) log likelihoods
        if self.weights == "stacking":
            logits = stacked_weights(evidence, support.mask).clamp(min=LEAST_STACKED).log()
        else:
            shots = support.mask.sum(-1, keepdim=True).clamp(min=1)
            logits = (evidence * support.mask.unsqueeze(1)).sum(-1) / shots / self.temperature
        prior = self.prior_logits(logits)
        if self.weights == "stacking" and isinstance(prior, Tensor):
            prior = torch.where(prior == -math.inf, prior, 0.0)
        return CatalogPosterior((logits + prior) / self.temperature_scale, self.catalog, num_sources=self.num_sources)


def stacked_weights(log_likelihoods: Tensor, mask: Tensor) -> Tensor:
    """The weights ``(B, J)`` whose mixture predicts held-out shots best, by expectation maximisation from equal ones.

    Args:
        log_likelihoods: ``(B, J, S)`` of every shot under every member.
        mask: ``(B, S)`` bool.

    Example:
        >>> log_likelihoods = torch.tensor([[[0.9, 0.1], [0.1, 0.9], [0.4, 0.4]]]).log()
        >>> stacked_weights(log_likelihoods, torch.ones(1, 2).bool()).round(decimals=3)
        tensor([[0.5000, 0.5000, 0.0000]])
    """
    likelihoods = (log_likelihoods - log_likelihoods.amax(1, keepdim=True)).exp() * mask.unsqueeze(1)
    weights = torch.full_like(likelihoods[..., :1], 1 / likelihoods.shape[1])  # (B, J, 1)
    count = mask.sum(-1).clamp(min=1).view(-1, 1, 1)
    for _ in range(STACKING_STEPS):
        shares = likelihoods * weights
        weights = (shares / shares.sum(1, keepdim=True).clamp(min=1e-30)).sum(-1, keepdim=True) / count
    return weights.squeeze(-1)
