r"""Mixing of weights against the distance between sources.

Sources are moved towards their common start, the fallback, as in WiSE-FT (Wortsman et al. 2022):
:math:`\theta^{(r)}_a = \theta^{(0)} + a (\theta^{(r)} - \theta^{(0)})`. At every a, all fine-tuned sources are mixed
uniformly in weight space, one network, and their predictions are averaged, R networks; likewise every pair of them.
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import cast

import numpy as np
import torch
from bench import BLOCKS, Bench
from cells import Cells
from drawn import Drawn
from markdown import Found, grid
from options import Options
from pools import first_of_each_class
from torch import Tensor

from pyro_smat.networks.features import SourceFeatures
from pyro_smat.networks.heads import prototype_logits
from pyro_smat.sources import SourceLibrary

TITLE = "Mixing of weights against distance"
AMOUNTS = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0)
IMAGES = 20  # of a class: enough for the episodes, and every amount embeds them anew
SCALE, BINS = 10.0, 5
ALL = "all"


def keys(options: Options) -> list[tuple[str, ...]]:
    return [(block, f"{amount:g}") for block in BLOCKS for amount in AMOUNTS]


def run(bench: Bench, cells: Cells, folder: Path) -> None:
    for block in BLOCKS:
        left = cells.missing([key for key in keys(bench.options) if key[0] == block])
        if not left:
            continue
        pool = bench.blocks[block].pool
        assert pool is not None
        few = SourceFeatures(
            bench.router.model.network, bench.router.model.source_basis, first_of_each_class(pool, IMAGES)
        )
        drawn = bench.draw(few, bench.options.episodes, shot=bench.options.shot)
        for key in left:
            cells.write(key, mixtures(bench, drawn, float(key[1])))


def mixtures(bench: Bench, drawn: Drawn, amount: float) -> dict[str, dict[str, object]]:
    """Accuracy ``(N,)`` by group of sources, of their mixture, of the average of their predictions and of the best."""
    whole = bench.router.library
    start, tuned = whole.basis[0], whole.basis[1:]
    library = SourceLibrary(whole.names[1:], start + amount * (tuned - start), whole.space)
    groups = [*combinations(range(len(library)), 2), tuple(range(len(library)))]
    rows = torch.zeros(len(groups), len(library))
    for row, group in zip(rows, groups, strict=True):
        row[list(group)] = 1 / len(group)
    basis = library.basis.to(drawn.features.basis)
    features = SourceFeatures(drawn.features.network, basis, drawn.features.pool, routings=rows)
    alone, mixed = (_right(features, c, drawn) for c in (torch.eye(len(library)), rows))
    found: dict[str, dict[str, object]] = {kind: {} for kind in ("mixture", "average", "best", "distance")}
    for k, group in enumerate(groups):
        name = ALL if len(group) == len(library) else "+".join(library.names[r] for r in group)
        parts = alone[list(group)]
        found["mixture"][name] = _accuracy(mixed[k], drawn)
        found["average"][name] = _accuracy(parts.mean(0), drawn)
        singles = [_accuracy(part, drawn) for part in parts]
        found["best"][name] = max(singles, key=lambda values: float(values.mean()))
        apart = [float((library.basis[a] - library.basis[b]).norm()) for a, b in combinations(group, 2)]
        found["distance"][name] = [float(np.mean(apart)) / float(start.norm())]
    return found


def _right(features: SourceFeatures, coefficients: Tensor, drawn: Drawn) -> Tensor:
    """Class probabilities ``(J, N, Q, W)`` under J routings."""
    parts = []
    for batch in drawn.batches:
        known = [
            features.of_routings(coefficients.unsqueeze(1).to(features.basis.device), features.basis, part)
            for part in (batch.support, batch.query)
        ]
        support, queries = (cast(Tensor, features).float() for features in known)
        labels, mask = batch.support.labels, batch.support.mask
        logits = prototype_logits(support, labels, mask, queries, batch.class_mask, SCALE)
        parts.append(logits.softmax(-1))
    return torch.cat(parts, 1)


def _accuracy(probabilities: Tensor, drawn: Drawn) -> np.ndarray:
    """``(N,)`` from probabilities ``(N, Q, W)``."""
    labels = torch.cat([batch.query.labels for batch in drawn.batches])
    mask = torch.cat([batch.query.mask for batch in drawn.batches])
    right = (probabilities.argmax(-1) == labels) & mask
    return (right.sum(-1) / mask.sum(-1)).double().cpu().numpy()


def show(found: Found) -> list[str]:
    lines = []
    for block in BLOCKS:
        amounts = [f"{amount:g}" for amount in AMOUNTS]
        kinds = {"mixture": "mixture of weights, 1 network", "average": "average of predictions", "best": "best alone"}

        def text(kind: str, amount: str, block: str = block, kinds: dict[str, str] = kinds) -> str | None:
            key = (block, amount)
            if kind == "distance":
                value = found.average(key, "distance", ALL, lambda v: float(v[0]))
                return None if value is None else f"{value:.3f}"
            measure = next(k for k, title in kinds.items() if title == kind)
            value = found.average(key, measure, ALL, lambda v: 100 * float(v.mean()))
            return None if value is None else f"{value:.1f}"

        corner = f"{block}, all fine-tuned sources, 5 shots: part of the way from the start"
        lines += grid(corner, ["distance", *kinds.values()], amounts, text)
        lines += _pairs(found, block)
    return lines


def _pairs(found: Found, block: str) -> list[str]:
    """Pairs of all seeds and amounts by their distance, in bins of equal mass."""
    kinds = ("mixture", "average", "best")
    points = [
        (values["distance"][name][0], *(100 * np.mean(values[kind][name]) for kind in kinds))
        for values in (c.values for c in found.cells if c.key[0] == block and float(c.key[1]) > 0)
        for name in values["mixture"]
        if name != ALL
    ]
    if not points:
        return []
    table = np.array(sorted(points))
    bins = [part for part in np.array_split(table, BINS) if len(part)]
    titles = [f"{part[0, 0]:.3f} to {part[-1, 0]:.3f}" for part in bins]
    rows = {"mixture minus average of two": (1, 2), "mixture minus the better of two": (1, 3)}

    def text(row: str, column: str) -> str:
        part, (a, b) = bins[titles.index(column)], rows[row]
        return f"{(part[:, a] - part[:, b]).mean():+.1f}"

    return grid(f"{block}, pairs: distance over the norm of the start", rows, titles, text)
