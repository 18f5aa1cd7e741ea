"""NetworkFeatures: the images of a pool under composed networks that many tasks share."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from pathlib import Path

import torch
from torch import Tensor

from pyro_smat.episodes.pool import ImagePool
from pyro_smat.networks.composition import TaskNetwork
from pyro_smat.networks.features import SourceFeatures
from pyro_smat.networks.kept_features import KeptFeatures


class NetworkFeatures:
    """Features of a pool's images under composed networks that many tasks use, such as those of a catalog's routings.

    The pool is embedded under a network when that is first asked for (memory: images x f values for each network),
    always in the same batches.

    Args:
        network: runs theta.
        pool: the images.
        folder: where features are kept for other processes and restarts (:mod:`pyro_smat.networks.kept_features`);
            None keeps them in memory alone.

    Example:
        >>> module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
        >>> images = torch.arange(4, dtype=torch.uint8).repeat_interleave(64).view(4, 1, 8, 8)
        >>> pool = ImagePool(images, torch.zeros(4, 1).long(), ("class",), (("a",),), torch.zeros(4).long())
        >>> from pyro_smat.networks import ParameterSpace
        >>> features = NetworkFeatures(TaskNetwork(module, ParameterSpace.from_module(module)), pool)
        >>> theta = torch.rand(195)
        >>> features.of("the first", lambda: theta, images[:2].float(), torch.tensor([0, 1])).shape
        torch.Size([2, 3])
    """

    def __init__(self, network: TaskNetwork, pool: ImagePool, *, folder: Path | None = None) -> None:
        self.network, self.pool, self.folder = network, pool, folder
        self._known: dict[Hashable, SourceFeatures] = {}

    def of(self, name: Hashable, theta: Callable[[], Tensor], images: Tensor, rows: Tensor) -> Tensor:
        """Features ``(*b, n, f)`` of images ``(*b, n, C, H, W)`` that are the pool's ``rows`` ``(*b, n)``, -1 for none.

        Args:
            name: of the network; whoever names two networks alike gets the features of the first.
            theta: makes its weights ``(d,)``; asked when the network is first seen.
            images, rows: as in :meth:`SourceFeatures.of`.
        """
        known = self._known.get(name)
        if known is None:
            known = self._known.setdefault(name, self._features(theta().unsqueeze(0)))
        flat = rows.flatten(0, -2) if rows.ndim > 1 else rows.unsqueeze(0)
        every = torch.ones_like(flat, dtype=torch.bool)
        found = known.of(images.view(*flat.shape, *images.shape[-3:]), flat, every)[:, 0]
        return found.view(*rows.shape, -1)

    def _features(self, basis: Tensor) -> SourceFeatures:
        if self.folder is None:
            return SourceFeatures(self.network, basis, self.pool)
        return KeptFeatures(self.network, basis, self.pool, self.folder)
