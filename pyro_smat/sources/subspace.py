r"""Feature subspaces: the low-rank manifold of what a source was trained on, kept beside its checkpoint.

.. math::
    \rho_r(x) = \frac{\|(I - V_r V_r^\top)(f_r(x) - m_r)\|^2}{\|f_r(x) - m_r\|^2} \in [0, 1]

with :math:`m_r` the mean and :math:`V_r` the first k right singular vectors of the centred features of the training
images under source r: how unlike an image is to what the source has learned to tell apart. Residuals of two sources
are on different scales (a source with sparse features leaves more of everything), so the residual that is usual for
training images is kept too. Source: SiM, arXiv 2606.22589.

Training images -> :func:`fit_subspace` -> ``NAME.safetensors.subspace`` beside ``NAME.safetensors`` -> the library that
opens the checkpoint has it too -> the baseline "subspace_residual".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from pyro_smat.files import load_state, save_state
from pyro_smat.sources.checkpoint import Checkpoint, digest
from pyro_smat.sources.opening import Source, open_checkpoint
from pyro_smat.sources.transformers_names import as_stored

SUFFIX = ".subspace"
FORMAT = 1
SMALLEST = 1e-6  # residual


@dataclass(frozen=True)
class FeatureSubspace:
    """The manifold of one source's training features.

    Attributes:
        mean: m ``(f,)`` float32.
        directions: ``(k, f)`` float32, the rows of V', orthonormal.
        images: how many it was fitted on.
        usual: mean residual of training images under the subspace of the other half of them, in (0, 1].

    Raises:
        ValueError: for tensors of other shapes, that are not finite, or directions that are not orthonormal.
    """

    PARTS: ClassVar[tuple[str, ...]] = ("mean", "directions", "facts")

    mean: Tensor
    directions: Tensor
    images: int
    usual: float

    def __post_init__(self) -> None:
        shapes = tuple(self.mean.shape), tuple(self.directions.shape)
        if self.mean.ndim != 1 or self.directions.ndim != 2 or self.directions.shape[-1] != len(self.mean):
            raise ValueError(f"mean and directions have shapes {shapes}; expected (f,) and (k, f)")
        if not (0 < self.usual <= 1 and self.images > 0):
            raise ValueError(f"usual residual is {self.usual!r} of {self.images!r} images; expected one in (0, 1]")
        gram = self.directions.double() @ self.directions.double().mT
        if not torch.isfinite(self.mean).all() or not (gram - torch.eye(len(gram)).to(gram)).abs().max() < 1e-3:
            raise ValueError("mean or directions are damaged; expected finite numbers and orthonormal directions")

    @classmethod
    def of_tensors(cls, parts: Mapping[str, Tensor | None]) -> FeatureSubspace:
        """From what :meth:`tensors` gives.

        Raises:
            ValueError: for parts that are missing or of other shapes.
        """
        mean, directions, facts = (parts.get(key) for key in cls.PARTS)
        if mean is None or directions is None or facts is None or facts.shape != (2,):
            raise ValueError(f"holds {sorted(k for k, v in parts.items() if v is not None)}; expected {cls.PARTS}")
        return cls(mean, directions, int(facts[0]), float(facts[1]))

    def tensors(self) -> dict[str, Tensor]:
        """All of it as tensors, for files."""
        facts = torch.tensor([self.images, self.usual], dtype=torch.float64)
        return {"mean": self.mean, "directions": self.directions, "facts": facts}

    @property
    def rank(self) -> int:
        """k."""
        return len(self.directions)

    def residual(self, features: Tensor) -> Tensor:
        """Relative residual ``(*b)`` of features ``(*b, f)``; 1 for an image that is wholly outside.

        Raises:
            ValueError: for features of another width.
        """
        if features.shape[-1] != len(self.mean):
            raise ValueError(
                f"features have width {features.shape[-1]}; expected {len(self.mean)}, as when it was fitted"
            )
        return _residual(features, self.mean.to(features), self.directions.to(features))


def fit_subspace(features: Tensor, rank: int = 16) -> FeatureSubspace:
    """The subspace of the features of a source's training images.

    Args:
        features: ``(n, f)`` under that source.
        rank: k, in [1, min(n / 2 - 1, f)].

    Raises:
        ValueError: for features that are not finite, or a rank out of its range.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> plane = torch.randn(2, 6, generator=generator)
        >>> features = torch.randn(40, 2, generator=generator) @ plane
        >>> subspace = fit_subspace(features, rank=2)
        >>> subspace.rank, bool(subspace.residual(features).max() < 1e-5)
        (2, True)
        >>> bool(subspace.residual(torch.randn(6, generator=generator)) > 0.1)
        True
    """
    if features.ndim != 2 or not torch.isfinite(features).all():
        raise ValueError(f"features have shape {tuple(features.shape)}; expected finite ones (n, f)")
    most = min(len(features) // 2 - 1, features.shape[1])
    if not 1 <= rank <= most:
        raise ValueError(
            f"rank is {rank}; expected 1 to {most} for {len(features)} images of width {features.shape[1]}"
        )
    points = features.detach().cpu().double()
    halves = points[0::2], points[1::2]
    usual = torch.cat([_residual(a, *_fit(b, rank)) for a, b in (halves, halves[::-1])]).mean()
    mean, directions = _fit(points, rank)
    return FeatureSubspace(mean.float(), directions.float(), len(features), max(float(usual), SMALLEST))


def save_subspace(source: Source, subspace: FeatureSubspace) -> Path:
    """Write a subspace beside the checkpoint of its source; returns the path.

    The file knows the weights it belongs to, and a digest of itself.

    Args:
        source: the file of the source, or a checkpoint of a library.
        subspace: of this source.

    Raises:
        ValueError: for a source that is no file, cannot be read, or is in a folder that cannot be written to.
    """
    opened = open_checkpoint(source)
    path = subspace_path(opened)
    if not Path(opened.origin).is_file():
        raise ValueError(f"{opened.origin}: is no file beside which a subspace could be kept; save the source first")
    save_state(path, {"format": FORMAT, "weights": weights_digest(opened), **subspace.tensors()})
    return path


def load_subspace(source: Source) -> FeatureSubspace | None:
    """The subspace that is stored with a source; None where there is none, as with sources in memory.

    Raises:
        ValueError: for a damaged or foreign file, or one that was fitted under other weights.
    """
    checkpoint = open_checkpoint(source)
    path = subspace_path(checkpoint)
    if not path.is_file():
        return None
    state = load_state(path)
    if state.get("format") != FORMAT:
        raise ValueError(f"{path}: format is {state.get('format')!r}; this version reads format {FORMAT}: fit it again")
    if state.get("weights") != (found := weights_digest(checkpoint)):
        raise ValueError(
            f"{path}: was fitted under weights of digest {state.get('weights')}, and those of {checkpoint.origin} have "
            f"{found}; fit it again: pyro-smat sources subspace"
        )
    try:
        return FeatureSubspace.of_tensors(state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def subspace_path(checkpoint: Checkpoint) -> Path:
    """Where the subspace of a source is: beside its file, under its whole name and ``.subspace``."""
    return Path(checkpoint.origin + SUFFIX)


def weights_digest(checkpoint: Checkpoint) -> str:
    """SHA-256 of all tensors by name, whatever file holds them."""
    stored = as_stored(checkpoint)
    tensors = [(name, digest(stored.read(name))) for name in sorted(stored.names)]
    return hashlib.sha256(json.dumps(tensors).encode()).hexdigest()


def _fit(points: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    mean = points.mean(0)
    return mean, torch.linalg.svd(points - mean, full_matrices=False)[2][:rank]


def _residual(points: Tensor, mean: Tensor, directions: Tensor) -> Tensor:
    deviation = points - mean
    inside = (deviation @ directions.mT).square().sum(-1)
    return 1 - (inside / deviation.square().sum(-1).clamp(min=1e-12)).clamp(max=1)
