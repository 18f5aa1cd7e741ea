"""SourceFeatures: images as every frozen source sees them, cached by pool row.

Sits between the sampler and the guide: fills ``EpisodeBatch.support.features``. Sources never change, so each image
of a pool is embedded once per source, however often it is drawn.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from pyro_smat.episodes import EpisodeBatch, Labelled
from pyro_smat.episodes.pool import ImagePool
from pyro_smat.networks.basis import AnyBasis, Basis, parts_of
from pyro_smat.networks.composition import TaskNetwork, compose
from pyro_smat.networks.memory import new_table
from pyro_smat.networks.outputs import checked_features
from pyro_smat.networks.places import Places, changes_of

BATCH_IMAGES = 64  # small enough that a CPU keeps the activations in cache
DEVICE_BATCH_IMAGES = 1024  # enough to keep an accelerator busy


class SourceFeatures:
    """Features under R frozen networks, rows of a basis, and under fixed mixtures of them.

    Args:
        network: runs a row of the basis.
        basis: ``(R, d)``, the frozen sources; or these and M experts as they are deployed, a model's ``basis()``.
        pool: when given, all its images are embedded at the first use and looked up afterwards. Always in the same
            batches, so a resumed run sees the same bits.
        routings: ``(J, R + M)``, or ``(J, L, R + M)`` in a space of L blocks: mixtures under which the pool is embedded
            too, such as the rows of a catalog. A model of the same sources and experts then looks their features up
            instead of running their networks (:meth:`of_routings`). Sources by themselves are known without being named
            here.
        memory_limit: bytes that the features of the pool, images x (R + J) x f values in the dtype of the basis, may
            take in memory; beyond it they are in a temporary file that is mapped into memory. Default: 8 GiB on a CPU;
            half of the free memory of a GPU, beyond which they stay with the CPU.
        progress: show a bar while the pool is embedded.
        singly: embed an image of the pool when it is first asked for, by itself, instead of all of them at the first
            use (or in batches, by :meth:`embed_rows`). That pays where far fewer images are drawn than the pool has.

    Example:
        >>> from pyro_smat.networks import ParameterSpace
        >>> module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
        >>> space = ParameterSpace.from_module(module)
        >>> features = SourceFeatures(TaskNetwork(module, space), torch.rand(2, space.dim))
        >>> features(torch.rand(5, 1, 8, 8)).shape
        torch.Size([5, 2, 3])
    """

    def __init__(
        self,
        network: TaskNetwork,
        basis: AnyBasis,
        pool: ImagePool | None = None,
        *,
        routings: Tensor | None = None,
        memory_limit: int | None = None,
        progress: bool = False,
        singly: bool = False,
    ) -> None:
        self.network = network
        self.basis, *experts = parts_of(basis.detach())
        self.experts = experts[0] if experts else None
        self.pool = pool
        self.memory_limit = memory_limit
        self.progress = progress
        self.routings = _with_sources(len(self.basis), len(basis), len(network.space.block_names), routings)
        self.singly = singly
        self._rows: dict[int, Tensor] = {}
        self._table: Tensor | None = None
        self._compared: weakref.ref[Tensor] | None = None  # a basis that was found to be the same
        # The last coefficients that were asked for, and the networks that they name.
        self._named: tuple[weakref.ref[Tensor], int | None, Tensor | None] | None = None
        self._places = Places()

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features ``(n, R, f)`` of images ``(n, C, H, W)`` under the sources."""
        return self._under(range(len(self.basis)), images)

    def over(self, pool: ImagePool) -> SourceFeatures:
        """Another pool under the same networks, sources, experts and mixtures alike."""
        basis = Basis(self.basis, self.experts)
        return SourceFeatures(self.network, basis, pool, routings=self.routings, memory_limit=self.memory_limit)

    def embed(self) -> None:
        """Embed the pool now rather than at the first use.

        Raises:
            ValueError: without a pool.
        """
        if self.pool is None:
            raise ValueError("there is no pool to embed; expected SourceFeatures(network, basis, pool)")
        self._embedded_pool()

    def of_pool(self) -> Tensor:
        """Features ``(N, R, f)`` of all images of the pool under the sources.

        Raises:
            ValueError: without a pool.
        """
        self.embed()
        return self._embedded_pool()[:, : len(self.basis)]

    def attach(self, batch: EpisodeBatch) -> EpisodeBatch:
        """The batch with ``support.features`` ``(B, R, S, f)``, and with all that is known of its pool's images.

        Raises:
            ValueError: when there is a pool and a support image has a row beyond its end.
        """
        support, pool = batch.support, self.pool
        if pool is not None and self._places.of(support.images, support.rows, support.mask).highest >= len(pool):
            foreign = support.mask & (support.rows >= len(pool))
            raise ValueError(
                f"{int(foreign.sum())} support images have no row in the pool of {len(pool)} images; expected "
                "episodes drawn from this pool: build SourceFeatures without a pool to embed the images themselves"
            )
        features = self.of(support.images, support.rows, support.mask)
        return batch.with_features(features, known=self if pool is not None else None)

    def of(self, images: Tensor, rows: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features ``(B, R, n, f)`` of images ``(B, n, C, H, W)`` that are the pool's ``rows`` ``(B, n)``.

        Images with row -1 are not the pool's (a corruption may have altered them) and are embedded themselves, as all
        are without a pool. Padding gets any features: where ``mask`` ``(B, n)`` is False; without a mask, what is black
        and has row -1.
        """
        if self.pool is None:
            return self(images.flatten(0, 1)).unflatten(0, rows.shape).transpose(1, 2)
        columns = torch.arange(len(self.basis), device=rows.device).view(-1, 1)
        return self._look_up(columns, images, rows, mask).transpose(0, 1)

    def of_routings(self, coefficients: Tensor, basis: AnyBasis, part: Labelled) -> Tensor | None:
        """Features ``(*k, B, n, f)`` of the images of B tasks under routings; None where any of these is not known.

        Args:
            coefficients: ``(*k, B, C)`` or ``(*k, B, L, C)``; 1 instead of B where tasks share them.
            basis: ``(C, d)`` of a model of the same network; known are mixtures of these very sources, with these very
                experts or none, as long as nothing wants their gradient.
            part: supports or queries of the pool.
        """
        if self.pool is None or coefficients.requires_grad or not self._of_same_networks(basis):
            return None
        named = self._named
        changes = changes_of(coefficients)
        if named is None or named[0]() is not coefficients or changes is None or named[1] != changes:
            named = weakref.ref(coefficients), changes, self._columns(coefficients)
            self._named = named  # a model asks for support and queries
        columns = named[2]
        return None if columns is None else self._look_up(columns, part.images, part.rows, part.mask)

    def _columns(self, coefficients: Tensor) -> Tensor | None:
        """The networks ``(*k, B)`` that coefficients name; None where any is not known."""
        if self.routings.device != coefficients.device:
            self.routings = self.routings.to(coefficients.device)
        event = self.routings.ndim - 1
        coefficients = F.pad(coefficients, (0, self.routings.shape[-1] - coefficients.shape[-1]))  # no expert
        found = (coefficients.float().unsqueeze(-1 - event) == self.routings).flatten(-event).all(-1)  # (*k, B, T)
        best, columns = found.byte().max(-1)
        return columns if best.all() else None

    def _of_same_networks(self, basis: AnyBasis) -> bool:
        sources, *experts = parts_of(basis)
        if torch.is_grad_enabled() and any(part.requires_grad for part in (sources, *experts)):
            return False
        if self._compared is None or self._compared() is not sources:
            if not _equal(sources, self.basis):
                return False
            self._compared = weakref.ref(sources)  # a model asks with its own buffer, time after time
        return not experts or (self.experts is not None and _equal(experts[0], self.experts))

    @torch.no_grad()
    def _look_up(self, columns: Tensor, images: Tensor, rows: Tensor, mask: Tensor | None) -> Tensor:
        """``(*k, B, n, f)`` under the networks ``columns`` ``(*k, B)``, 1 instead of B where tasks share them."""
        placed = self._places.of(images, rows, mask)
        place, own = placed.rows, placed.own
        if self.singly:
            table, place = self._asked_for(place)
        else:
            table = self._embedded_pool()  # (N, T, f)
        columns = columns.expand(*columns.shape[:-1], len(rows)).unsqueeze(-1)
        index = torch.add(columns, place, alpha=table.shape[1])  # (*k, B, n)
        features = table.flatten(0, 1)[index.to(table.device)].to(rows.device)
        if own is not None:
            used, which = columns.expand(index.shape)[..., own].unique(return_inverse=True)  # (U,) and (*k, m)
            found = self._under(used.tolist(), images[own])  # (m, U, f)
            features[..., own, :] = found[torch.arange(which.shape[-1], device=which.device), which]
        return features

    def _asked_for(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """``(U, T, f)`` of the images that are asked for, each embedded by itself, and the places of ``rows`` there."""
        assert self.pool is not None
        asked, place = rows.unique(return_inverse=True)
        for row in asked.tolist():
            if row not in self._rows:
                image = self.pool.at(torch.tensor([row], device=self.pool.images.device))
                self._rows[row] = self._under(range(len(self.routings)), image)[0]
        return torch.stack([self._rows[row] for row in asked.tolist()]), place

    @torch.no_grad()
    def embed_rows(self, rows: Tensor) -> None:
        """Embed images of the pool now, in batches, which is faster than one by one; those that are there stay.

        Does nothing where the whole pool is embedded at once. A run that is to be the same when it is resumed asks for
        the same images first.

        Args:
            rows: of the pool, of any shape; -1 for none.
        """
        if not self.singly or self.pool is None:
            return
        new = [row for row in rows.unique().tolist() if row >= 0 and row not in self._rows]
        for part in torch.tensor(new, dtype=torch.long).split(self._batch):
            found = self._under(range(len(self.routings)), self.pool.at(part.to(self.pool.images.device)))
            self._rows.update(zip(part.tolist(), found, strict=True))

    @torch.no_grad()
    def _under(self, columns: Iterable[int], images: Tensor) -> Tensor:
        """Features ``(n, U, f)`` of images ``(n, C, H, W)`` under U of the known networks."""
        images = images.to(self.basis.device)
        found = []
        for column in columns:
            theta = self._theta(column)
            found.append(torch.cat([self._run(theta, part) for part in images.split(self._batch)]))
        return torch.stack(found, dim=1)

    def _run(self, theta: Tensor, images: Tensor) -> Tensor:
        return checked_features(self.network(theta, images), len(images))

    @property
    def _batch(self) -> int:
        return BATCH_IMAGES if self.basis.device.type == "cpu" else DEVICE_BATCH_IMAGES

    def _theta(self, column: int) -> Tensor:
        """``(d,)`` of a known network."""
        if column < len(self.basis):
            return self.basis[column]
        known = self.basis if self.experts is None else (self.basis, self.experts)
        return compose(self.routings[column].to(self.basis.device), known, self.network.space)

    @torch.no_grad()
    def _embedded_pool(self) -> Tensor:
        """``(N, T, f)``, the pool's images under the sources and the other routings."""
        if self._table is not None:
            return self._table
        assert self.pool is not None
        count, networks, table = len(self.pool), len(self.routings), None
        rows = torch.arange(count, device=self.pool.images.device)
        bar = tqdm(
            total=count * networks,
            desc=f"embedding {count:,} images under {networks} networks",
            unit="image",
            unit_scale=True,
            leave=False,
            disable=not self.progress,
        )
        with bar:
            for column in range(networks):
                theta = self._theta(column)
                for part in rows.split(self._batch):
                    features = self._run(theta, self.pool.at(part).to(self.basis.device))
                    if table is None:
                        table = new_table((count, networks, features.shape[-1]), features, self.memory_limit)
                    table[part.to(table.device), column] = features.to(table.device)
                    bar.update(len(part))
        self._table = table
        assert table is not None
        return table


def _equal(ours: Tensor, theirs: Tensor) -> bool:
    alike = ours.shape == theirs.shape and ours.dtype == theirs.dtype and ours.device == theirs.device
    return alike and torch.equal(ours, theirs)


def _with_sources(num_sources: int, rows: int, num_blocks: int, routings: Tensor | None) -> Tensor:
    """``(T, [L,] R + M)`` float32 on the CPU: the sources by themselves, then the other routings."""
    alone = torch.eye(num_sources, rows)
    if num_blocks > 1:
        alone = alone.unsqueeze(1).expand(-1, num_blocks, -1)
    if routings is None:
        return alone
    routings = routings.detach().float().cpu()
    if routings.shape[1:] != alone.shape[1:]:
        raise ValueError(
            f"routings have shape {tuple(routings.shape)}; expected (J, {', '.join(map(str, alone.shape[1:]))}): "
            f"weights of {num_sources} sources and {rows - num_sources} experts"
        )
    mixed = (routings.unsqueeze(1) != alone).flatten(2).any(-1).all(-1)
    return torch.cat([alone, routings[mixed]])
