"""KeptFeatures: features of a pool in a file, so that processes and restarts of a run embed it once between them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from pyro_smat.episodes.pool import ImagePool
from pyro_smat.files import load_state, locked, save_state
from pyro_smat.networks.composition import TaskNetwork
from pyro_smat.networks.features import SourceFeatures


class KeptFeatures(SourceFeatures):
    """The same numbers as :class:`~pyro_smat.networks.features.SourceFeatures`, from a file where they are there.

    The file is named by the digest of all that its numbers come from: weights, images, what the network makes of the
    first of them, dtype and kind of device. The process that comes first embeds the pool while others wait; a file that
    is damaged is made again.

    Args:
        network, basis, pool: as :class:`SourceFeatures` takes them.
        folder: of the files; made where it is not there.
        progress: show a bar while the pool is embedded.

    Example:
        >>> from tempfile import mkdtemp
        >>> from pyro_smat.networks import ParameterSpace
        >>> module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
        >>> images = torch.arange(4, dtype=torch.uint8).repeat_interleave(64).view(4, 1, 8, 8)
        >>> pool = ImagePool(images, torch.zeros(4, 1).long(), ("class",), (("a",),), torch.zeros(4).long())
        >>> network, folder = TaskNetwork(module, ParameterSpace.from_module(module)), Path(mkdtemp())
        >>> KeptFeatures(network, torch.rand(2, 195), pool, folder).of_pool().shape
        torch.Size([4, 2, 3])
        >>> [path.suffix for path in folder.iterdir()]
        ['.safetensors']
    """

    def __init__(
        self, network: TaskNetwork, basis: Tensor, pool: ImagePool, folder: Path, *, progress: bool = False
    ) -> None:
        super().__init__(network, basis, pool, progress=progress)
        self.folder = folder

    def _embedded_pool(self) -> Tensor:
        if self._table is None:
            name = f"features-{self._digest()}"
            path = self.folder / f"{name}.safetensors"
            with locked(self.folder, wait=True, name=f".{name}.lock"):
                try:
                    self._table = load_state(path)["features"].to(self.basis.device)
                except ValueError:
                    save_state(path, {"features": super()._embedded_pool().cpu()})
        assert self._table is not None
        return self._table

    def _digest(self) -> str:
        assert self.pool is not None
        found = hashlib.sha256(f"{self.basis.dtype} {self.basis.device.type} {self._batch} {self.pool.digest}".encode())
        first = self(self.pool.at(torch.zeros(1, dtype=torch.long)))  # which tells networks of the same weights apart
        for tensor in (self.basis, first):
            found.update(repr(tuple(tensor.shape)).encode())
            found.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return found.hexdigest()[:32]
