r"""Catalog search: which J routings are worth offering to the router, found offline on training episodes.

The number of k-hot routings explodes with the sources; a catalog needs few of them. Stage 1 proposes, episode by
episode or at random: that is what the files beside this one differ in. Stage 2 keeps the routings that together serve
the episodes best (facility location, by greedy addition and exchange):

.. math::
    \min_{|C| \le J} \mathrm{CVaR}_\rho\big(\min_{j \in C} \ell_{j1}, \dots, \min_{j \in C} \ell_{jN}\big),

with :math:`\ell_{ji}` the mean query loss of episode i under routing j. The catalog then goes to a prior and a guide.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, product
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.inference.objective.candidates import as_deployed, candidate_losses
from pyro_smat.metrics.risk import check_rho, cvar
from pyro_smat.models.routed import RoutedModel
from pyro_smat.networks.basis import Basis
from pyro_smat.routing import Catalog

CANDIDATES = 256  # the most proposals that enter stage 2, or random routings that are drawn


class Member(NamedTuple):
    """A routing: a uniform mixture of sources, with one expert or none."""

    sources: tuple[int, ...]
    expert: int | None

    @property
    def rank(self) -> tuple[int, tuple[int, ...], int]:
        """Settles ties: fewer sources first, then lower indices, then no expert."""
        return len(self.sources), self.sources, -1 if self.expert is None else self.expert


@dataclass(frozen=True)
class CatalogSearch:
    """What a catalog is searched with.

    Attributes:
        model: its sources, deployed experts and head; its prior is not used, its mode is restored.
        batches: a function of a number of episodes that draws about so many training episodes, in batches; not those of
            a later evaluation.
        rho: tail fraction of stage 2, in (0, 1]; 1 is the mean over the episodes.
        seed: of random proposals.
        progress: show bars.

    Raises:
        ValueError: for rho outside (0, 1].
    """

    model: RoutedModel
    batches: Callable[[int], Sequence[EpisodeBatch]]
    rho: float = 1.0
    seed: int = 0
    progress: bool = False

    def __post_init__(self) -> None:
        check_rho(self.rho)

    @property
    def num_experts(self) -> int:
        """Experts that are tried with the mixtures: those of the model."""
        return 0 if self.model.experts is None else len(self.model.experts)

    @property
    def singles(self) -> list[Member]:
        """Every source alone, with every expert and with none: always candidates."""
        sources = range(len(self.model.source_names))
        return [Member((r,), m) for r, m in product(sources, [None, *range(self.num_experts)])]

    def tables(self, episodes: int) -> list[LossTable]:
        """The training episodes, with the losses of the routings that have been run on them.

        Raises:
            ValueError: when there are none.
        """
        batches = self.batches(episodes) if episodes > 0 else []
        if not batches:
            raise ValueError(
                f"got {len(batches)} batches of {episodes} episodes; expected training episodes to search on"
            )
        with as_deployed(self.model):
            basis = self.model.basis()
        return [LossTable(self.model, batch, basis) for batch in batches]

    def best(
        self, tables: Sequence[LossTable], proposed: Iterable[Member], size: int, num_experts: int, candidates: int
    ) -> Catalog:
        """Stage 2: the catalog of at most ``size`` of the proposed routings and single sources.

        Args:
            tables: the training episodes.
            proposed: routings, again for every episode that proposes them.
            size: J, the most routings of the catalog; fewer when more do not help.
            num_experts: M of the router. Where the model has no experts yet (they have no weights before training),
                mixtures are selected and every one is offered with each of the M; at least one mixture is.
            candidates: the most proposals that enter, those of the most episodes.
        """
        offered = num_experts if not self.num_experts else 0
        counts = Counter(proposed)
        frequent = sorted(counts, key=lambda member: (-counts[member], member.rank))[:candidates]
        pool = list(dict.fromkeys([*self.singles, *frequent]))
        losses = torch.cat([table.losses(pool) for table in self.bar(tables, "evaluating routings")], dim=1)
        rows = select_routings(losses, max(1, size // max(1, offered)), self.rho)
        return catalog_of(self.model, [pool[j] for j in rows]).with_experts(offered)

    def bar(self, tables: Sequence[LossTable], stage: str) -> Iterable[LossTable]:
        """The batches, with a progress bar."""
        return tqdm(tables, desc=stage, unit="batch", disable=not self.progress, leave=False)


def forward_selection(
    search: CatalogSearch,
    tables: Sequence[LossTable],
    max_sources: int,
    width: int,
) -> list[Member]:
    """For every episode the ``width`` best routings of a beam search over sources, one list for all episodes."""
    found = (_search(table, search.singles, max_sources, width) for table in search.bar(tables, "proposing routings"))
    return list(chain.from_iterable(found))


def check_counts(**counts: int) -> None:
    """Refuse numbers below 1.

    Raises:
        ValueError: naming all of them.
    """
    if min(counts.values()) < 1:
        raise ValueError(f"got {counts}; expected numbers of at least 1")


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


class LossTable:
    """Query losses of routings on one batch; every routing is run once."""

    def __init__(self, model: RoutedModel, batch: EpisodeBatch, basis: Basis) -> None:
        self.model, self.batch, self.basis = model, batch, basis
        self.rows: dict[Member, list[float]] = {}

    def add(self, members: Iterable[Member]) -> None:
        new = [member for member in dict.fromkeys(members) if member not in self.rows]
        if new:
            coefficients = catalog_of(self.model, new).coefficients
            found = candidate_losses(self.model, self.batch.to(self.basis.device), coefficients, basis=self.basis)
            self.rows.update(zip(new, found.tolist(), strict=True))

    def losses(self, members: Sequence[Member]) -> Tensor:
        """``(J, B)``, float64."""
        self.add(members)
        return torch.tensor([self.rows[member] for member in members], dtype=torch.float64)

    def best(self, members: Iterable[Member], episode: int, count: int) -> list[Member]:
        """The members of lowest loss on an episode, best first."""
        return sorted(members, key=lambda member: (self.rows[member][episode], member.rank))[:count]


def _search(table: LossTable, singles: Sequence[Member], max_sources: int, width: int) -> list[Member]:
    """For every episode of the batch the ``width`` best routings of a beam search, one list for all episodes."""
    table.add(singles)
    sources = len(table.model.source_names)
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


def catalog_of(model: RoutedModel, members: Sequence[Member]) -> Catalog:
    """The routings as coefficients over the model's sources and experts, the same mixture in all of its blocks."""
    experts = 0 if model.experts is None else len(model.experts)
    catalog = Catalog.uniform_mixtures(model.source_names, members, experts)
    blocks = len(model.network.space.block_names)
    if blocks == 1:
        return catalog
    return Catalog(catalog.coefficients.unsqueeze(1).repeat(1, blocks, 1), catalog.names)
