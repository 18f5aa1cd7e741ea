"""SourceFeatures: images as every frozen source sees them, cached by pool row.

Sits between the sampler and the guide: fills ``EpisodeBatch.support.features``. Sources never change, so each image
of a pool is embedded once per source, however often it is drawn.
"""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.episodes.pool import ImagePool
from pyro_smat.networks.composition import TaskNetwork

BATCH_IMAGES = 64  # small enough that a CPU keeps the activations in cache


class SourceFeatures:
    """Features under R frozen networks, rows of a basis.

    Args:
        network: runs a row of the basis.
        basis: ``(R, d)``, the frozen sources.
        pool: when given, all its images are embedded at the first use and looked up afterwards (memory: images x R x f
            values in the dtype of the basis). Always in the same batches, so a resumed run sees the same bits.
        progress: show a bar while the pool is embedded.
        singly: embed an image of the pool when it is first asked for, always by itself, instead of all of them at the
            first use. That pays where far fewer images are drawn than the pool has.

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
        basis: Tensor,
        pool: ImagePool | None = None,
        *,
        progress: bool = False,
        singly: bool = False,
    ) -> None:
        self.network = network
        self.basis = basis.detach()
        self.pool = pool
        self.progress = progress
        self.singly = singly
        self._cache: Tensor | None = None
        self._singly: dict[int, Tensor] = {}

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features ``(n, R, f)`` of images ``(n, C, H, W)``."""
        images = images.to(self.basis.device)
        parts = [
            torch.stack([self.network(row, part) for row in self.basis], dim=1) for part in images.split(BATCH_IMAGES)
        ]
        return torch.cat(parts)

    def attach(self, batch: EpisodeBatch) -> EpisodeBatch:
        """The batch with ``support.features`` ``(B, R, S, f)``.

        Raises:
            ValueError: when there is a pool and a support image has a row beyond its end.
        """
        foreign = batch.support.mask & (batch.support.rows >= len(self.pool or ()))
        if self.pool is not None and foreign.any():
            raise ValueError(
                f"{int(foreign.sum())} support images have no row in the pool of {len(self.pool)} images; expected "
                "episodes drawn from this pool: build SourceFeatures without a pool to embed the images themselves"
            )
        return batch.with_features(self.of(batch.support.images, batch.support.rows, batch.support.mask))

    def of(self, images: Tensor, rows: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features ``(B, R, n, f)`` of images ``(B, n, C, H, W)`` that are the pool's ``rows`` ``(B, n)``.

        Images with row -1 are not the pool's (a corruption may have altered them) and are embedded themselves, as all
        are without a pool. Padding gets any features: where ``mask`` ``(B, n)`` is False; without a mask, what is black
        and has row -1.
        """
        if self.pool is None:
            features = self(images.flatten(0, 1))
        else:
            known = rows.flatten().clamp(min=0)
            if self.singly:
                features = torch.stack([self._one(self.pool, row) for row in known.tolist()])
            else:
                if self._cache is None:
                    self._cache = self._embed_pool(self.pool)
                features = self._cache[known.to(self._cache.device)]
            own = (rows < 0) & (images.flatten(2).any(-1) if mask is None else mask)
            if own.any():
                features[own.flatten().to(features.device)] = self(images[own])
        return features.unflatten(0, rows.shape).transpose(1, 2)

    def _one(self, pool: ImagePool, row: int) -> Tensor:
        """``(R, f)`` of one image of the pool."""
        if row not in self._singly:
            self._singly[row] = self(pool.at(torch.tensor([row], device=pool.images.device)))[0]
        return self._singly[row]

    def _embed_pool(self, pool: ImagePool) -> Tensor:
        starts = range(0, len(pool), BATCH_IMAGES)
        bar = tqdm(starts, desc=f"embedding {len(pool):,} images", leave=False, disable=not self.progress)
        rows = torch.arange(len(pool), device=pool.images.device)
        return torch.cat([self(pool.at(rows[start : start + BATCH_IMAGES])) for start in bar])


class NetworkFeatures:
    """Features of a pool's images under composed networks that many tasks use, such as those of a catalog's routings.

    The pool is embedded under a network when that is first asked for (memory: images x f values for each network),
    always in the same batches.

    Args:
        network: runs theta.
        pool: the images.

    Example:
        >>> from pyro_smat.episodes.pool import ImagePool
        >>> module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
        >>> images = torch.arange(4, dtype=torch.uint8).repeat_interleave(64).view(4, 1, 8, 8)
        >>> pool = ImagePool(images, torch.zeros(4, 1).long(), ("class",), (("a",),), torch.zeros(4).long())
        >>> from pyro_smat.networks import ParameterSpace
        >>> features = NetworkFeatures(TaskNetwork(module, ParameterSpace.from_module(module)), pool)
        >>> features.of("the first", torch.rand(195), images[:2].float(), torch.tensor([0, 1])).shape
        torch.Size([2, 3])
    """

    def __init__(self, network: TaskNetwork, pool: ImagePool) -> None:
        self.network, self.pool = network, pool
        self._known: dict[Hashable, SourceFeatures] = {}

    def of(self, name: Hashable, theta: Tensor, images: Tensor, rows: Tensor) -> Tensor:
        """Features ``(n, f)`` of images ``(n, C, H, W)`` that are the pool's ``rows`` ``(n,)``, -1 for none of it.

        Args:
            name: of the network; whoever names two networks alike gets the features of the first.
            theta: ``(d,)`` its weights.
            images, rows: as in :meth:`SourceFeatures.of`.
        """
        known = self._known.get(name)
        if known is None:
            known = self._known.setdefault(name, SourceFeatures(self.network, theta.unsqueeze(0), self.pool))
        every = torch.ones_like(rows, dtype=torch.bool).unsqueeze(0)
        return known.of(images.unsqueeze(0), rows.unsqueeze(0), every)[0, 0]
