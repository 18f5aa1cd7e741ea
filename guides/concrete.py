r"""Concrete (Gumbel-softmax) routing: nearly discrete weights with a gradient.

.. math:: w = \mathrm{softmax}((\ell(S) + G) / T(S)), \quad G_k \sim \mathrm{Gumbel}      (Bayes-routed SMAT, eq. 8)

Sampled as ILR coordinates, i.e. in log space, so that neither sampling nor training underflows at low temperatures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from pyro_smat.encoders import SupportEncoder
from pyro_smat.episodes import EpisodeBatch
from pyro_smat.guides.router import RouterNetwork, RoutingGuide
from pyro_smat.guides.simplex import SimplexPosterior, information, site_slices
from pyro_smat.models.priors import DirichletPrior, RoutingPrior
from pyro_smat.registry import register
from pyro_smat.routing import straight_through
from pyro_smat.routing.distributions import ILRConcrete

LOWEST_TEMPERATURE = 0.05


class ConcretePosterior(SimplexPosterior):
    """Concrete weights of the sources and of the experts.

    Args:
        logits: ``(B, R + M)``, ``(B, L, R + M)`` with blocks.
        temperature: ``(B, P)``, T of the sources' part and (P = 2) of the experts'; ``(B, 1)`` for both.
        num_sources: R.
        hard: draws are one-hot (straight-through), as a model with ``straight_through=True`` composes them, and so are
            mean and mode: the largest weight is entry k with probability softmax(logits)_k.
    """

    def __init__(self, logits: Tensor, temperature: Tensor, *, num_sources: int, hard: bool = False) -> None:
        self.logits, self.temperature, self.hard = logits, temperature, hard
        num_blocks = logits.shape[1] if logits.ndim == 3 else 1
        parts = {}
        for index, (name, part) in enumerate(site_slices(num_sources, logits.shape[-1] - num_sources).items()):
            values = logits[..., part].unsqueeze(1)
            own = temperature[:, min(index, temperature.shape[1] - 1)]
            parts[name] = ILRConcrete(values, own.reshape(-1, *(1,) * (values.ndim - 2)))
        super().__init__(parts, num_sources, logits.shape[-1] - num_sources, logits, num_blocks)

    def __getitem__(self, episodes: slice | Sequence[int]) -> Self:
        chosen = self.logits[episodes], self.temperature[episodes]
        return type(self)(*chosen, num_sources=self.num_sources, hard=self.hard)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        weights = super().sample(count, generator)
        return straight_through(weights, self.num_sources) if self.hard else weights

    @property
    def mean(self) -> Tensor:
        if not self.hard:
            return super().mean
        parts = self.logits.split([self.num_sources, self.num_experts], dim=-1)
        return torch.cat([part.softmax(-1) for part in parts], dim=-1)

    @property
    def mode(self) -> Tensor:
        weights = super().mode
        return straight_through(weights, self.num_sources) if self.hard else weights

    def mutual_information(self, draws: int = 32, generator: torch.Generator | None = None) -> float:
        if not self.hard:
            return super().mutual_information(draws, generator)
        # One-hot draws are categorical, in every part and block: the argmax does not feel the temperature.
        parts = [p for p in self.logits.split([self.num_sources, self.num_experts], dim=-1) if p.numel()]
        log_p = torch.cat([part.log_softmax(-1) for part in parts], dim=-1)
        drawn = self.sample(draws, generator).unsqueeze(2)  # of episode i, (K, B, 1, [L,] C)
        return information((drawn * log_p).flatten(3).sum(-1))


@register("guide", "concrete")
class ConcreteGuide(RoutingGuide):
    r"""q(w, alpha | S) Concrete, with a temperature that cools in training and may depend on the support.

    .. math:: T(S) = \max(T_{\min},\; T_\mathrm{now} \cdot e^{\tanh h(S)})

    T_now goes geometrically from ``temperature`` to ``final_temperature`` as the trainer calls :meth:`anneal`.

    Args:
        num_sources: R.
        num_experts: M.
        num_blocks: L.
        prior: where the posterior stands before any evidence.
        encoder: of the support; default :class:`~pyro_smat.encoders.EvidenceEncoder`.
        temperature, final_temperature: T_now at the start and at the end, >= 0.05.
        per_episode: whether T depends on the support.
        straight_through: draws are one-hot, with the gradient of the soft weights; give the model
            ``straight_through=True`` too.

    Example:
        >>> from pyro_smat import EpisodeSampler, glyph_pool
        >>> batch = EpisodeSampler(glyph_pool("validation"), 3, 2, 1).sample(4)
        >>> batch = batch.with_features(torch.rand(4, 5, 6, 8))  # (B, R, S, f); SourceFeatures gives real ones
        >>> guide = ConcreteGuide(5, temperature=0.5)
        >>> guide.posterior(batch).sample(10).shape
        torch.Size([10, 4, 5])
    """

    prior_family = DirichletPrior

    temperature: Tensor

    def __init__(
        self,
        num_sources: int,
        num_experts: int = 0,
        *,
        num_blocks: int = 1,
        prior: RoutingPrior | None = None,
        encoder: SupportEncoder | None = None,
        temperature: float = 1.0,
        final_temperature: float = 0.3,
        per_episode: bool = True,
        straight_through: bool = False,
    ) -> None:
        super().__init__(prior)
        if min(temperature, final_temperature) < LOWEST_TEMPERATURE:
            raise ValueError(
                f"temperature is {temperature} and final_temperature {final_temperature}; expected at least "
                f"{LOWEST_TEMPERATURE}: below, float32 has no gradient left"
            )
        self.router = RouterNetwork(num_sources, num_experts, num_blocks=num_blocks, encoder=encoder)
        self.straight_through = straight_through
        self.range = (temperature, final_temperature)
        self.register_buffer("temperature", torch.tensor(float(temperature)))
        self.relative = nn.Linear(2 * self.router.encoder.hidden, 2) if per_episode else None
        if self.relative is not None:
            nn.init.zeros_(self.relative.weight)
            nn.init.zeros_(self.relative.bias)

    def anneal(self, progress: float) -> None:
        start, end = self.range
        self.temperature.fill_(start * math.exp(min(1.0, progress) * math.log(end / start)))

    def posterior(self, batch: EpisodeBatch) -> ConcretePosterior:
        logits = self.router(batch)
        temperature = self.temperature.to(logits.location).expand(len(batch), 2)
        if self.relative is not None:
            temperature = temperature * self.relative(logits.summary).tanh().exp()
        location = logits.location + self.prior_logits(logits.location)
        return ConcretePosterior(
            location,
            temperature.clamp(min=LOWEST_TEMPERATURE),
            num_sources=self.router.num_sources,
            hard=self.straight_through,
        )
