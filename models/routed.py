r"""RoutedModel: the generative story of one batch of episodes.

.. math::
    c_i \sim p(c), \qquad \theta_i = c_i B, \qquad
    y_{ij} \mid c_i \sim \mathrm{Cat}(\mathrm{head}(f_{\theta_i}; S_i, x_{ij}))

The support enters twice: its labels make the class prototypes of the head, its features feed the guide. Edit this file
or write your own: any model with an "episodes" plate around its routing sites works with the guides and the ELBO.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.ops.provenance import get_provenance, track_provenance
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_smat.composition import TaskNetwork, compose
from pyro_smat.episodes import EpisodeBatch
from pyro_smat.experts import ExpertBank
from pyro_smat.heads import Metric, prototype_logits
from pyro_smat.local_module import LocalModule
from pyro_smat.sources import SourceLibrary


class RoutedModel(LocalModule):
    """p(c) p(y | x, S, c) over a batch of episodes.

    Args:
        network: runs task parameters.
        library: the R frozen sources.
        prior: a prior over coefficients ``(R + M,)``, called inside the episode plate.
        experts: M masked experts, or None.
        metric: "cosine" or "euclidean" prototypes.
        scale: initial scale of the similarities; learned, kept positive by a softplus.
        compute_dtype: dtype of task parameters and features; bfloat16 on a GPU.

    In training mode the experts' gates are sampled; in evaluation mode they are as deployed (binary, within budget).
    """

    sources: Tensor

    def __init__(
        self,
        network: TaskNetwork,
        library: SourceLibrary,
        prior: LocalModule,
        experts: ExpertBank | None = None,
        *,
        metric: Metric = "cosine",
        scale: float = 10.0,
        compute_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.network = network
        self.source_names = library.names
        self.prior = prior
        self.experts = experts
        self.metric: Metric = metric
        self.compute_dtype = compute_dtype
        self.raw_scale = nn.Parameter(torch.tensor(float(scale)).expm1().log())
        # Not persistent: checkpoints and DDP never carry the source library.
        self.register_buffer("sources", library.basis.to(compute_dtype), persistent=False)

    @property
    def scale(self) -> Tensor:
        """The learned scale of the head, > 0."""
        return F.softplus(self.raw_scale)

    def basis(self) -> Tensor:
        """``(R + M, d)``: sources, then experts with sampled gates (training) or deployed masks (evaluation)."""
        if self.experts is None or not len(self.experts):
            return self.sources
        rows = self.experts.rows() if self.training else self.experts.projected_rows()
        return torch.cat([self.sources, rows.to(self.compute_dtype)])

    def logits(self, coefficients: Tensor, batch: EpisodeBatch, basis: Tensor | None = None) -> Tensor:
        """Class logits ``(*k, B, Q, W)``, float32 at least, for coefficients ``(*k, B, C)`` or ``(*k, B, L, C)``.

        One forward of ``prod(*k) x B`` task networks on support and queries together.
        """
        basis = self.basis() if basis is None else basis
        theta = compose(coefficients, basis, self.network.space)
        shots = batch.support_images.shape[1]
        images = torch.cat([batch.support_images, batch.query_images], dim=1)
        features = self.network(theta, images.expand(*theta.shape[:-1], *images.shape[1:]))
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        return prototype_logits(
            features[..., :shots, :],
            batch.support_labels,
            batch.support_mask,
            features[..., shots:, :],
            batch.class_mask,
            self.scale,
            self.metric,
        )

    def forward(self, batch: EpisodeBatch) -> Tensor:
        """Sample routings and score the queries; returns logits ``(*k, B, Q, W)``."""
        episodes, queries = batch.query_labels.shape
        with pyro.plate("episodes", episodes, dim=-2):
            coefficients = self.prior()  # (*k, B, 1, C), fewer where it is shared by the episodes or nothing is drawn
            shape = torch.broadcast_shapes(coefficients.shape, (episodes, 1, coefficients.shape[-1]))
            coefficients = coefficients.expand(shape).squeeze(-2)
            logits = self.logits(coefficients, batch)
            logits = track_provenance(logits, get_provenance(coefficients))  # for pyro.render_model: vmap drops it
            with pyro.plate("queries", queries, dim=-1), poutine.mask(mask=batch.query_mask):
                pyro.sample("labels", dist.Categorical(logits=logits), obs=batch.query_labels)
        return logits
