"""Catalog: a finite list of allowed routings; the latent is an index into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from math import comb, prod
from typing import Any

import torch
from torch import Tensor

from pyro_smat.float64 import in_float64

WEIGHT_TOLERANCE = 1e-4  # how far the weights of a mixture may be from adding up to 1


@dataclass(frozen=True)
class Catalog:
    """A finite list of allowed routings A_1..A_J.

    Attributes:
        coefficients: ``(J, R + M)``, or ``(J, L, R + M)``: one mixture for each of L blocks. In every mixture the R
            source weights are on the simplex; the M expert weights are on theirs, or all 0.
        names: J names, for reports.

    Raises:
        ValueError: for coefficients that are no list of such mixtures.

    Example:
        >>> catalog = Catalog.k_hot(("a", "b", "c"), max_sources=2)
        >>> catalog.names
        ('a', 'b', 'c', 'a+b', 'a+c', 'b+c')
        >>> catalog.coefficients[3]
        tensor([0.5000, 0.5000, 0.0000])
    """

    coefficients: Tensor
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        shape = tuple(self.coefficients.shape)
        if len(shape) not in (2, 3) or len(self.names) != shape[0] or 0 in shape:
            raise ValueError(
                f"catalog has coefficients {shape} and {len(self.names)} names; "
                "expected (J, R + M), or (J, L, R + M) for L blocks, and J names, J > 0"
            )
        if not self.coefficients.is_floating_point():
            raise ValueError(f"catalog has coefficients of {self.coefficients.dtype}; expected floating point weights")
        rows = self.coefficients.flatten(1)
        self._refuse(~(torch.isfinite(rows) & (rows >= 0)).all(-1), "expected finite weights >= 0")
        expected = "expected source weights that add up to 1, then expert weights that add up to 1 or are all 0"
        totals = in_float64(self.coefficients).cumsum(-1)
        whole = _is_one(totals[..., -1]) | _is_one(totals[..., -1] - 1)
        valid = whole & _is_one(totals).any(-1)
        self._refuse(~valid.reshape(len(self), -1).all(-1), expected)
        if not self._ends_of_sources().any():
            raise ValueError(f"no number of sources R fits all routings of the catalog; {expected}")

    @classmethod
    def uniform_mixtures(
        cls, sources: Sequence[str], members: Sequence[tuple[Sequence[int], int | None]], experts: int = 0
    ) -> Catalog:
        """Uniform mixtures of the given sources, each with one of the M ``experts`` or none.

        Args:
            sources: R names.
            members: for every routing the sources that it opens, and its expert in [0, M) or None.
            experts: M.

        Returns:
            A catalog with names such as "letter+face/expert0", or "letter+face" without an expert.
        """
        coefficients = torch.zeros(len(members), len(sources) + experts)
        names = []
        for row, (subset, expert) in zip(coefficients, members, strict=True):
            row[list(subset)] = 1.0 / len(subset)
            name = "+".join(sources[r] for r in subset)
            if expert is not None:
                row[len(sources) + expert] = 1.0
                name += f"/expert{expert}"
            names.append(name)
        return cls(coefficients, tuple(names))

    @classmethod
    def k_hot(cls, sources: Sequence[str], experts: int = 0, max_sources: int = 1, limit: int = 256) -> Catalog:
        """Every uniform mixture of 1 to ``max_sources`` sources, each with every single expert (or none when M = 0).

        Raises:
            ValueError: when that makes no routing, or more than ``limit``.
        """
        if not sources or max_sources < 1:
            raise ValueError(f"got {len(sources)} sources and max_sources {max_sources}; expected at least 1 of each")
        count = sum(comb(len(sources), k) for k in range(1, min(max_sources, len(sources)) + 1))
        if count * max(experts, 1) > limit:
            raise ValueError(
                f"{count} source subsets x {max(experts, 1)} experts make {count * max(experts, 1)} routings; "
                f"expected at most {limit}: lower max_sources or raise the limit"
            )
        subsets = [s for k in range(1, max_sources + 1) for s in combinations(range(len(sources)), k)]
        choices: Sequence[int | None] = range(experts) if experts else [None]
        return cls.uniform_mixtures(sources, list(product(subsets, choices)), experts)

    @classmethod
    def blockwise(cls, per_block: Sequence[Catalog], limit: int = 256) -> Catalog:
        """The product of one catalog for each of L blocks: every block chooses its mixture by itself.

        Names are joined by " | " in the order of the blocks; the last block changes fastest.

        Raises:
            ValueError: for fewer than two blocks, catalogs that differ in R + M or are blockwise themselves, or more
                than ``limit`` routings.
        """
        shapes = [tuple(catalog.coefficients.shape[1:]) for catalog in per_block]
        if len(shapes) < 2 or len(set(shapes)) > 1 or len(shapes[0]) != 1:
            raise ValueError(
                f"the catalogs of the blocks have mixtures of shapes {shapes}; expected at least two blocks, each with "
                "mixtures of the same R + M weights"
            )
        count = prod(len(catalog) for catalog in per_block)
        if count > limit:
            raise ValueError(
                f"{' x '.join(str(len(catalog)) for catalog in per_block)} mixtures make {count} routings; "
                f"expected at most {limit}: give the blocks smaller catalogs or raise the limit"
            )
        rows = [torch.stack(choice) for choice in product(*(catalog.coefficients for catalog in per_block))]
        names = [" | ".join(choice) for choice in product(*(catalog.names for catalog in per_block))]
        return cls(torch.stack(rows), tuple(names))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Catalog:
        """The catalog that :meth:`to_dict` wrote.

        Raises:
            ValueError: when "coefficients" or "names" is missing, or they make no catalog.
        """
        if set(data) != {"coefficients", "names"}:
            raise ValueError(f"a saved catalog has entries {sorted(data)}; expected 'coefficients' and 'names'")
        return cls(data["coefficients"], tuple(data["names"]))

    def to_dict(self) -> dict[str, Any]:
        """Plain data: the tensor "coefficients" on the CPU (for safetensors) and the list "names" (for JSON)."""
        return {"coefficients": self.coefficients.detach().cpu().contiguous(), "names": list(self.names)}

    def with_experts(self, experts: int) -> Catalog:
        """Every routing of a catalog of sources with each of M experts; the same catalog when M = 0."""
        if not experts:
            return self
        alone = torch.eye(experts, dtype=self.coefficients.dtype)
        rows = [
            torch.cat([row.expand(*row.shape), one.expand(*row.shape[:-1], experts)], -1)
            for row, one in product(self.coefficients, alone)
        ]
        names = [f"{name}/expert{m}" for name, m in product(self.names, range(experts))]
        return Catalog(torch.stack(rows), tuple(names))

    def families(self) -> tuple[int, ...]:
        """The family of every routing, J integers from 0: routings that open the same sources, in any block."""
        opened = self._opened_sources()
        number = {subset: index for index, subset in enumerate(dict.fromkeys(opened))}
        return tuple(number[subset] for subset in opened)

    def family_names(self, sources: Sequence[str]) -> tuple[str, ...]:
        """The sources that each family opens, such as "letter+face", from the names of all R sources."""
        if len(sources) < self._used_sources():
            raise ValueError(
                f"got {len(sources)} names of sources and the catalog opens source number {self._used_sources()}; "
                "expected the names of all R sources"
            )
        return tuple("+".join(sources[r] for r in subset) for subset in dict.fromkeys(self._opened_sources()))

    def __len__(self) -> int:
        return len(self.names)

    def _ends_of_sources(self) -> Tensor:
        """``(R + M,)`` bool: the weights up to and with this column add up to 1 in every mixture."""
        return _is_one(in_float64(self.coefficients).cumsum(-1)).flatten(0, -2).all(0)

    def _used_sources(self) -> int:
        """R without the last sources that no routing opens: these cannot be told from experts, and need not be."""
        return int(self._ends_of_sources().int().argmax()) + 1  # of equals, argmax is the first

    def _opened_sources(self) -> list[tuple[int, ...]]:
        weights = self.coefficients[..., : self._used_sources()]
        opened = (weights > 0).reshape(len(self), -1, weights.shape[-1]).any(1)
        return [tuple(row.nonzero().flatten().tolist()) for row in opened]

    def _refuse(self, bad: Tensor, expected: str) -> None:
        if bad.any():
            first = int(bad.int().argmax())
            raise ValueError(
                f"{int(bad.sum())} of {len(self)} routings are no mixtures; the first, {self.names[first]!r}, has "
                f"coefficients {self.coefficients[first].tolist()}; {expected}"
            )


def _is_one(totals: Tensor) -> Tensor:
    return (totals - 1).abs() <= WEIGHT_TOLERANCE


def routing_costs(coefficients: Tensor, costs: Tensor) -> Tensor:
    """Cost of routings: the sum of the costs of all sources and experts that they open.

    Args:
        coefficients: ``(*b, C)``.
        costs: ``(C,)``, the price of opening each source and expert.

    Returns:
        ``(*b,)``.
    """
    return (coefficients > 0).to(costs.dtype) @ costs
