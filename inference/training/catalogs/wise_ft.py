"""Sources, and points on the way to them from what they were fine-tuned from: a catalog that needs no search."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pyro_smat.registry import register
from pyro_smat.routing import Catalog


@register("catalog", "wise_ft")
def wise_ft_catalog(
    source_names: Sequence[str],
    num_experts: int = 0,
    num_blocks: int = 1,
    limit: int = 256,
    *,
    start: str | None = None,
    parts: Sequence[float] = (0.5, 1.0),
) -> Catalog:
    r"""The start, and :math:`(1 - \alpha)\,\mathrm{start} + \alpha\,\mathrm{source}` for every other source.

    Where the sources were fine-tuned from one network, points on the way often generalise better than either end, and
    weights mix there without a barrier; each is one network.

    Source: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" (WiSE-FT), section 3.

    Args:
        source_names: of the R sources.
        num_experts: M; each routing is there with every single expert.
        num_blocks: L; every block chooses by itself.
        limit: the largest number of routings that the guide can hold.
        start: the source that the others were fine-tuned from; default: the first, which is the fallback.
        parts: :math:`\alpha` in (0, 1], different ones.

    Raises:
        ValueError: for an unknown start, parts outside of (0, 1] or given twice, or more than ``limit`` routings.

    Example:
        >>> catalog = wise_ft_catalog(("imagenet", "letter", "face"))
        >>> catalog.names
        ('imagenet', 'imagenet>letter 0.5', 'letter', 'imagenet>face 0.5', 'face')
        >>> catalog.coefficients[1]
        tensor([0.5000, 0.5000, 0.0000])
    """
    start = source_names[0] if start is None else start
    if start not in source_names:
        raise ValueError(f"start is {start!r}; expected one of the sources: {', '.join(source_names)}")
    if not parts or len(set(parts)) < len(parts) or not all(0 < part <= 1 for part in parts):
        raise ValueError(f"parts is {list(parts)}; expected different shares of the way in (0, 1], such as [0.5, 1]")
    alone = torch.eye(len(source_names))
    first = alone[source_names.index(start)]
    rows, names = [first], [start]
    for name, row in zip(source_names, alone, strict=True):
        for part in sorted(parts) if name != start else ():
            rows.append(row if part == 1 else (1 - part) * first + part * row)
            names.append(name if part == 1 else f"{start}>{name} {part:g}")
    one = Catalog(torch.stack(rows), tuple(names)).with_experts(num_experts)
    if num_blocks > 1:
        return Catalog.blockwise([one] * num_blocks, limit)
    if len(one) > limit:
        raise ValueError(f"{len(one)} routings; expected at most {limit}: give fewer parts or raise the limit")
    return one
