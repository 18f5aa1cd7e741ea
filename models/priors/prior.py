"""RoutingPrior: the sites a prior samples and the coefficients they make; SimplexPrior: priors on ILR coordinates.

A model calls ``prior.hyperprior()`` outside its plates and ``prior()`` inside the episode plate. Guides, losses and
diagnostics ask for ``site_names``, ``distribution`` and ``log_prob``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_smat.registry import Remembered
from pyro_smat.routing import EXPERT_SITE, SOURCE_SITE, softmax_of_ilr
from pyro_smat.routing.distributions import ILRDistribution
from pyro_smat.routing.local_module import LocalModule


class RoutingPrior(Remembered, LocalModule):
    """p(c): one or more sample sites and the coefficients they make.

    Attributes:
        num_blocks: L, the number of blocks with coefficients of their own; 1 is global mixing.

    Calling it inside the episode plate samples the sites and returns coefficients ``(*b, C)``, or ``(*b, L, C)`` when
    there are blocks.
    """

    num_blocks: int = 1

    @classmethod
    def member(cls, name: str) -> Callable[..., RoutingPrior]:
        """What "uniform" and "cost_aware" mean for guides whose ``prior_family`` this is: a constructor."""
        raise ValueError(f"{cls.__name__} has no {name} member; expected another prior for this guide")

    @property
    def size(self) -> int:
        """C = R + M, the number of coefficients."""
        raise self._missing("size")

    @property
    def site_names(self) -> tuple[str, ...]:
        """The sample sites in the order in which they are drawn."""
        raise self._missing("site_names")

    def distribution(self, site: str, drawn: Mapping[str, Tensor]) -> TorchDistribution:
        """The distribution of a site given the sites ``drawn`` before it; they do not matter where it is independent.

        Raises:
            KeyError: for a site that the prior does not have.
        """
        raise self._missing("distribution")

    def coefficients_of(self, drawn: Mapping[str, Tensor]) -> Tensor:
        """Coefficients ``(*b, C)`` or ``(*b, L, C)`` from a value for every site."""
        raise self._missing("coefficients_of")

    def forward(self) -> Tensor:
        drawn: dict[str, Tensor] = {}
        for site in self.site_names:
            drawn[site] = pyro.sample(site, self.distribution(site, drawn))
        return self.coefficients_of(drawn)

    def log_prob(self, drawn: Mapping[str, Tensor]) -> Tensor:
        """Joint log density of a value for every site, ``(*b)`` in nats."""
        terms = [self.distribution(site, drawn).log_prob(drawn[site]) for site in self.site_names]
        return torch.stack(torch.broadcast_tensors(*terms)).sum(0) if terms else torch.zeros(())

    def base_logits(self) -> Tensor:
        """Where a guide starts: ln p(A) ``(J,)`` over a catalog, ln E w ``([L,] C)`` (or the logits) on the simplex."""
        raise self._missing("base_logits")

    def hyper_log_densities(self) -> dict[str, Tensor]:
        """Log density of every hyper-parameter that has a hyperprior, by name, each 0-dim."""
        return {}

    def hyperprior(self) -> None:
        """Scores the hyper-parameters, once a model: call it outside the plates, before the prior itself."""
        for name, log_density in self.hyper_log_densities().items():
            pyro.factor(f"{name}_hyperprior", log_density)

    def _missing(self, name: str) -> NotImplementedError:
        return NotImplementedError(f"{type(self).__name__} has no {name}; expected a prior to define it")

    def _check_site(self, site: str) -> None:
        if site not in self.site_names:
            raise KeyError(f"{type(self).__name__} has no site {site!r}; its sites are {self.site_names}")


class SimplexPrior(RoutingPrior):
    """Independent priors on the ILR coordinates of the R source weights and of the M expert weights.

    Args:
        num_sources: R >= 1.
        num_experts: M >= 0.
        num_blocks: L >= 1, the number of blocks with independent weights of the same distribution.

    The sites are "source_ilr" (when R > 1) and "expert_ilr" (when M > 1), of event shape ``(n - 1,)``, or
    ``(L, n - 1)`` when there are blocks. Subclasses say which distribution a part of the coefficients has.

    Raises:
        ValueError: for no source, a negative number of experts, or no block.
    """

    def __init__(self, num_sources: int, num_experts: int = 0, *, num_blocks: int = 1) -> None:
        super().__init__()
        if num_sources < 1 or num_experts < 0:
            raise ValueError(f"num_sources is {num_sources} and num_experts {num_experts}; expected at least 1 and 0")
        if num_blocks < 1:
            raise ValueError(f"num_blocks is {num_blocks}; expected at least 1 (1 mixes whole networks)")
        self.num_sources, self.num_experts, self.num_blocks = num_sources, num_experts, num_blocks

    @property
    def size(self) -> int:
        return self.num_sources + self.num_experts

    @property
    def parts(self) -> dict[str, slice]:
        """Which entries of the coefficients every site stands for."""
        num_sources, num_experts = (
            slice(0, self.num_sources),
            slice(self.num_sources, self.num_sources + self.num_experts),
        )
        parts = {SOURCE_SITE: num_sources} if self.num_sources > 1 else {}
        return parts | ({EXPERT_SITE: num_experts} if self.num_experts > 1 else {})

    @property
    def site_names(self) -> tuple[str, ...]:
        return tuple(self.parts)

    def part_distribution(self, part: slice) -> ILRDistribution:
        """The distribution of one block's ILR coordinates of the coefficients in ``part``, batch shape ``()``."""
        raise self._missing("part_distribution")

    def distribution(self, site: str, drawn: Mapping[str, Tensor]) -> TorchDistribution:
        self._check_site(site)
        block = self.part_distribution(self.parts[site])
        return block if self.num_blocks == 1 else block.expand((self.num_blocks,)).to_event(1)

    def base_logits(self) -> Tensor:
        like = next(self.buffers(), torch.empty(()))
        total = torch.zeros(self.size, dtype=like.dtype, device=like.device)
        for part in self.parts.values():
            total[part] = self.part_log_weights(part)
        return total if self.num_blocks == 1 else total.expand(self.num_blocks, -1)

    def part_log_weights(self, part: slice) -> Tensor:
        """ln E w of the coefficients in ``part``, or what stands for it where there is no closed form."""
        return self.part_distribution(part).mean_weights().log()

    def coefficients_of(self, drawn: Mapping[str, Tensor]) -> Tensor:
        if drawn:
            like = next(iter(drawn.values()))
            return coefficients_from_ilr(drawn, self.num_sources, self.num_experts, like)
        like = next(self.buffers(), torch.empty(()))
        return like.new_ones((self.num_blocks,) * (self.num_blocks > 1) + (self.num_sources + self.num_experts,))


def coefficients_from_ilr(drawn: Mapping[str, Tensor], num_sources: int, num_experts: int, like: Tensor) -> Tensor:
    """Coefficients ``(*b, R + M)`` from the sites that were drawn; a lone source or expert has weight 1."""
    parts = []
    for site, size in ((SOURCE_SITE, num_sources), (EXPERT_SITE, num_experts)):
        if site in drawn:
            parts.append(softmax_of_ilr(drawn[site]))
        elif size == 1:
            parts.append(like.new_ones(1))
    leading = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(*leading, part.shape[-1]) for part in parts], dim=-1)


def vector(values: Tensor | Sequence[float], size: int, what: str) -> Tensor:
    """One number for each source and expert, ``(size,)``, from a tensor or a list.

    Raises:
        ValueError: for another number of values.
    """
    found = torch.as_tensor(values, dtype=None if isinstance(values, Tensor) else torch.get_default_dtype())
    if found.shape != (size,):
        raise ValueError(f"{what}: shape {tuple(found.shape)}; expected ({size},), one for each source and expert")
    return found
