"""Source descriptors beside the evidence: what a source is, added to what its features say of a support."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from pyro_smat.encoders.encoder import Encoding, SupportEncoder


class DescribedEncoder(SupportEncoder):
    """Another encoder whose view of every source on its own also knows the descriptor of the source.

    One network reads the descriptors of all sources, so that a source can be added to a trained encoder.

    Args:
        encoder: of the support.
        descriptors: ``(R, D)``, see :func:`pyro_smat.networks.descriptors.source_descriptors`.

    Raises:
        ValueError: for descriptors of another shape, or that are not finite.
    """

    descriptors: Tensor

    def __init__(self, encoder: SupportEncoder, descriptors: Tensor) -> None:
        super().__init__(encoder.hidden)
        if descriptors.ndim != 2 or not torch.isfinite(descriptors).all():
            raise ValueError(
                f"descriptors have shape {tuple(descriptors.shape)}; expected (R, D), one finite vector a source"
            )
        self.support = encoder
        last = nn.Linear(encoder.hidden, encoder.hidden)
        with torch.no_grad():
            last.weight.mul_(0.1)
            last.bias.zero_()
        self.describe = nn.Sequential(nn.Linear(descriptors.shape[1], encoder.hidden), nn.GELU(), last)
        # Not persistent: they belong to the sources, which may be other ones when the weights are loaded.
        self.register_buffer("descriptors", descriptors.clone(), persistent=False)

    def encode_alone(self, features: Tensor, labels: Tensor, mask: Tensor, class_mask: Tensor) -> Encoding:
        """Arguments as in :meth:`SupportEncoder.forward`."""
        if features.shape[1] != len(self.descriptors):
            raise ValueError(
                f"the support has features of {features.shape[1]} sources; expected {len(self.descriptors)}, as many "
                "as have descriptors"
            )
        alone = self.support.encode_alone(features, labels, mask, class_mask)
        return replace(alone, embedding=alone.embedding + self.describe(self.descriptors.to(alone.embedding)))

    def in_context(self, embedding: Tensor) -> Tensor:
        return self.support.in_context(embedding)
