"""SourceFeatures: the support as every frozen source sees it, cached by pool row.

Sits between the sampler and the guide: fills ``EpisodeBatch.support_features``. Sources never change, so each image
of a pool is embedded once per source, however often it is drawn.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_smat.composition import TaskNetwork
from pyro_smat.data.pool import ImagePool
from pyro_smat.episodes import EpisodeBatch

BATCH_IMAGES = 256


class SourceFeatures:
    """Features under R frozen sources.

    Args:
        network: runs a row of the basis.
        basis: ``(R, d)``, the frozen sources.
        pool: when given, features of its rows are kept (memory: rows x R x f values in the dtype of the basis).
    """

    def __init__(self, network: TaskNetwork, basis: Tensor, pool: ImagePool | None = None) -> None:
        self.network = network
        self.basis = basis.detach()
        self.pool = pool
        self._cache: Tensor | None = None
        self._known = torch.zeros(len(pool) if pool else 0, dtype=torch.bool)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features ``(R, n, f)`` of images ``(n, C, H, W)``."""
        return torch.stack([self._embed(row, images) for row in self.basis])

    def attach(self, batch: EpisodeBatch) -> EpisodeBatch:
        """The batch with ``support_features`` ``(B, R, S, f)``."""
        return batch.with_features(self.of(batch.support_images, batch.support_index))

    @torch.no_grad()
    def of(self, images: Tensor, rows: Tensor) -> Tensor:
        """Features ``(B, R, n, f)`` of images ``(B, n, C, H, W)`` at pool rows ``(B, n)`` (-1: not from the pool)."""
        if self.pool is None or (images.shape[:2] == rows.shape and bool((rows < 0).all())):
            return self(images.flatten(0, 1)).unflatten(1, images.shape[:2]).transpose(0, 1)
        wanted = rows.flatten().clamp(min=0).cpu()
        missing = torch.unique(wanted[~self._known[wanted]])
        if len(missing):
            self._fill(missing)
        assert self._cache is not None
        found = self._cache[wanted.to(self._cache.device)]  # (B n, R, f)
        return found.unflatten(0, rows.shape).transpose(1, 2)

    def _fill(self, rows: Tensor) -> None:
        assert self.pool is not None
        features = self(self.pool.at(rows).to(self.basis.device)).transpose(0, 1)  # (n, R, f)
        if self._cache is None:
            self._cache = features.new_zeros(len(self.pool), *features.shape[1:])
        self._cache[rows.to(features.device)] = features
        self._known[rows] = True

    def _embed(self, row: Tensor, images: Tensor) -> Tensor:
        return torch.cat([self.network(row, part) for part in images.split(BATCH_IMAGES)])
