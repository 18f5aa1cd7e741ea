"""FrozenImages: all images of an index, decoded once and seen once by every network that many tasks use.

The fast way through tasks that draw on one pool of images. Held in memory, so only where they fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_smat.episodes.pool import ImagePool, same_images
from pyro_smat.episodes.readers.decode import decode_image
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.deployment.inputs import read_images
from pyro_smat.inference.runs.routing.tasks import ListedImage, TaskSource
from pyro_smat.networks.kept_features import KeptFeatures
from pyro_smat.networks.network_features import NetworkFeatures

MOST_LISTED = 400_000  # paths that a plan names
MOST_CHECKED = 4096  # images that are held against those of training


class FrozenImages:
    """Images by path, with their features.

    Args:
        classifier: the router.
        paths: the images.
        source: that has them.
        draws: how many images all tasks have together: networks of a catalog look at every image where that is less
            work than looking at the images of each task.
        folder: where features are kept for other processes and restarts.
        progress: show a bar.

    Warns:
        InputWarning: of images that are unlike those that the router was trained on.

    Attributes:
        features: under the sources.
        shared: under the networks of the catalog, or None.
    """

    def __init__(
        self,
        classifier: RoutedClassifier,
        paths: Sequence[str],
        source: TaskSource,
        draws: int,
        *,
        folder: Path,
        progress: bool,
    ) -> None:
        data = classifier.router.config.data
        images = torch.zeros(len(paths), data.channels, data.size, data.size, dtype=torch.uint8)
        self._failures: dict[str, str] = {}
        self._row = {path: row for row, path in enumerate(paths)}
        shown = tqdm(paths, desc=f"reading {len(paths):,} images", leave=False, disable=not progress)
        for row, path in enumerate(shown):
            try:
                images[row] = torch.from_numpy(np.array(decode_image(source.file(path), data.size, data.channels)))
            except (OSError, ValueError) as error:
                self._failures[path] = str(error)
        count = len(paths)
        unknown = torch.zeros(count, dtype=torch.long)
        self._pool = ImagePool(images, unknown.unsqueeze(1), ("class",), (("unknown",),), unknown)
        read = torch.tensor([row for row, path in enumerate(paths) if path not in self._failures], dtype=torch.long)
        if len(read):
            sample = read[torch.linspace(0, len(read) - 1, min(len(read), MOST_CHECKED)).long()]
            read_images(self._pool.at(sample), classifier.image_form)  # warns of what is unlike the training images
        self._pictures: list[int] = same_images(images).tolist()
        model = classifier.router.model
        self.features = KeptFeatures(model.network, model.source_basis, self._pool, folder, progress=progress)
        networks = shared_networks(classifier)
        pays = 0 < networks * count <= draws
        self.shared = NetworkFeatures(model.network, self._pool, folder=folder) if pays else None

    def of(self, listed: Sequence[ListedImage]) -> tuple[Tensor, list[int]]:
        """Rows ``(n,)``, and for each the first row with the same pixels.

        Raises:
            ValueError: for an image that could not be read.
        """
        rows = [self._row[one.name] for one in listed]
        if self._failures:
            for one in listed:
                if one.name in self._failures:
                    raise ValueError(self._failures[one.name])
        return torch.tensor(rows), [self._pictures[row] for row in rows]

    def at(self, rows: Tensor) -> Tensor:
        """Images ``(*rows, C, H, W)`` as float32 in [0, 1]."""
        return self._pool.at(rows)


def shared_networks(classifier: RoutedClassifier) -> int:
    """How many different networks all tasks use together; 0 where there is no end of them."""
    catalog = classifier.router.catalog
    return 0 if catalog is None else len(catalog) * max(1, classifier.deployment.gate_samples)


def most_images(classifier: RoutedClassifier, memory: int) -> int:
    """How many images can be held in so many bytes, pixels and features together."""
    data = classifier.router.config.data
    pixels = torch.zeros(1, data.channels, data.size, data.size)
    features = classifier.router.features()(pixels)
    values = features.numel() + features.shape[-1] * shared_networks(classifier)
    return min(MOST_LISTED, memory // (pixels.numel() + values * features.element_size()))
