r"""CostModel: what a task network costs to make and to run, from which sources and experts its routing opens.

Prices come from :func:`pyro_smat.cost.calibrate` (milliseconds), from the sizes of the blocks (bytes) or from the
user; they go to the cost-aware priors, to the projection onto a budget and to the Lagrangian.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from pyro_smat.float64 import in_float64
from pyro_smat.networks.parameters import ParameterSpace

Unit = Literal["ms", "bytes", "abstract"]


@dataclass(frozen=True)
class CostModel:
    r"""Prices of L blocks.

    .. math:: \mathrm{cost}(\theta_T) = c^{\mathrm{fix}} + \sum_{l=1}^L \Big( c_l^{\mathrm{mix}} \|w_{T,l}\|_0
              + c_l^{\mathrm{res}}\, 1\{\Delta_{T,l} \ne 0\}
              + c^{\mathrm{entry}} \sum_m 1\{\alpha_{T,l,m} \ne 0\}\, n_{m,l} \Big)

    with n_{m,l} the open entries of expert m in block l (multi-source SMAT, section 9). The residual of a block is
    charged once, however many experts touch it: they mask one shared delta. Entries that two experts open are
    charged twice.

    Attributes:
        mix: ``L`` prices of one active source.
        residual: ``L`` prices of a block that an active expert touches.
        entry: price of one open entry of an active expert, for unstructured experts that are stored sparsely.
        fixed: price of every network, whatever it opens: its forward pass.
        unit: what the prices are in.

    Raises:
        ValueError: for prices that are negative or not finite, blocks that differ in number, or an unknown unit.

    Example, a budget by prior: the expected cost of a task is 2.6 ms, the forward pass included.

        >>> from pyro_smat import Catalog, CostAwareCatalogPrior
        >>> model = CostModel(mix=(0.4,), residual=(0.5,), fixed=2.0, unit="ms")
        >>> prices = model.source_prices(sources=3)
        >>> catalog = Catalog.k_hot(("a", "b", "c"), max_sources=3)
        >>> prior = CostAwareCatalogPrior(catalog, prices, target_cost=2.6 - model.fixed)
        >>> round(float(prior.expected_cost()), 3)
        0.6
    """

    mix: tuple[float, ...]
    residual: tuple[float, ...]
    entry: float = 0.0
    fixed: float = 0.0
    unit: Unit = "abstract"

    def __post_init__(self) -> None:
        if not self.mix or len(self.mix) != len(self.residual):
            raise ValueError(
                f"got {len(self.mix)} prices of mixing and {len(self.residual)} of residuals; expected one of each for "
                "every block, at least one block"
            )
        prices = {"mix": self.mix, "residual": self.residual, "entry": (self.entry,), "fixed": (self.fixed,)}
        for name, values in prices.items():
            if not all(0 <= value < math.inf for value in values):
                raise ValueError(f"{name} holds prices {list(values)}; expected finite numbers >= 0")
        if self.unit not in get_args(Unit):
            raise ValueError(f"unit is {self.unit!r}; expected one of {get_args(Unit)}")

    @classmethod
    def of_bytes(cls, space: ParameterSpace, dtype: torch.dtype = torch.float32) -> CostModel:
        """Bytes of sources and experts that composing reads: a block of one row, for each that is open there."""
        sizes = tuple(float(size * dtype.itemsize) for size in space.block_sizes)
        return cls(mix=sizes, residual=sizes, unit="bytes")

    @property
    def blocks(self) -> int:
        """L."""
        return len(self.mix)

    @property
    def least(self) -> float:
        """The cost of the cheapest routings: one source a block, no expert."""
        return self.fixed + sum(self.mix)

    def cost_of(self, coefficients: Tensor, open_entries: Tensor | None = None) -> Tensor:
        """Cost of routings; a weight counts when it is not exactly 0.

        Args:
            coefficients: ``(*b, C)`` for one block; ``(*b, L, C)`` for L, or ``(*b, 1, C)`` where all L blocks have
                the same mixture.
            open_entries: ``(M, L)`` open entries of every expert in every block, from :func:`open_entries_of`; the
                last M coefficients are then those of experts. Without it all are sources.

        Returns:
            ``(*b,)`` float64, in ``unit``.

        Raises:
            ValueError: for shapes that do not fit the blocks, or coefficients that are not finite.
        """
        mixtures, opened = self.mixtures(in_float64(coefficients), open_entries)
        active = (mixtures != 0).double().expand(*mixtures.shape[:-2], self.blocks, -1)
        sources, experts = active.split([active.shape[-1] - len(opened), len(opened)], dim=-1)
        per_block = sources.sum(-1) * self._prices(self.mix, active)
        if len(opened):
            touched = (experts * (opened.mT > 0)).amax(-1)
            entries = (experts * opened.mT).sum(-1)
            per_block = per_block + touched * self._prices(self.residual, active) + self.entry * entries
        return per_block.sum(-1) + self.fixed

    def source_prices(self, sources: int, open_entries: Tensor | None = None) -> Tensor:
        """What the cost-aware priors take as ``costs``: the price of opening each source and expert in all its blocks.

        Their sum over what a routing opens, plus ``fixed``, is :meth:`cost_of` where all blocks share one mixture with
        at most one expert, and an upper bound elsewhere (a source that is open in some blocks only, a block that
        two experts touch).

        Args:
            sources: R.
            open_entries: ``(M, L)`` as in :meth:`cost_of`.

        Returns:
            ``(R + M,)``.
        """
        if sources < 1:
            raise ValueError(f"sources is {sources}; expected at least 1")
        opened = self._opened(open_entries, torch.device("cpu"))
        experts = in_float64(opened > 0) @ self._prices(self.residual, opened) + self.entry * opened.sum(-1)
        return torch.cat([torch.full((sources,), sum(self.mix), dtype=torch.float64), experts]).float()

    def mixtures(self, coefficients: Tensor, open_entries: Tensor | None) -> tuple[Tensor, Tensor]:
        """Checked coefficients ``(*b, G, C)``, G = L mixtures or 1 that all blocks share, and entries ``(M, L)``.

        Raises:
            ValueError: as in :meth:`cost_of`.
        """
        opened = self._opened(open_entries, coefficients.device)
        fits = coefficients.ndim >= (1 if self.blocks == 1 else 2) and coefficients.shape[-1] > len(opened)
        if not fits or (self.blocks > 1 and coefficients.shape[-2] not in (1, self.blocks)):
            expected = (
                "(*b, C)" if self.blocks == 1 else f"(*b, {self.blocks}, C), or (*b, 1, C) for one mixture of all"
            )
            raise ValueError(
                f"coefficients have shape {tuple(coefficients.shape)}; expected {expected}, with C more than the "
                f"{len(opened)} experts"
            )
        if not torch.isfinite(coefficients).all():
            raise ValueError("coefficients hold NaN or infinite weights; expected the finite weights of a routing")
        return coefficients.unsqueeze(-2) if self.blocks == 1 else coefficients, opened

    def _opened(self, open_entries: Tensor | None, device: torch.device) -> Tensor:
        if open_entries is None:
            return torch.zeros(0, self.blocks, dtype=torch.long, device=device)
        if open_entries.ndim != 2 or open_entries.shape[1] != self.blocks or (open_entries < 0).any():
            raise ValueError(
                f"open entries have shape {tuple(open_entries.shape)}; expected (M, {self.blocks}) counts >= 0, one "
                "for each expert and block (open_entries_of)"
            )
        return open_entries.to(device)

    @staticmethod
    def _prices(values: tuple[float, ...], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=like.device)


def open_entries_of(masks: Tensor, space: ParameterSpace) -> Tensor:
    """Open entries ``(M, L)`` of masks ``(M, d)`` (bool, or experts' rows: what is not 0 is open) in every block.

    Raises:
        ValueError: for masks of another space.
    """
    if masks.ndim != 2 or masks.shape[1] != space.dim:
        raise ValueError(f"masks have shape {tuple(masks.shape)}; expected (M, {space.dim}), one row an expert")
    return torch.stack([(part != 0).sum(-1) for part in masks.split(space.block_sizes, dim=-1)], dim=-1)
