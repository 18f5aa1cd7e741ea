"""Source descriptors: what every frozen source does to probe images, in numbers that need no task and no training.

library -> probe activations -> one vector a source -> the encoder of the guide. All numbers compare activations with
activations of the same source (or with those of theta_pre), so sources of any feature width have them, and one that is
added to a trained router is described like those it was trained with.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_smat.float64 import in_float64
from pyro_smat.networks.composition import TaskNetwork
from pyro_smat.networks.features import SourceFeatures

PROBES = 16
CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "a quarter turn": lambda x: x.rot90(1, (-2, -1)),
    "a half turn": lambda x: x.rot90(2, (-2, -1)),
    "mirroring": lambda x: x.flip(-1),
    "inversion": lambda x: 1 - x,
    "half the contrast": lambda x: 0.5 + 0.5 * (x - 0.5),
    "a shift by an eighth": lambda x: x.roll(x.shape[-1] // 8, -1),
    "blurring": lambda x: F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False),
}
DESCRIPTORS = (
    *(f"similarity of a probe to itself after {change}, others = 0" for change in CHANGES),
    "mean cosine of two probes",
    "effective dimension of the activations / probes",
    "share of the variance in the first direction",
    "share of activations that are 0",
    "linear CKA with theta_pre",
)


def probe_images(channels: int, size: int, seed: int = 0) -> Tensor:
    """Random images with edges and shades at several scales, ``(16, channels, size, size)`` in [0, 1].

    Sums of random fields whose amplitude falls as 1 / frequency, as that of natural images does; every second one is
    pushed towards black and white. Deterministic, so that no image of a user is stored with a router.
    """
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(PROBES, channels, size, size, dtype=torch.float32)  # whatever the default dtype
    cells = 2
    while cells <= size:
        field = torch.randn(PROBES, channels, cells, cells, generator=generator, dtype=torch.float32)
        total += F.interpolate(field, (size, size), mode="bicubic", align_corners=False) / cells
        cells *= 2
    flat = total.flatten(1)
    total = (total - flat.mean(1).view(-1, 1, 1, 1)) / flat.std(1).view(-1, 1, 1, 1)
    contrast = torch.where(torch.arange(PROBES) % 2 == 0, 1.0, 8.0).view(-1, 1, 1, 1)
    return torch.sigmoid(contrast.to(total.dtype) * total)


@torch.no_grad()
def source_descriptors(network: TaskNetwork, basis: Tensor, images: Tensor) -> Tensor:
    r"""The numbers of :data:`DESCRIPTORS` for every source, ``(R, 12)`` float32, each of the order of 1.

    With activations centred over the probes, the similarity after a change is the mean cosine of f(x) and f(change(x))
    minus that of f(x) and f(change(x')) for another probe x'; the effective dimension is the participation ratio
    :math:`(\sum \lambda)^2 / \sum \lambda^2` of the eigenvalues of their Gram matrix; the CKA is that of Kornblith et
    al. 2019, eq. 3.

    Args:
        network: runs a row of the basis.
        basis: ``(R, d)``; row 0 is theta_pre.
        images: probes ``(n, C, H, W)`` in [0, 1], n >= 2.

    Raises:
        ValueError: for fewer than two probes.
    """
    if len(images) < 2:
        raise ValueError(f"got {len(images)} probe image(s); expected at least 2, they are compared with each other")
    variants = torch.cat([images, *(change(images) for change in CHANGES.values())])
    activations = in_float64(SourceFeatures(network, basis)(variants)).movedim(1, 0)  # (R, n (1 + changes), f)
    activations = activations.unflatten(1, (1 + len(CHANGES), len(images)))
    plain, changed = activations[:, 0], activations[:, 1:]
    centre = plain.mean(1, keepdim=True)
    own = F.normalize(plain - centre, dim=-1)
    cosine = own.unsqueeze(1) @ F.normalize(changed - centre.unsqueeze(1), dim=-1).mT  # (R, changes, n, n)
    count = len(images)
    same = cosine.diagonal(dim1=-2, dim2=-1).sum(-1)
    survived = same / count - (cosine.sum((-2, -1)) - same) / (count * (count - 1))

    direct = F.normalize(plain, dim=-1)
    pairs = (direct @ direct.mT).sum((-2, -1)) - direct.square().sum((-2, -1))
    gram = (plain - centre) @ (plain - centre).mT
    spectrum = torch.linalg.eigvalsh(gram).clamp(min=0)
    total = spectrum.sum(-1).clamp(min=1e-30)
    size = gram.flatten(1).norm(dim=1).clamp(min=1e-30)
    return torch.cat(
        [
            survived,
            torch.stack(
                [
                    pairs / (count * (count - 1)),
                    total.square() / spectrum.square().sum(-1).clamp(min=1e-30) / count,
                    spectrum[:, -1] / total,
                    (plain == 0).double().mean((-2, -1)),
                    (gram * gram[0]).sum((-2, -1)) / (size * size[0]),
                ],
                dim=1,
            ),
        ],
        dim=1,
    ).float()
