r"""ILRMixture: a finite mixture of contrast distributions, p(u) = sum_j pi_j p_j(u)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Independent, constraints, kl_divergence, register_kl

from pyro_smat.routing.coordinates import ilr_basis
from pyro_smat.routing.distributions.ilr import ILRDistribution, standard_exponential


class ILRMixture(ILRDistribution):
    r"""A mixture whose component index is summed out of the density.

    Args:
        log_weights: ``(*b, J)``, ln pi up to a constant; -inf switches a component off.
        components: J contrast distributions of one event shape, blockwise ones (``.to_event(1)``) too; their batch
            shapes broadcast with each other and with ``*b``.
        bound: take KL(q || mixture) to be its upper bound :math:`-\ln \sum_j \pi_j e^{-KL(q \| p_j)}` (Hershey and
            Olsen 2007). Without it the KL has no closed form and is left to Monte Carlo, which is unbiased.

    Raises:
        ValueError: for no component, event shapes that differ, or another number of weights than of components.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {"log_weights": constraints.real_vector}
    has_rsample = False

    def __init__(self, log_weights: Tensor, components: Sequence[TorchDistribution], bound: bool = False) -> None:
        events = {tuple(component.event_shape) for component in components}
        if len(events) != 1:
            raise ValueError(f"components have event shapes {sorted(events)}; expected at least one, all of one shape")
        if log_weights.ndim < 1 or log_weights.shape[-1] != len(components):
            raise ValueError(
                f"log_weights have shape {tuple(log_weights.shape)}; expected (*b, {len(components)}), one a component"
            )
        batch_shape = torch.broadcast_shapes(log_weights.shape[:-1], *(c.batch_shape for c in components))
        self.log_weights = log_weights.log_softmax(-1).expand(*batch_shape, -1)
        self.components = tuple(component.expand(batch_shape) for component in components)
        self.bound = bound
        super().__init__(batch_shape, components[0].event_shape, validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> ILRMixture:
        return self._expanded(
            batch_shape,
            log_weights=self.log_weights.expand(*batch_shape, -1),
            components=tuple(component.expand(batch_shape) for component in self.components),
            bound=self.bound,
        )

    def _draw(self, shape: torch.Size, generator: torch.Generator | None) -> Tensor:
        sample_shape = shape[: len(shape) - len(self.batch_shape)]
        every = torch.stack([_ilr(c).sample(sample_shape, generator) for c in self.components])
        race = standard_exponential((*shape, len(self.components)), self.log_weights, generator)
        index = (self.log_weights - race.log()).argmax(-1)
        return self._pick(every, index)

    def log_prob(self, ilr: Tensor) -> Tensor:
        """Log density of ILR coordinates ``(*s, *b, *event)``, ``(*s, *b)``."""
        each = torch.stack([component.log_prob(ilr) for component in self.components], dim=-1)
        return (self.log_weights + each).logsumexp(-1)

    def mean_weights(self) -> Tensor:
        each = torch.stack([_ilr(component).mean_weights() for component in self.components])
        shares = self.log_weights.exp().movedim(-1, 0)
        return (shares.view(*shares.shape, *(1,) * len(self.event_shape)) * each).sum(0)

    def mode_weights(self) -> Tensor:
        """The best of the components' modes: where they overlap the mode of the mixture lies near it, not on it."""
        modes = torch.stack([_ilr(component).mode_weights() for component in self.components])
        ilr = modes.clamp(min=torch.finfo(modes.dtype).tiny).log() @ ilr_basis(self.size, modes)
        return self._pick(modes, self.log_prob(ilr).argmax(0))

    def _pick(self, every: Tensor, index: Tensor) -> Tensor:
        """Entry ``index`` ``(*s, *b)`` of dim 0 of ``(J, *s, *b, *event)``."""
        index = index.view(1, *index.shape, *(1,) * len(self.event_shape)).expand(1, *every.shape[1:])
        return every.gather(0, index).squeeze(0)


def _ilr(component: TorchDistribution) -> ILRDistribution:
    """The distribution of one block under ``.to_event``."""
    return _ilr(component.base_dist) if isinstance(component, Independent) else component


@register_kl(ILRDistribution, ILRMixture)
@register_kl(Independent, ILRMixture)
def _kl_mixture(q: TorchDistribution, p: ILRMixture) -> Tensor:
    if not p.bound:
        raise NotImplementedError("KL to a mixture has no closed form; a ILRMixture with bound=True bounds it")
    each = torch.stack([kl_divergence(q, component) for component in p.components], dim=-1)
    return -(p.log_weights - each).logsumexp(-1)
