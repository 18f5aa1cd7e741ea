r"""SupportObjective: the support loss of one episode as a function of the source weights, for the simplex solvers.

.. math:: f(w) = \ell_{LOO}\bigl(S;\; \sum_r w_r \theta^{(r)} + \sum_m \alpha_m (z_m \odot \theta_\delta)\bigr)

alpha is held fixed. The gradient needs one backward pass through the composed network, in theta alone:
:math:`\partial f / \partial w_r = \langle \nabla_\theta \ell, \theta^{(r)} \rangle`, inner products with the basis.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.inference.objective.candidates import support_candidate_losses
from pyro_smat.metrics.arrays import FloatArray
from pyro_smat.models.routed import RoutedModel
from pyro_smat.networks.basis import Basis
from pyro_smat.networks.composition import compose
from pyro_smat.networks.heads import leave_one_out_loss


class SupportObjective:
    """Leave-one-out prototype loss of the support in nats per shot, at the model's scale and metric.

    A :class:`pyro_smat.solvers.SimplexObjective` that is not convex: a solver's gap is about stationarity.

    Args:
        model: gives the network, the scale and the metric; nothing of it gets a gradient.
        basis: ``(R + M, d)``.
        batch: one episode.
        coefficients: ``([L,] R + M)``; the experts' are held fixed, the sources' are the default start.

    Attributes:
        shape: of the weights, ``(R,)`` or ``(L, R)``.
        start: the source weights of ``coefficients``, float64.

    Raises:
        ValueError: for more than one episode, or coefficients of another shape.
    """

    convex: bool = False

    def __init__(self, model: RoutedModel, basis: Basis, batch: EpisodeBatch, coefficients: Tensor) -> None:
        sources, blocks = len(model.source_names), len(model.network.space.block_names)
        expected = (len(basis),) if blocks == 1 else (blocks, len(basis))
        if len(batch) != 1:
            raise ValueError(f"the batch has {len(batch)} episodes; expected one: refine episode by episode")
        if tuple(coefficients.shape) != expected:
            raise ValueError(f"coefficients have shape {tuple(coefficients.shape)}; expected {expected}")
        self.model, self._batch = model, batch
        self.basis = basis.detach()
        self._experts = coefficients[..., sources:].detach()
        with torch.inference_mode(False):  # images that are kept for a backward pass
            shots = batch.support.mask[0]
            self._images = batch.support.images[0][shots]
            self._labels = batch.support.labels[0][shots]
            self._classes = batch.class_mask[0]
        self.start: FloatArray = coefficients[..., :sources].detach().cpu().double().numpy()
        self.start /= self.start.sum(-1, keepdims=True)
        self.shape: tuple[int, ...] = self.start.shape
        self._last: tuple[bytes, float] | None = None

    @property
    def shots(self) -> int:
        """n, the size of the support."""
        return len(self._labels)

    def coefficients(self, weights: FloatArray) -> Tensor:
        """``([L,] R + M)``: these source weights, and the experts' coefficients."""
        w = torch.as_tensor(weights, dtype=self._experts.dtype, device=self._experts.device)
        return torch.cat([w, self._experts], dim=-1)

    def loss(self, theta: Tensor) -> Tensor:
        """Support loss of networks theta ``(*k, d)``, ``(*k)`` in nats per shot; differentiable in theta."""
        features = self.model.network.shared(theta, self._images)
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        everyone = torch.ones_like(self._labels, dtype=torch.bool)
        scale = self.model.scale.detach()
        return leave_one_out_loss(features, self._labels, everyone, self._classes, scale, self.model.metric)

    @torch.no_grad()
    def value(self, weights: FloatArray) -> float:
        """f at weights ``([L,] R)``."""
        if self._last is not None and self._last[0] == weights.tobytes():
            return self._last[1]
        return float(self.loss(self._theta(weights)))

    def values(self, weights: Tensor) -> Tensor:
        """f at many weights ``(K, [L,] R)``, ``(K,)``; as many networks at a time as memory allows."""
        experts = self._experts.expand(len(weights), *self._experts.shape)
        coefficients = torch.cat([weights.to(experts), experts], dim=-1)
        return support_candidate_losses(self.model, self._batch, coefficients, basis=self.basis)[:, 0]

    def gradient(self, weights: FloatArray) -> FloatArray:
        """Gradient of f at weights ``([L,] R)``, of the same shape."""
        with torch.inference_mode(False), torch.enable_grad():
            theta = self._theta(weights).requires_grad_()
            loss = self.loss(theta)
            (slope,) = torch.autograd.grad(loss, theta)
        self._last = weights.tobytes(), float(loss.detach())
        sources = self.basis.sources
        if len(self.shape) == 1:
            gradient = sources @ slope
        else:
            sizes = self.model.network.space.block_sizes
            pairs = zip(sources.split(sizes, dim=-1), slope.split(sizes), strict=True)
            gradient = torch.stack([columns @ part for columns, part in pairs])
        return gradient.cpu().double().numpy()

    @torch.no_grad()
    def _theta(self, weights: FloatArray) -> Tensor:
        return compose(self.coefficients(weights), self.basis, self.model.network.space)
