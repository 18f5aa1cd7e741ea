r"""Catalog search: which J routings are worth offering to the router, found offline on training episodes.

The number of k-hot routings explodes with the sources; a catalog needs few of them. Stage 1 proposes, episode by
episode; stage 2 keeps the routings that together serve the episodes best (facility
location, by greedy addition and exchange):

.. math::
    \min_{|C| \le J} \mathrm{CVaR}_\rho\big(\min_{j \in C} \ell_{j1}, \dots, \min_{j \in C} \ell_{jN}\big),

with :math:`\ell_{ji}` the mean query loss of episode i under routing j. The catalog then goes to a prior and a guide.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain, combinations, product
from math import comb
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.inference.objective.candidates import as_deployed, candidate_losses
from pyro_smat.metrics.risk import check_rho, cvar
from pyro_smat.models.routed import RoutedModel
from pyro_smat.routing import Catalog

SearchMethod = Literal["greedy", "beam", "random"]


class Member(NamedTuple):
    """A routing: a uniform mixture of sources, with one expert or none."""

    sources: tuple[int, ...]
    expert: int | None

    @property
    def rank(self) -> tuple[int, tuple[int, ...], int]:
        """Settles ties: fewer sources first, then lower indices, then no expert."""
        return len(self.sources), self.sources, -1 if self.expert is None else self.expert


def search_catalog(
    model: RoutedModel,
    batches: Sequence[EpisodeBatch],
    *,
    method: SearchMethod = "greedy",
    size: int = 16,
    max_sources: int = 3,
    rho: float = 1.0,
    beam_width: int = 4,
    candidates: int = 256,
    seed: int = 0,
    progress: bool = False,
) -> Catalog:
    """Build a catalog of at most ``size`` routings from training episodes; the same arguments give the same catalog.

    Args:
        model: its sources, deployed experts and head; its prior is not used.
        batches: training episodes, not those of a later evaluation. They are gone through twice.
        method: what stage 1 proposes. "greedy": for every episode the end of a forward selection, from its best single
            source and expert (or none), adding the source that lowers its query loss most until none does; "beam": the
            best ``beam_width`` routings met when as many partial selections are kept at every step; "random": routings
            drawn uniformly from all. Single sources, with every expert and with none, are always candidates.
        size: J, the most routings of the catalog; fewer when more do not help.
        max_sources: the most sources of a routing.
        rho: tail fraction of stage 2; 1 is the mean over the episodes.
        beam_width: of "beam".
        candidates: the most proposals that enter stage 2 (those of the most episodes), or random routings that are
            drawn.
        seed: of "random".
        progress: show a bar.

    Returns:
        The catalog, with names like "letter+face/expert0"; where the model mixes in blocks, every block has the same
        mixture.

    Raises:
        ValueError: for arguments out of range, or no episodes.
    """
    counts = {"size": size, "max_sources": max_sources, "beam_width": beam_width, "candidates": candidates}
    if method not in get_args(SearchMethod) or min(counts.values()) < 1 or not batches:
        raise ValueError(
            f"got method {method!r}, {counts} and {len(batches)} batches; "
            f"expected one of {get_args(SearchMethod)}, numbers of at least 1 and at least one batch"
        )
    check_rho(rho)
    experts = 0 if model.experts is None else len(model.experts)
    sources = len(model.source_names)
    singles = [Member((r,), m) for r, m in product(range(sources), [None, *range(experts)])]
    with as_deployed(model):
        basis = model.basis()
    tables = [_LossTable(model, batch, basis) for batch in batches]

    def bar(stage: str) -> Iterable[_LossTable]:
        return tqdm(tables, desc=stage, unit="batch", disable=not progress, leave=False)

    if method == "random":
        proposed = Counter(_draw(sources, experts, max_sources, candidates, random.Random(seed)))
    else:
        width = beam_width if method == "beam" else 1
        found = (_search(table, singles, sources, max_sources, width) for table in bar("proposing routings"))
        proposed = Counter(chain.from_iterable(found))
    frequent = sorted(proposed, key=lambda member: (-proposed[member], member.rank))[:candidates]
    pool = list(dict.fromkeys([*singles, *frequent]))
    losses = torch.cat([table.losses(pool) for table in bar("evaluating routings")], dim=1)
    return _catalog(model, [pool[j] for j in select_routings(losses, size, rho)])


def select_routings(losses: Tensor, size: int, rho: float = 1.0) -> list[int]:
    """Rows that together serve the columns best: small CVaR_rho of the column-wise minimum.

    Rows are added greedily, then exchanged one by one as long as that helps: greedy alone keeps the generalist with
    which it began. Where the CVaR cannot be lowered, the mean is; where neither can, no more rows are added. At
    rho = 1 what the greedy rows gain over the first alone is at least 1 - 1/e of what as many rows can gain over it
    (Nemhauser, Wolsey and Fisher 1978), and exchanges only add to that.

    Args:
        losses: ``(J, N)`` of J routings on N episodes.
        size: the most rows to select.
        rho: tail fraction in (0, 1].

    Returns:
        At least one row and at most ``size``; lower rows win ties.

    Raises:
        ValueError: for losses that are no finite ``(J, N)``, size below 1 or rho outside (0, 1].
    """
    if losses.ndim != 2 or not losses.numel() or size < 1:
        raise ValueError(
            f"losses are {tuple(losses.shape)} and size is {size}; expected (J, N), neither 0, and size > 0"
        )
    broken = ~torch.isfinite(losses).all(-1)
    if broken.any():
        raise ValueError(
            f"{int(broken.sum())} of {len(losses)} routings have NaN or infinite losses, the first is row "
            f"{int(broken.int().argmax())}; expected finite losses: leave out sources whose mixtures break the network"
        )
    chosen: list[int] = []
    best: tuple[float, ...] = (float("inf"),)
    while len(chosen) < size:
        score, row = _best_addition(losses, chosen, rho)
        if not score < best:
            break
        chosen.append(row)
        best = score
    exchanged = len(chosen) > 1
    while exchanged:
        exchanged = False
        for place in range(len(chosen)):
            score, row = _best_addition(losses, chosen[:place] + chosen[place + 1 :], rho)
            if score < best:
                chosen[place], best, exchanged = row, score, True
    return chosen


def _best_addition(losses: Tensor, chosen: list[int], rho: float) -> tuple[tuple[float, float], int]:
    """The row that serves best beside those chosen, after its score: CVaR, then mean."""
    served = torch.minimum(losses, losses[chosen].amin(0)) if chosen else losses
    scores = zip(cvar(served, rho).tolist(), served.mean(-1).tolist(), strict=True)
    return min((score, row) for row, score in enumerate(scores))


class _LossTable:
    """Query losses of routings on one batch; every routing is run once."""

    def __init__(self, model: RoutedModel, batch: EpisodeBatch, basis: Tensor) -> None:
        self.model, self.batch, self.basis = model, batch, basis
        self.rows: dict[Member, list[float]] = {}

    def add(self, members: Iterable[Member]) -> None:
        new = [member for member in dict.fromkeys(members) if member not in self.rows]
        if new:
            coefficients = _catalog(self.model, new).coefficients
            found = candidate_losses(self.model, self.batch.to(self.basis.device), coefficients, basis=self.basis)
            self.rows.update(zip(new, found.tolist(), strict=True))

    def losses(self, members: Sequence[Member]) -> Tensor:
        """``(J, B)``, float64."""
        self.add(members)
        return torch.tensor([self.rows[member] for member in members], dtype=torch.float64)

    def best(self, members: Iterable[Member], episode: int, count: int) -> list[Member]:
        """The members of lowest loss on an episode, best first."""
        return sorted(members, key=lambda member: (self.rows[member][episode], member.rank))[:count]


def _search(table: _LossTable, singles: Sequence[Member], sources: int, max_sources: int, width: int) -> list[Member]:
    """For every episode of the batch the ``width`` best routings of a beam search, one list for all episodes."""
    table.add(singles)
    episodes = range(len(table.batch))
    found = [table.best(singles, i, width) for i in episodes]
    beams = list(found)
    for _ in range(1, max_sources):
        grown = [
            {_with(member, r) for member in beam for r in range(sources) if r not in member.sources} for beam in beams
        ]
        table.add(member for members in grown for member in sorted(members, key=lambda member: member.rank))
        for i in episodes:
            beams[i] = table.best(grown[i], i, width)
            helps = beams[i] and table.rows[beams[i][0]][i] < table.rows[found[i][0]][i]
            found[i] = table.best([*found[i], *beams[i]], i, width)
            if not helps:
                beams[i] = []
    return [member for members in found for member in members]


def _with(member: Member, source: int) -> Member:
    return Member(tuple(sorted((*member.sources, source))), member.expert)


def _draw(sources: int, experts: int, max_sources: int, count: int, generator: random.Random) -> list[Member]:
    """Distinct routings, uniformly from all; all of them when there are no more than ``count``."""
    sizes = range(1, min(max_sources, sources) + 1)
    options = [None, *range(experts)]
    subsets = [comb(sources, k) for k in sizes]
    if sum(subsets) * len(options) <= count:
        everything = (subset for k in sizes for subset in combinations(range(sources), k))
        return [Member(subset, expert) for subset, expert in product(everything, options)]
    drawn: dict[Member, None] = {}
    while len(drawn) < count:
        k = generator.choices(sizes, subsets)[0]
        drawn[Member(tuple(sorted(generator.sample(range(sources), k))), generator.choice(options))] = None
    return list(drawn)


def _catalog(model: RoutedModel, members: Sequence[Member]) -> Catalog:
    experts = 0 if model.experts is None else len(model.experts)
    catalog = Catalog.uniform_mixtures(model.source_names, members, experts)
    blocks = len(model.network.space.block_names)
    if blocks == 1:
        return catalog
    return Catalog(catalog.coefficients.unsqueeze(1).repeat(1, blocks, 1), catalog.names)
