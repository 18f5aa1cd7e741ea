r"""RoutedModel: the generative story of one batch of episodes.

.. math::
    c_i \sim p(c), \qquad \theta_i = c_i B, \qquad
    y_{ij} \mid c_i \sim \mathrm{Cat}(\mathrm{head}(f_{\theta_i}; S_i, x_{ij}))

The support enters twice: its labels make the class prototypes of the head, its features feed the guide. Labels that
may be wrong are latent too; their posterior given c is found by mean-field updates inside the head. Edit this file
or write your own: any model with an "episodes" plate around its routing sites works with the guides and the ELBO.
"""

from __future__ import annotations

from typing import Literal

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.ops.provenance import get_provenance, track_provenance
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.models.priors import RoutingPrior
from pyro_smat.networks.basis import AnyBasis, Basis, parts_of
from pyro_smat.networks.composition import TaskNetwork, compose
from pyro_smat.networks.experts import ExpertBank
from pyro_smat.networks.heads import Metric
from pyro_smat.networks.support_head import Classifier, HeadSettings, SupportHead, fit_head
from pyro_smat.registry import Remembered, register
from pyro_smat.routing import straight_through
from pyro_smat.routing.local_module import LocalModule
from pyro_smat.sources import SourceLibrary


@register("model", "routed")
class RoutedModel(Remembered, LocalModule):
    """p(c) p(y | x, S, c) over a batch of episodes.

    Args:
        network: runs task parameters.
        library: the R frozen sources.
        prior: a prior over coefficients, called inside the episode plate; with as many blocks as the network's space.
        experts: M masked experts, or None.
        metric: "cosine", "euclidean" or "bhattacharyya" prototypes.
        scale: initial scale of the similarities; learned, kept positive by a softplus.
        compute_dtype: dtype of task parameters and features; bfloat16 on a GPU.
        gates: vectorised particles share one "shared" sample of the experts' gates (less variance), or have
            "separate" ones; of an enumerated site, its routings have.
        straight_through: compose with one-hot weights but with the gradient of the soft ones.
        label_noise: share of wrong labels that a support is expected to have, in [0, 1). Above 0 shots are weighted in
            the head by how probably their labels are right (:mod:`pyro_smat.networks.shot_trust`).
        classifier: "prototypes", or "mixture" of prototypes and ridge regression, weighed by how well each predicts
            the shots of the support from one another (:mod:`pyro_smat.networks.support_head`).
        transduction: what an unlabelled query weighs beside a shot, in [0, 1]. Above 0 the queries that are asked
            together help to classify each other, and predictions depend on which these are. What evaluations, doubt and
            certificates say then holds for as many queries at once as their episodes had.

    In training mode the experts' gates are sampled; in evaluation mode they are as deployed (binary, within budget).

    Example:
        >>> from pyro_smat import EpisodeSampler, glyph_pool
        >>> from pyro_smat.inference.assembly.config import RunConfig
        >>> from pyro_smat.inference.assembly.router import build_router
        >>> router = build_router(RunConfig(experts={"count": 0}))  # over the glyph sources of the package, not trained
        >>> sampler = EpisodeSampler(glyph_pool("validation"), 3, 2, 1)
        >>> batch = router.features().attach(sampler.sample(2))
        >>> router.model(batch).shape  # samples routings; logits of 2 episodes, 3 queries, 3 classes
        torch.Size([2, 3, 3])
    """

    source_basis: Tensor

    def __init__(
        self,
        network: TaskNetwork,
        library: SourceLibrary,
        *,
        prior: RoutingPrior,
        experts: ExpertBank | None = None,
        metric: Metric = "cosine",
        scale: float = 10.0,
        compute_dtype: torch.dtype = torch.float32,
        gates: Literal["shared", "separate"] = "shared",
        straight_through: bool = False,
        label_noise: float = 0.0,
        classifier: Classifier = "prototypes",
        transduction: float = 0.0,
    ) -> None:
        super().__init__()
        blocks = len(library.space.block_names)
        if prior.num_blocks != blocks:
            raise ValueError(
                f"the prior routes {prior.num_blocks} blocks and the network's space has {blocks}: "
                f"{library.space.block_names}; expected the same: give prior and guide num_blocks={blocks}"
            )
        rows = len(library) + (len(experts) if experts is not None else 0)
        if prior.size != rows:
            raise ValueError(
                f"the prior is over {prior.size} coefficients; expected {rows}: {len(library)} sources "
                f"{library.names} and {rows - len(library)} experts"
            )
        if gates not in ("shared", "separate"):
            raise ValueError(f"gates is {gates!r}; expected 'shared' or 'separate'")
        self.head_settings = HeadSettings(classifier, metric, label_noise, transduction)
        self.network = network
        self.source_names = library.names
        self.prior = prior
        self.experts = experts
        self.metric: Metric = metric
        self.compute_dtype = compute_dtype
        self.gates, self.straight_through = gates, straight_through
        self.raw_scale = nn.Parameter(torch.tensor(float(scale)).expm1().log())
        if classifier == "mixture":
            self.raw_ridge_scale = nn.Parameter(self.raw_scale.detach().clone())
        # Not persistent: checkpoints and DDP never carry the source library.
        self.register_buffer("source_basis", library.basis.to(compute_dtype), persistent=False)

    @property
    def scale(self) -> Tensor:
        """The learned scale of the head, > 0."""
        return F.softplus(self.raw_scale)

    def basis(self, samples: int | None = None, generator: torch.Generator | None = None) -> Basis:
        """``(R + M, d)``: sources, then experts with sampled gates (training) or deployed masks (evaluation).

        The sources are the model's own buffer, not a copy.

        Args:
            samples: ``(samples, R + M, d)`` with so many independent samples of the gates, also in evaluation.
            generator: of these.
        """
        sources = self.source_basis if samples is None else self.source_basis.expand(samples, -1, -1)
        if self.experts is None or not len(self.experts):
            return Basis(sources)
        sampled = samples is not None or self.training
        rows = self.experts.rows(samples, generator) if sampled else self.experts.projected_rows()
        return Basis(sources, rows.to(self.compute_dtype))

    def logits(self, coefficients: Tensor, batch: EpisodeBatch, basis: AnyBasis | None = None) -> Tensor:
        """Class logits ``(*k, B, Q, W)``, float32 at least.

        One forward of ``prod(*k) x B`` task networks on support and queries together; routings that all episodes share
        are run once, on the images of all episodes, and what the batch knows of its images is looked up.

        Args:
            coefficients: ``(*k, B, C)``, or ``(*k, B, L, C)`` in a space of L blocks; 1 instead of B where episodes
                share them.
            batch: the episodes.
            basis: ``(C, d)``, in parts or as one matrix, default :meth:`basis`; or ``(K, C, d)``, one for each entry
                of the first dim of coefficients ``(K, *k, B, C)``.
        """
        basis = self.basis() if basis is None else basis
        support, queries = self._known(coefficients, basis, batch) or self._run(coefficients, basis, batch)
        return self.fit_head(support, batch).logits(queries, batch.query.mask)

    def fit_head(self, support: Tensor, batch: EpisodeBatch) -> SupportHead:
        """The head of every task network, from the features of the support ``(*k, B, S, f)``; the part to override."""
        known = batch.support.labels, batch.support.mask, batch.class_mask
        ridge_scale = F.softplus(self.raw_ridge_scale) if self.head_settings.classifier == "mixture" else 0.0
        return fit_head(support, *known, self.head_settings, self.scale, ridge_scale)

    def _known(self, coefficients: Tensor, basis: AnyBasis, batch: EpisodeBatch) -> tuple[Tensor, Tensor] | None:
        """Features ``(*k, B, S, f)`` and ``(*k, B, Q, f)`` where they are known without running a network."""
        rows, *experts = parts_of(basis)
        if batch.known is None or experts:
            return None
        found = [batch.known.of_routings(coefficients, rows, part) for part in (batch.support, batch.query)]
        if found[0] is None or found[1] is None:
            return None
        return _wide(found[0]), _wide(found[1])

    def _run(self, coefficients: Tensor, basis: AnyBasis, batch: EpisodeBatch) -> tuple[Tensor, Tensor]:
        """The same from the networks; 1 instead of B where episodes share them."""
        theta = self._compose(coefficients, basis)
        shots = batch.support.images.shape[1]
        images = torch.cat([batch.support.images, batch.query.images], dim=1)
        if theta.shape[-2] == 1 and len(batch) > 1:
            features = self.network.shared(theta.squeeze(-2), images.flatten(0, 1))
            features = features.unflatten(-2, images.shape[:2])
        else:
            features = self.network(theta, images.expand(*theta.shape[:-1], *images.shape[1:]))
        features = _wide(features)
        return features[..., :shots, :], features[..., shots:, :]

    def forward(self, batch: EpisodeBatch) -> Tensor:
        """Sample routings and score the queries; returns logits ``(*k, B, Q, W)``."""
        episodes, queries = batch.query.labels.shape
        self.prior.hyperprior()  # outside the plates: all episodes share it
        with pyro.plate("episodes", episodes, dim=-2):
            coefficients = self.prior()  # (*k, B, 1, [L,] C), 1 for B where the episodes share it
            event = 1 if self.prior.num_blocks == 1 else 2
            coefficients = coefficients.expand(torch.broadcast_shapes(coefficients.shape, (1,) * (2 + event)))
            if self.straight_through:
                coefficients = straight_through(coefficients, len(self.source_names))
            coefficients = pyro.deterministic("coefficients", coefficients, event_dim=event).squeeze(-1 - event)
            logits = self.logits(coefficients, batch, self._separate_basis(coefficients))
            logits = track_provenance(logits, get_provenance(coefficients))  # for pyro.render_model: vmap drops it
            with pyro.plate("queries", queries, dim=-1), poutine.mask(mask=batch.query.mask):
                pyro.sample("labels", self.likelihood(logits, batch), obs=batch.query.labels)
        return logits

    def likelihood(self, logits: Tensor, batch: EpisodeBatch) -> dist.TorchDistribution:
        """p(y | x, S, c) of every query, batch shape ``(*k, B, Q)``, from class logits; the part to override."""
        return dist.Categorical(logits=logits)

    def _separate_basis(self, coefficients: Tensor) -> Basis | None:
        """A basis for every vectorised particle, where that is wanted."""
        episode_dims = 2 if self.prior.num_blocks == 1 else 3
        particles = coefficients.shape[0] if coefficients.ndim > episode_dims else 1
        if self.gates == "shared" or not self.training or particles == 1:
            return None
        return self.basis(particles)

    def _compose(self, coefficients: Tensor, basis: AnyBasis) -> Tensor:
        """Task parameters ``(*k, B, d)``."""
        if basis.ndim == 2:
            return compose(coefficients, basis, self.network.space)
        pairs = zip(coefficients, basis, strict=True)
        return torch.stack([compose(own, rows, self.network.space) for own, rows in pairs])


def _wide(features: Tensor) -> Tensor:
    """In float32 at least."""
    return features.to(torch.promote_types(features.dtype, torch.float32))
